//! Root-mean-square normalisation, computed in f32 whatever the type.

use tch::Tensor;
use torch::rms_norm;

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
