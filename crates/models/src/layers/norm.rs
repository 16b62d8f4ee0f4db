//! Root-mean-square normalisation, computed in f32 whatever the type.

use tch::{Kind, Tensor};
use torch::{has_cpu_kernel, rms_norm};

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

    /// `[size]`.
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to the mean square.
    pub(super) fn eps(&self) -> f64 {
        self.eps
    }

    /// `[.., size] -> [.., size]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if has_cpu_kernel(x) {
            return rms_norm(x, &self.weight, self.eps).expect("a weight as wide as its input");
        }
        let kind = x.kind();
        let x32 = x.to_kind(Kind::Float);
        let mean_square = x32.square().mean_dim(-1i64, true, Kind::Float);
        let normed = &x32 * (mean_square + self.eps).rsqrt();
        normed.to_kind(kind) * &self.weight
    }
}
