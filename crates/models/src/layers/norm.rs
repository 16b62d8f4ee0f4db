//! Normalisation, computed in f32 whatever the type.

use tch::Tensor;
use torch::{AnyNorm, rms_norm};

use crate::ModelError;
use crate::parameters::Builder;

/// `w * x / sqrt(mean(x^2) + eps)` over the last dimension.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Takes `weight [size]`.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(builder: &mut Builder<'_>, size: i64, eps: f64) -> Result<Self, ModelError> {
        Ok(RmsNorm { weight: builder.take("weight", &[size])?, eps })
    }

    /// `[size]`, and what is added to the mean square.
    pub(crate) fn weight(&self) -> (&Tensor, f64) {
        (&self.weight, self.eps)
    }

    /// `[.., size] -> [.., size]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        rms_norm(x, self.weight())
    }
}

/// `w * (x - mean(x)) / sqrt(var(x) + eps) + b` over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight [size]` and `bias [size]`.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(builder: &mut Builder<'_>, size: i64, eps: f64) -> Result<Self, ModelError> {
        let weight = builder.take("weight", &[size])?;
        Ok(LayerNorm { weight, bias: builder.take("bias", &[size])?, eps })
    }

    /// As operations take it.
    pub(crate) fn weights(&self) -> torch::LayerNorm<'_> {
        torch::LayerNorm { weight: &self.weight, bias: Some(&self.bias), eps: self.eps }
    }

    /// `[.., size] -> [.., size]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        torch::layer_norm(x, self.weights())
    }
}

/// The norm of a layer.
#[derive(Debug)]
pub enum Norm {
    /// By the root of the mean square.
    Rms(RmsNorm),
    /// By mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// As operations take it.
    pub(crate) fn weights(&self) -> AnyNorm<'_> {
        match self {
            Norm::Rms(norm) => torch::Norm::from(norm.weight()).into(),
            Norm::Layer(norm) => norm.weights().into(),
        }
    }

    /// `[.., size] -> [.., size]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Norm::Rms(norm) => norm.forward(x),
            Norm::Layer(norm) => norm.forward(x),
        }
    }
}
