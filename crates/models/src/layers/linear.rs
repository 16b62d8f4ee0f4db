//! `y = x W^T + b`.

use tch::Tensor;
use torch::{
    Activation, AnyNorm, LinearWeights, activate, activated_linear, linears, normed,
    normed_linears, residual_linear,
};

use super::PackedWeights;
use crate::ModelError;
use crate::lora::Adapter;
use crate::parameters::Builder;

/// A linear layer with the names of a checkpoint: `weight` and, where there is one, `bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
    number: usize,
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
        let adapter = builder.adapter([output, input])?;
        Ok(Linear { weight, bias, adapter, number: builder.number_linear([output, input]) })
    }

    /// A convolution over patches that do not overlap: `weight` of `kernel`
    /// `[out, channels, frames, height, width]`, whole or flattened, and, if `bias`, `bias [out]`. It never has an adapter.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_kernel(
        builder: &mut Builder<'_>,
        kernel: &[i64],
        bias: bool,
    ) -> Result<Self, ModelError> {
        let weight = builder.take_kernel("weight", kernel)?;
        let bias = if bias { Some(builder.take("bias", &kernel[..1])?) } else { None };
        Ok(Linear { bias, ..Self::tied(builder, &weight) })
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
        Ok(Self::tied(builder, &weight))
    }

    /// A layer that shares `weight` with another (a tied head).
    pub fn tied(builder: &mut Builder<'_>, weight: &Tensor) -> Self {
        let size = weight.size();
        let number = builder.number_linear([size[0], size[1..].iter().product()]);
        let weight = weight.shallow_clone();
        Linear { weight, bias: None, adapter: None, number }
    }

    /// Its number among the linear layers of its model.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    fn weights<'a>(&'a self, packed: Option<&'a PackedWeights>) -> LinearWeights<'a> {
        LinearWeights {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            packed: packed.map(|packed| packed.copy_of(self)),
        }
    }

    /// The whole layer, where there is no adapter.
    pub(crate) fn plain<'a>(
        &'a self,
        packed: Option<&'a PackedWeights>,
    ) -> Option<LinearWeights<'a>> {
        self.adapter.is_none().then(|| self.weights(packed))
    }

    /// `[.., in] -> [.., out]`.
    pub fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        let [y] = forward_all(x, [self], packed);
        y
    }

    /// The layer over the activation of `x [T, in]`: `[T, out]`.
    pub fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        match self.plain(packed) {
            Some(layer) => activated_linear(x, activation, layer),
            None => self.forward(&activate(x, activation), packed),
        }
    }

    /// `x [T, out]` plus the layer over `y [T, in]`.
    pub fn add_forward(&self, x: &Tensor, y: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        match self.plain(packed) {
            Some(layer) => residual_linear(x, y, layer),
            None => x + self.forward(y, packed),
        }
    }
}

/// Layers over the same input `[.., in]`: `[.., out]` each.
pub fn forward_all<const N: usize>(
    x: &Tensor,
    layers: [&Linear; N],
    packed: Option<&PackedWeights>,
) -> [Tensor; N] {
    let outputs = linears(x, layers.map(|layer| layer.weights(packed)));
    let mut layers = layers.iter();
    outputs.map(|y| {
        let adapter = layers.next().and_then(|layer| layer.adapter.as_ref());
        match adapter.and_then(|adapter| adapter.forward(x)) {
            Some(update) => y + update,
            None => y,
        }
    })
}

/// Layers over `norm(x)` of `x [T, in]`: `[T, out]` each.
pub fn after_norm<'n, const N: usize>(
    norm: impl Into<AnyNorm<'n>>,
    x: &Tensor,
    layers: [&Linear; N],
    packed: Option<&PackedWeights>,
) -> [Tensor; N] {
    let (norm, parts) = (norm.into(), layers.map(|layer| layer.plain(packed)));
    if parts.iter().any(Option::is_none) {
        return forward_all(&normed(x, norm), layers, packed);
    }
    normed_linears(x, norm, parts.map(|part| part.expect("checked above")))
}
