//! The vision tower: patches in, one vector per merged patch out.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_5_vl.py`,
//! `Qwen2_5_VisionTransformerPretrainedModel`.

use std::rc::Rc;

use tch::Tensor;
use torch::Activation;

use super::config::VisionConfig;
use super::windows::patch_order;
use crate::ModelError;
use crate::checkpointing::Checkpointing;
use crate::decoder_model::{VisionSettings, VisionTower};
use crate::family::VisionShape;
use crate::layers::attention::{Layout, PackedAttention};
use crate::layers::axial::{axial_rotary, patch_positions};
use crate::layers::rotary::Rotary;
use crate::layers::{GatedMlp, Linear, Mlp, Norm, PackedWeights, RmsNorm, VisionBlock};
use crate::parameters::Builder;

const EPS: f64 = 1e-6;

/// `visual` in the checkpoint.
#[derive(Debug)]
pub struct Tower {
    config: VisionConfig,
    patch_embed: Linear,
    blocks: Vec<VisionBlock>,
    merger: Merger,
}

impl Tower {
    /// Takes the tower's tensors below the builder's path.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(builder: &mut Builder<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let side = config.patch_size as i64;
        let kernel =
            [config.hidden_size, config.in_channels, config.temporal_patch_size as i64, side, side];
        let patch_embed =
            builder.at("patch_embed.proj", |b| Linear::load_kernel(b, &kernel, false))?;
        let blocks = (0..config.depth)
            .map(|i| builder.at(format!("blocks.{i}"), |b| load_block(b, config)))
            .collect::<Result<_, _>>()?;
        let merger = builder.at("merger", |b| Merger::load(b, config))?;
        Ok(Tower { config: config.clone(), patch_embed, blocks, merger })
    }
}

fn load_block(b: &mut Builder<'_>, config: &VisionConfig) -> Result<VisionBlock, ModelError> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let norm1 = b.at("norm1", |b| RmsNorm::load(b, hidden, EPS))?;
    let norm2 = b.at("norm2", |b| RmsNorm::load(b, hidden, EPS))?;
    let mlp = GatedMlp::load(b, norm2, [hidden, inner], true)?;
    VisionBlock::load(b, [hidden, config.num_heads], Norm::Rms(norm1), Mlp::Gated(mlp))
}

impl VisionTower for Tower {
    fn shape(&self) -> VisionShape {
        self.config.shape()
    }

    fn settings(&self) -> String {
        format!("{:?}", self.config)
    }

    fn stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        tiles: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor {
        let device = pixel_values.device();
        let kind = pixel_values.kind();
        let merge = self.config.spatial_merge_size.pow(2) as i64;
        let order = patch_order(&self.config, tiles);
        let window_index = torch::upload(&order.window_index, device);
        let positions = patch_positions(tiles, self.config.spatial_merge_size);
        let head_dim = self.config.hidden_size / self.config.num_heads;
        let rotary = axial_rotary(head_dim, self.config.rope_theta(), &positions, device);
        let rotary = Rc::new(Rotary::new(
            permute(&rotary.cos, &window_index, merge),
            permute(&rotary.sin, &window_index, merge),
        ));
        let attention = |lens: Vec<usize>| {
            Rc::new(PackedAttention::new(&Layout::independent(lens), false, kind, device))
        };
        let (windowed, full) = (attention(order.window_lens), attention(order.frame_lens));

        let index = window_index.shallow_clone();
        let mut x = checkpointing.run(pixel_values, move |x| {
            permute(&self.patch_embed.forward(x, packed), &index, merge)
        });
        for (i, block) in self.blocks.iter().enumerate() {
            let seen =
                if self.config.fullatt_block_indexes.contains(&i) { &full } else { &windowed };
            let (seen, rotary) = (seen.clone(), rotary.clone());
            x = checkpointing.run(&x, move |x| block.forward(x, &rotary, &seen, packed));
        }
        let original_order = window_index.argsort(0, false);
        checkpointing
            .run(&x, move |x| self.merger.forward(x, packed).index_select(0, &original_order))
    }
}

/// Reorders `[patches, channels]` in units of `merge` patches.
fn permute(x: &Tensor, index: &Tensor, merge: i64) -> Tensor {
    let channels = x.size()[1];
    x.view([-1, merge * channels]).index_select(0, index).view([-1, channels])
}

#[derive(Debug)]
struct Merger {
    ln_q: RmsNorm,
    inner: Linear,
    outer: Linear,
    width: i64,
}

impl Merger {
    fn load(b: &mut Builder<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let width = config.hidden_size * config.spatial_merge_size.pow(2) as i64;
        Ok(Merger {
            ln_q: b.at("ln_q", |b| RmsNorm::load(b, config.hidden_size, EPS))?,
            inner: b.at("mlp.0", |b| Linear::load(b, width, width, true))?,
            outer: b.at("mlp.2", |b| Linear::load(b, width, config.out_hidden_size, true))?,
            width,
        })
    }

    fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        let x = self.ln_q.forward(x).view([-1, self.width]);
        self.outer.forward_activated(&self.inner.forward(&x, packed), Activation::Gelu, packed)
    }
}
