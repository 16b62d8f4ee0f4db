//! The vision tower: patches in, one vector per merged patch out.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_5_vl.py`,
//! `Qwen2_5_VisionTransformerPretrainedModel`.

use std::rc::Rc;

use tch::Tensor;

use super::config::VisionConfig;
use super::rope::{patch_order, vision_rotary};
use crate::ModelError;
use crate::checkpointing::Checkpointing;
use crate::layers::attention::{Layout, PackedAttention};
use crate::layers::rotary::Rotary;
use crate::layers::{GatedMlp, Linear, PackedWeights, RmsNorm, normed_all};
use crate::parameters::Builder;

const EPS: f64 = 1e-6;

/// `visual` in the checkpoint.
#[derive(Debug)]
pub struct VisionTower {
    config: VisionConfig,
    patch_embed: Linear,
    blocks: Vec<VisionBlock>,
    merger: Merger,
}

impl VisionTower {
    /// Takes the tower's tensors below the builder's path.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(builder: &mut Builder<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let side = config.patch_size as i64;
        let kernel =
            [config.hidden_size, config.in_channels, config.temporal_patch_size as i64, side, side];
        let patch_embed = builder.at("patch_embed.proj", |b| Linear::load_kernel(b, &kernel))?;
        let blocks = (0..config.depth)
            .map(|i| builder.at(format!("blocks.{i}"), |b| VisionBlock::load(b, config)))
            .collect::<Result<_, _>>()?;
        let merger = builder.at("merger", |b| Merger::load(b, config))?;
        Ok(VisionTower { config: config.clone(), patch_embed, blocks, merger })
    }

    /// `pixel_values [patches, patch_dim] -> [merged patches, out_hidden_size]`, stage by stage.
    pub fn stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        grids: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor {
        let device = pixel_values.device();
        let kind = pixel_values.kind();
        let merge = self.config.spatial_merge_size.pow(2) as i64;
        let order = patch_order(&self.config, grids);
        let window_index = torch::upload(&order.window_index, device);
        let rotary = vision_rotary(&self.config, &order.positions, device);
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
struct VisionBlock {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    /// Its norm is `norm2`.
    mlp: GatedMlp,
    num_heads: i64,
}

impl VisionBlock {
    fn load(b: &mut Builder<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm1 = b.at("norm1", |b| RmsNorm::load(b, hidden, EPS))?;
        let norm = b.at("norm2", |b| RmsNorm::load(b, hidden, EPS))?;
        Ok(VisionBlock {
            norm1,
            qkv: b.at("attn.qkv", |b| Linear::load(b, hidden, 3 * hidden, true))?,
            proj: b.at("attn.proj", |b| Linear::load(b, hidden, hidden, true))?,
            mlp: GatedMlp::load(b, norm, [hidden, inner], true)?,
            num_heads: config.num_heads,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        attention: &PackedAttention,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        let patches = x.size()[0];
        // [patches, 3, heads, head_dim]
        let [qkv] = normed_all(&self.norm1, x, [&self.qkv], packed);
        let qkv = qkv.view([patches, 3, self.num_heads, -1]);
        let (q, k, v) = (qkv.select(1, 0), qkv.select(1, 1), qkv.select(1, 2));
        // A saved view would keep all three alive until the backward pass.
        let v = v.contiguous();
        drop(qkv);
        let attended = attention.forward(&rotary.apply(&q), &rotary.apply(&k), &v);
        let x = self.proj.add_forward(x, &attended.reshape([patches, -1]), packed);
        self.mlp.forward(&x, packed)
    }
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
        self.outer.forward(&self.inner.forward(&x, packed).gelu("none"), packed)
    }
}
