//! Norms of models. As in `operations`, callers do not choose between a kernel and libtorch's operations.

use tch::{Kind, Tensor};

use crate::device;
use crate::fast_paths::FastPath;
use crate::fused::{self, has_cpu_kernel};

/// A root-mean-square norm: `(weight + offset) * x / sqrt(mean(x^2) + eps)`, computed in f32.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[n]`.
    pub weight: &'a Tensor,
    /// What is added to the mean square.
    pub eps: f64,
    /// 0, or 1 where a checkpoint stores weights around 0 (Gemma, Qwen3.5).
    pub offset: f64,
}

impl<'a> From<(&'a Tensor, f64)> for Norm<'a> {
    /// Weight and epsilon.
    fn from((weight, eps): (&'a Tensor, f64)) -> Self {
        Norm { weight, eps, offset: 0.0 }
    }
}

/// A layer norm: `weight * (x - mean(x)) / sqrt(var(x) + eps) + bias`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `[n]`.
    pub weight: &'a Tensor,
    /// `[n]`.
    pub bias: Option<&'a Tensor>,
    /// What is added to the variance.
    pub eps: f64,
}

/// A norm before linear layers.
#[derive(Clone, Copy, Debug)]
pub enum AnyNorm<'a> {
    /// By the root of the mean square.
    Rms(Norm<'a>),
    /// By mean and variance.
    Layer(LayerNorm<'a>),
}

impl<'a> From<(&'a Tensor, f64)> for AnyNorm<'a> {
    /// An RMS norm of weight and epsilon.
    fn from(norm: (&'a Tensor, f64)) -> Self {
        AnyNorm::Rms(norm.into())
    }
}

impl<'a> From<Norm<'a>> for AnyNorm<'a> {
    fn from(norm: Norm<'a>) -> Self {
        AnyNorm::Rms(norm)
    }
}

impl<'a> From<LayerNorm<'a>> for AnyNorm<'a> {
    fn from(norm: LayerNorm<'a>) -> Self {
        AnyNorm::Layer(norm)
    }
}

/// [`rms_norm`] or [`layer_norm`].
///
/// # Panics
/// On tensors that do not fit.
pub fn normed(x: &Tensor, norm: AnyNorm<'_>) -> Tensor {
    match norm {
        AnyNorm::Rms(norm) => rms_norm(x, norm),
        AnyNorm::Layer(norm) => layer_norm(x, norm),
    }
}

/// The norm over the last dimension of `x [.., n]`, in the type of `x`, which is that of the weight. libtorch's kernel is one pass on every
/// device.
///
/// # Panics
/// On tensors that do not fit.
pub fn layer_norm(x: &Tensor, LayerNorm { weight, bias, eps }: LayerNorm<'_>) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), bias, eps, false)
}

/// The norm over the last dimension of `x [.., n]`, in the type of `x`, which is that of the weight. Kernels round once, after the weight.
/// Views `[T, heads, n]` are read in place.
///
/// # Panics
/// On tensors that do not fit.
pub fn rms_norm<'a>(x: &Tensor, norm: impl Into<Norm<'a>>) -> Tensor {
    let norm = norm.into();
    if has_cpu_kernel(x) {
        return fused::rms_norm(x, norm).expect("a weight as wide as its input");
    }
    if device::takes(FastPath::FusedNorm, x) {
        return device::rms_norm(x, norm);
    }
    rms_norm_reference(x, norm)
}

/// [`rms_norm`] by libtorch's operations. Rounds as transformers does: before the weight, or after it where there is an offset.
pub fn rms_norm_reference<'a>(x: &Tensor, norm: impl Into<Norm<'a>>) -> Tensor {
    let Norm { weight, eps, offset } = norm.into();
    let x32 = x.to_kind(Kind::Float);
    let mean_square = x32.square().mean_dim(-1i64, true, Kind::Float);
    let normed = &x32 * (mean_square + eps).rsqrt();
    match offset == 0.0 {
        true => normed.to_kind(x.kind()) * weight,
        false => (normed * (weight.to_kind(Kind::Float) + offset)).to_kind(x.kind()),
    }
}
