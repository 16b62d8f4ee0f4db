//! `y = x W^T + b`.

use tch::Tensor;
use torch::{has_cpu_kernel, normed_linears};

use super::{RmsNorm, packed};
use crate::ModelError;
use crate::lora::Adapter;
use crate::parameters::Builder;

/// A linear layer with the names of a checkpoint: `weight` and, where there is one, `bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// Takes `weight [out, in]` and, if `bias`, `bias [out]` below the builder's path, and the adapter
    /// over them where there is one.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(
        builder: &mut Builder<'_>,
        input: i64,
        output: i64,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let weight = builder.take("weight", &[output, input])?;
        let bias = if bias { Some(builder.take("bias", &[output])?) } else { None };
        Ok(Linear { weight, bias, adapter: builder.adapter([output, input])? })
    }

    /// A convolution over patches that do not overlap: `weight` of `kernel`
    /// `[out, channels, frames, height, width]`, whole or flattened, without bias.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_kernel(builder: &mut Builder<'_>, kernel: &[i64; 5]) -> Result<Self, ModelError> {
        Ok(Linear { weight: builder.take_kernel("weight", kernel)?, bias: None, adapter: None })
    }

    /// The head, `weight [vocab, in]` without bias. It never has an adapter, as in PEFT's `all-linear`.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_head(
        builder: &mut Builder<'_>,
        input: i64,
        vocab: i64,
    ) -> Result<Self, ModelError> {
        let weight = builder.take("weight", &[vocab, input])?;
        Ok(Self::tied(&weight))
    }

    /// A layer that shares `weight` with another (a tied head).
    pub fn tied(weight: &Tensor) -> Self {
        Linear { weight: weight.shallow_clone(), bias: None, adapter: None }
    }

    /// Weight and bias, where there is no adapter.
    pub(super) fn plain(&self) -> Option<(&Tensor, Option<&Tensor>)> {
        (self.adapter.is_none()).then_some((&self.weight, self.bias.as_ref()))
    }

    /// `[.., in] -> [.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let [y] = forward_all(x, [self]);
        y
    }
}

/// Layers over the same input `[.., in]`: `[.., out]` each.
pub fn forward_all<const N: usize>(x: &Tensor, layers: [&Linear; N]) -> [Tensor; N] {
    let parts = layers.map(|layer| (&layer.weight, layer.bias.as_ref()));
    let outputs = packed::forward(x, parts)
        .unwrap_or_else(|| parts.map(|(weight, bias)| x.linear(weight, bias)));
    let mut layers = layers.iter();
    outputs.map(|y| {
        let adapter = layers.next().and_then(|layer| layer.adapter.as_ref());
        match adapter.and_then(|adapter| adapter.forward(x)) {
            Some(update) => y + update,
            None => y,
        }
    })
}

/// Layers over `norm(x)` of `x [T, in]`: `[T, out]` each. The CPU kernel saves `x` only and recomputes the norm in the backward pass.
pub fn normed_all<const N: usize>(norm: &RmsNorm, x: &Tensor, layers: [&Linear; N]) -> [Tensor; N] {
    let parts = layers.map(Linear::plain);
    if parts.iter().any(Option::is_none) || !has_cpu_kernel(x) || packed::is_packed(x) {
        return forward_all(&norm.forward(x), layers);
    }
    let parts = parts.map(|part| part.expect("checked above"));
    normed_linears(x, (norm.weight(), norm.eps()), parts).expect("weights as wide as their input")
}
