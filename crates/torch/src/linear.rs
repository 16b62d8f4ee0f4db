//! Linear layers, alone and behind a norm or an activation. Few rows of input read a packed copy of the weight where the caller has a place
//! for one; more rows on the CPU take the fused kernels; all else takes libtorch's operations.

use std::cell::OnceCell;
use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::activations::{Activation, activate, gated};
use crate::call::{call, call_for_tensor, pointer};
use crate::device;
use crate::fast_paths::FastPath;
use crate::fused::{self, check, dims, has_cpu_kernel};
use crate::norms::{AnyNorm, normed};

unsafe extern "C" {
    fn vlm_r1_pack_linear(
        weight: *mut C_tensor,
        packed: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_packed_linears(
        x: *mut C_tensor,
        n: usize,
        packed: *const *mut C_tensor,
        biases: *const *mut C_tensor,
        outs: *const i64,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// With more rows than this packing brings little.
const MOST_PACKED_ROWS: i64 = 128;

/// A linear layer as operations take it.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeights<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// Where the packed copy of `weight` is kept; `None`: it is not packed. A pass that packs has no gradient.
    pub packed: Option<&'a PackedCopy>,
}

/// The place of a weight's packed copy, which is made when few rows first need it. The weight must not change while the copy is there.
#[derive(Debug, Default)]
pub struct PackedCopy(OnceCell<PackedLinear>);

impl PackedCopy {
    fn of(&self, weight: &Tensor) -> &PackedLinear {
        self.0.get_or_init(|| PackedLinear::new(weight).expect("a matrix"))
    }
}

/// The packed copies of all `layers`; `None` where `x` has many rows or no CPU kernel, or a layer has no place for one.
pub(crate) fn packed<'a, const N: usize>(
    x: &Tensor,
    layers: &[LinearWeights<'a>; N],
) -> Option<[PackedPart<'a>; N]> {
    let few = x.dim() == 2 && x.size()[0] <= MOST_PACKED_ROWS && has_cpu_kernel(x);
    if !few || layers.iter().any(|layer| layer.packed.is_none()) {
        return None;
    }
    Some(layers.map(|layer| {
        let copy = layer.packed.expect("checked above");
        (copy.of(layer.weight), layer.bias)
    }))
}

/// Layers over the same input `[.., in]`: `[.., out]` each.
///
/// # Panics
/// On tensors that do not fit.
pub fn linears<const N: usize>(x: &Tensor, layers: [LinearWeights<'_>; N]) -> [Tensor; N] {
    match packed(x, &layers) {
        Some(parts) => packed_linears(x, parts).expect("an input as wide as the weights"),
        None => layers.map(|layer| x.linear(layer.weight, layer.bias)),
    }
}

/// Layers over a norm of `x [T, in]`: `[T, out]` each. The fused kernel saves `x` only and recomputes the norm in the
/// backward pass.
///
/// # Panics
/// On tensors that do not fit.
pub fn normed_linears<'a, const N: usize>(
    x: &Tensor,
    norm: impl Into<AnyNorm<'a>>,
    layers: [LinearWeights<'_>; N],
) -> [Tensor; N] {
    let norm = norm.into();
    if has_cpu_kernel(x) && packed(x, &layers).is_none() {
        let parts = layers.map(|layer| (layer.weight, layer.bias));
        let fused = fused::normed_linears(x, norm, parts);
        return fused.expect("weights as wide as their input");
    }
    linears(&normed(x, norm), layers)
}

/// A layer over [`gated`] of `gate`, `up [T, in]`: `[T, out]`. The fused kernel recomputes the activation in the backward pass instead of
/// saving it.
///
/// # Panics
/// On tensors that do not fit.
pub fn gated_linear(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    layer: LinearWeights<'_>,
) -> Tensor {
    if has_cpu_kernel(gate) && packed(gate, &[layer]).is_none() {
        let fused = fused::gated_linear(gate, up, activation, (layer.weight, layer.bias));
        return fused.expect("a weight as wide as its input");
    }
    let [y] = linears(&gated(gate, up, activation), [layer]);
    y
}

/// A layer over [`activate`] of `x [T, in]`: `[T, out]`. The fused kernel recomputes the activation in the backward pass instead of saving
/// it.
///
/// # Panics
/// On tensors that do not fit.
pub fn activated_linear(x: &Tensor, activation: Activation, layer: LinearWeights<'_>) -> Tensor {
    if has_cpu_kernel(x) && packed(x, &[layer]).is_none() {
        let fused = fused::activated_linear(x, activation, (layer.weight, layer.bias));
        return fused.expect("a weight as wide as its input");
    }
    let [y] = linears(&activate(x, activation), [layer]);
    y
}

/// `x [T, out]` plus a layer over `y [T, in]`. On a GPU the sum is part of the product, which rounds once, where there is no bias.
///
/// # Panics
/// On tensors that do not fit.
pub fn residual_linear(x: &Tensor, y: &Tensor, layer: LinearWeights<'_>) -> Tensor {
    if layer.bias.is_none() && y.dim() == 2 && device::takes(FastPath::ResidualProduct, y) {
        return residual_linear_by_product(x, y, layer.weight);
    }
    let [update] = linears(y, [layer]);
    x + update
}

/// [`residual_linear`] as one operation.
pub(crate) fn residual_linear_by_product(x: &Tensor, y: &Tensor, weight: &Tensor) -> Tensor {
    x.addmm(y, &weight.tr())
}

/// `x` plus [`gated_linear`].
///
/// # Panics
/// On tensors that do not fit.
pub fn residual_gated_linear(
    x: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    layer: LinearWeights<'_>,
) -> Tensor {
    if has_cpu_kernel(gate) {
        return x + gated_linear(gate, up, activation, layer);
    }
    residual_linear(x, &gated(gate, up, activation), layer)
}

/// `x` plus [`activated_linear`] of `y`.
///
/// # Panics
/// On tensors that do not fit.
pub fn residual_activated_linear(
    x: &Tensor,
    y: &Tensor,
    activation: Activation,
    layer: LinearWeights<'_>,
) -> Tensor {
    if has_cpu_kernel(y) {
        return x + activated_linear(y, activation, layer);
    }
    residual_linear(x, &activate(y, activation), layer)
}

/// The weight of a linear layer with 16 outputs interleaved: for few rows of input, which read it once and sequentially.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    pub(crate) packed: Tensor,
    pub(crate) input: i64,
    pub(crate) output: i64,
}

/// A packed weight and its bias `[out]`.
pub(crate) type PackedPart<'a> = (&'a PackedLinear, Option<&'a Tensor>);

impl PackedLinear {
    /// Packs `weight [out, in]`, of a type that [`has_cpu_kernel`] accepts.
    ///
    /// # Errors
    /// Whatever libtorch refuses.
    pub(crate) fn new(weight: &Tensor) -> Result<Self, TorchError> {
        check("packed linear", weight.dim() == 2 && has_cpu_kernel(weight), &[weight])?;
        let [output, input] = dims(weight);
        // SAFETY: a valid `at::Tensor*`, borrowed for the call.
        let packed = call_for_tensor(|packed, error, capacity| unsafe {
            vlm_r1_pack_linear(pointer(weight), packed, error, capacity)
        })?;
        Ok(PackedLinear { packed, input, output })
    }
}

/// `x [rows, in]` by each of `layers` with its `bias [out]`, in one operation without gradient: `[rows, out]` each.
///
/// # Errors
/// An input or a bias of another width or type.
pub(crate) fn packed_linears<const N: usize>(
    x: &Tensor,
    layers: [PackedPart<'_>; N],
) -> Result<[Tensor; N], TorchError> {
    for (layer, bias) in layers {
        let fits = x.dim() == 2
            && x.size()[1] == layer.input
            && has_cpu_kernel(x)
            && x.kind() == layer.packed.kind()
            && bias.is_none_or(|b| {
                b.size() == [layer.output] && b.kind() == x.kind() && b.is_contiguous()
            });
        check("packed linear", fits, &[x, &layer.packed])?;
    }
    let packed = layers.map(|(layer, _)| pointer(&layer.packed));
    let biases = layers.map(|(_, bias)| bias.map_or(std::ptr::null_mut(), pointer));
    let outs = layers.map(|(layer, _)| layer.output);
    let mut y = [std::ptr::null_mut(); N];
    // SAFETY: valid `at::Tensor*` (a bias may be null) of shapes and types that fit, borrowed for the call; all lists hold N.
    call(|error, capacity| unsafe {
        vlm_r1_packed_linears(
            pointer(x),
            N,
            packed.as_ptr(),
            biases.as_ptr(),
            outs.as_ptr(),
            y.as_mut_ptr(),
            error,
            capacity,
        )
    })?;
    // SAFETY: handles made by `new`, owned by nobody else.
    Ok(y.map(|handle| unsafe { Tensor::from_ptr(handle) }))
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
