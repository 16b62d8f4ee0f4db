//! A block of a vision tower: attention within an image or a window of it, then an MLP, each after a norm.

use tch::Tensor;

use super::attention::PackedAttention;
use super::rotary::Rotary;
use super::{Linear, Mlp, Norm, PackedWeights, after_norm};
use crate::ModelError;
use crate::parameters::Builder;

/// The block.
#[derive(Debug)]
pub struct VisionBlock {
    norm: Norm,
    qkv: Linear,
    proj: Linear,
    mlp: Mlp,
    num_heads: i64,
}

impl VisionBlock {
    /// Takes `attn.qkv` and `attn.proj`, both with biases.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(
        b: &mut Builder<'_>,
        [hidden, num_heads]: [i64; 2],
        norm: Norm,
        mlp: Mlp,
    ) -> Result<Self, ModelError> {
        Ok(VisionBlock {
            norm,
            qkv: b.at("attn.qkv", |b| Linear::load(b, hidden, 3 * hidden, true))?,
            proj: b.at("attn.proj", |b| Linear::load(b, hidden, hidden, true))?,
            mlp,
            num_heads,
        })
    }

    /// `[patches, hidden] -> [patches, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        attention: &PackedAttention,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        let patches = x.size()[0];
        // [patches, 3, heads, head_dim]
        let [qkv] = after_norm(self.norm.weights(), x, [&self.qkv], packed);
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
