//! The gated multi-layer perceptron.

use tch::Tensor;
use torch::{Activation, gated, residual_gated_linear};

use super::{Linear, PackedWeights, RmsNorm, normed_all};
use crate::ModelError;
use crate::parameters::Builder;

/// `x + down(silu(gate(y)) * up(y))` of `y = norm(x)`.
#[derive(Debug)]
pub struct GatedMlp {
    /// The norm before it, fused with its first layers.
    pub norm: RmsNorm,
    /// `[inner, hidden]`.
    pub gate_proj: Linear,
    /// `[inner, hidden]`.
    pub up_proj: Linear,
    /// `[hidden, inner]`.
    pub down_proj: Linear,
}

impl GatedMlp {
    /// Takes the layers below `mlp`, with biases if `bias`.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(
        b: &mut Builder<'_>,
        norm: RmsNorm,
        [hidden, inner]: [i64; 2],
        bias: bool,
    ) -> Result<Self, ModelError> {
        Ok(GatedMlp {
            norm,
            gate_proj: b.at("mlp.gate_proj", |b| Linear::load(b, hidden, inner, bias))?,
            up_proj: b.at("mlp.up_proj", |b| Linear::load(b, hidden, inner, bias))?,
            down_proj: b.at("mlp.down_proj", |b| Linear::load(b, inner, hidden, bias))?,
        })
    }

    /// `[T, hidden] -> [T, hidden]`.
    pub fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        let [gate, up] = normed_all(&self.norm, x, [&self.gate_proj, &self.up_proj], packed);
        match self.down_proj.plain(packed) {
            Some(down) => residual_gated_linear(x, &gate, &up, Activation::Silu, down),
            None => x + self.down_proj.forward(&gated(&gate, &up, Activation::Silu), packed),
        }
    }
}
