//! The vision tower: patches in, one vector per merged patch out.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_vl.py`, `Qwen2VisionTransformerPretrainedModel`.

use std::rc::Rc;

use tch::Tensor;
use torch::Activation;

use super::config::VisionConfig;
use crate::ModelError;
use crate::checkpointing::Checkpointing;
use crate::decoder_model::{VisionSettings, VisionTower};
use crate::family::VisionShape;
use crate::layers::attention::{Layout, PackedAttention};
use crate::layers::axial::{axial_rotary, frame_lens, patch_positions};
use crate::layers::{
    LayerNorm, Linear, Mlp, Norm, PackedWeights, PlainMlp, VisionBlock,
};
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
            [config.embed_dim, config.in_channels, config.temporal_patch_size as i64, side, side];
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
    let hidden = config.embed_dim;
    let norm1 = b.at("norm1", |b| LayerNorm::load(b, hidden, EPS))?;
    let norm2 = b.at("norm2", |b| LayerNorm::load(b, hidden, EPS))?;
    let activation = config.activation().unwrap_or(Activation::QuickGelu);
    let sizes = [hidden, config.intermediate_size()];
    let mlp = PlainMlp::load(b, Norm::Layer(norm2), ["fc1", "fc2"], sizes, activation)?;
    VisionBlock::load(b, [hidden, config.num_heads], Norm::Layer(norm1), Mlp::Plain(mlp))
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
        let (kind, device) = (pixel_values.kind(), pixel_values.device());
        let positions = patch_positions(tiles, self.config.spatial_merge_size);
        let head_dim = self.config.embed_dim / self.config.num_heads;
        let rotary = axial_rotary(head_dim, self.config.rope_theta(), &positions, device);
        let layout = Layout::independent(frame_lens(tiles));
        let attention = PackedAttention::new(&layout, false, kind, device);
        let shared = Rc::new((rotary, attention));

        let mut x =
            checkpointing.run(pixel_values, move |x| self.patch_embed.forward(x, packed));
        for block in &self.blocks {
            let shared = shared.clone();
            x = checkpointing.run(&x, move |x| block.forward(x, &shared.0, &shared.1, packed));
        }
        checkpointing.run(&x, move |x| self.merger.forward(x, packed))
    }
}

#[derive(Debug)]
struct Merger {
    ln_q: LayerNorm,
    inner: Linear,
    outer: Linear,
    width: i64,
}

impl Merger {
    fn load(b: &mut Builder<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let width = config.embed_dim * config.spatial_merge_size.pow(2) as i64;
        Ok(Merger {
            ln_q: b.at("ln_q", |b| LayerNorm::load(b, config.embed_dim, EPS))?,
            inner: b.at("mlp.0", |b| Linear::load(b, width, width, true))?,
            outer: b.at("mlp.2", |b| Linear::load(b, width, config.hidden_size, true))?,
            width,
        })
    }

    fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        let x = self.ln_q.forward(x).view([-1, self.width]);
        self.outer.forward_activated(&self.inner.forward(&x, packed), Activation::Gelu, packed)
    }
}
