//! `y = x W^T + b`.

use tch::Tensor;

use crate::ModelError;
use crate::parameters::Builder;

/// A linear layer with the names of a checkpoint: `weight` and, where there is one, `bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight [out, in]` and, if `bias`, `bias [out]` below the builder's path.
    ///
    /// # Errors
    /// Only libtorch's own; misfits are collected by the builder.
    pub fn load(
        builder: &mut Builder<'_>,
        input: i64,
        output: i64,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let weight = builder.take("weight", &[output, input])?;
        let bias = if bias {
            Some(builder.take("bias", &[output])?)
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    /// A convolution over patches that do not overlap: `weight` of `kernel`
    /// `[out, channels, frames, height, width]`, whole or flattened, without bias.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_kernel(builder: &mut Builder<'_>, kernel: &[i64; 5]) -> Result<Self, ModelError> {
        Ok(Linear {
            weight: builder.take_kernel("weight", kernel)?,
            bias: None,
        })
    }

    /// A layer that shares `weight` with another (a tied head).
    pub fn tied(weight: &Tensor) -> Self {
        Linear {
            weight: weight.shallow_clone(),
            bias: None,
        }
    }

    /// `[.., in] -> [.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
