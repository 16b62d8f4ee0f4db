//! Multi-layer perceptrons with the norm before and the residual sum after them.

use tch::Tensor;
use torch::{Activation, activate, gated, residual_activated_linear, residual_gated_linear};

use super::{Linear, Norm, PackedWeights, RmsNorm, after_norm};
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
        let [gate, up] =
            after_norm(self.norm.weight(), x, [&self.gate_proj, &self.up_proj], packed);
        match self.down_proj.plain(packed) {
            Some(down) => residual_gated_linear(x, &gate, &up, Activation::Silu, down),
            None => x + self.down_proj.forward(&gated(&gate, &up, Activation::Silu), packed),
        }
    }
}

/// An activation by its name in `config.json`.
pub fn activation_of(name: &str) -> Option<Activation> {
    match name {
        "silu" => Some(Activation::Silu),
        "gelu" => Some(Activation::Gelu),
        "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        "quick_gelu" => Some(Activation::QuickGelu),
        _ => None,
    }
}

/// `x + second(act(first(norm(x))))`.
#[derive(Debug)]
pub struct PlainMlp {
    norm: Norm,
    first: Linear,
    second: Linear,
    activation: Activation,
}

impl PlainMlp {
    /// Takes the layers of these names below `mlp`, both with biases.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(
        b: &mut Builder<'_>,
        norm: Norm,
        names: [&str; 2],
        [hidden, inner]: [i64; 2],
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let [first, second] = names.map(|name| format!("mlp.{name}"));
        Ok(PlainMlp {
            norm,
            first: b.at(first, |b| Linear::load(b, hidden, inner, true))?,
            second: b.at(second, |b| Linear::load(b, inner, hidden, true))?,
            activation,
        })
    }

    /// `[T, hidden] -> [T, hidden]`.
    pub fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        let [inner] = after_norm(self.norm.weights(), x, [&self.first], packed);
        match self.second.plain(packed) {
            Some(second) => residual_activated_linear(x, &inner, self.activation, second),
            None => x + self.second.forward(&activate(&inner, self.activation), packed),
        }
    }
}

/// The perceptron of a vision block.
#[derive(Debug)]
pub enum Mlp {
    /// With a gate.
    Gated(GatedMlp),
    /// Without.
    Plain(PlainMlp),
}

impl Mlp {
    /// `[T, hidden] -> [T, hidden]`.
    pub fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        match self {
            Mlp::Gated(mlp) => mlp.forward(x, packed),
            Mlp::Plain(mlp) => mlp.forward(x, packed),
        }
    }
}
