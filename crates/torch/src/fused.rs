//! Fused CPU operations of models with their gradients (`cpu/`), each one pass over memory. The same from libtorch's operations takes four
//! to ten passes and saves the intermediate results for the backward pass.
//!
//! They take f32 and bf16 on the CPU, see [`has_cpu_kernel`]. `operations` takes libtorch's for everything else.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::activations::Activation;
use crate::call::{call, call_for_tensor, pointer};
use crate::norms::{AnyNorm, LayerNorm, Norm};
use crate::operations::Pairing;

unsafe extern "C" {
    fn vlm_r1_rms_norm(
        x: *mut C_tensor,
        w: *mut C_tensor,
        eps: f64,
        offset: f64,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_activate(
        x: *mut C_tensor,
        activation: c_int,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_gated(
        gate: *mut C_tensor,
        up: *mut C_tensor,
        activation: c_int,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_normed_linears(
        x: *mut C_tensor,
        w: *mut C_tensor,
        b: *mut C_tensor,
        eps: f64,
        offset: f64,
        is_layer_norm: c_int,
        n: usize,
        layers: *const *mut C_tensor,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_gated_linear(
        gate: *mut C_tensor,
        up: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        activation: c_int,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_activated_linear(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        activation: c_int,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_rotate(
        x: *mut C_tensor,
        cos: *mut C_tensor,
        sin: *mut C_tensor,
        adjacent: c_int,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_token_scores(
        logits: *mut C_tensor,
        targets: *mut C_tensor,
        scale: f64,
        logprobs: *mut *mut C_tensor,
        entropies: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Whether this crate's CPU kernels take `x`: f32 or bf16 on the CPU.
pub(crate) fn has_cpu_kernel(x: &Tensor) -> bool {
    x.device() == tch::Device::Cpu && matches!(x.kind(), Kind::Float | Kind::BFloat16)
}

/// [`crate::rms_norm`].
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn rms_norm(x: &Tensor, norm: Norm<'_>) -> Result<Tensor, TorchError> {
    let w = norm.weight;
    let fits = x.kind() == w.kind() && w.dim() == 1 && x.size().last() == w.size().last();
    check("rms_norm", fits, &[x, w])?;
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rms_norm(pointer(x), pointer(w), norm.eps, norm.offset, y, error, capacity)
    })
}

/// [`crate::activate`].
///
/// # Errors
/// Another type.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
    // SAFETY: a valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_activate(pointer(x), activation as c_int, y, error, capacity)
    })
}

/// [`crate::gated`].
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn gated(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
) -> Result<Tensor, TorchError> {
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_gated(pointer(gate), pointer(up), activation as c_int, y, error, capacity)
    })
}

/// Linear layers, each a weight `[out, in]` and a bias `[out]`, over a norm of `x [T, in]`: `[T, out]` each. Saves `x`
/// instead of the normed `x`, which the backward pass recomputes.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn normed_linears<const N: usize>(
    x: &Tensor,
    norm: AnyNorm<'_>,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<[Tensor; N], TorchError> {
    let (w, b, eps, offset) = match norm {
        AnyNorm::Rms(Norm { weight, eps, offset }) => (weight, None, eps, offset),
        AnyNorm::Layer(LayerNorm { weight, bias, eps }) => (weight, bias, eps, 0.0),
    };
    let is_layer_norm = c_int::from(matches!(norm, AnyNorm::Layer(_)));
    let fits = x.dim() == 2
        && [Some(w), b]
            .into_iter()
            .flatten()
            .all(|w| x.kind() == w.kind() && x.size()[1..] == w.size());
    check("normed_linears", fits && has_cpu_kernel(x), &[x, w])?;
    let mut pointers = layers.map(|(weight, _)| pointer(weight)).to_vec();
    pointers.extend(layers.map(|(_, bias)| bias.map_or(std::ptr::null_mut(), pointer)));
    let mut y = [std::ptr::null_mut(); N];
    // SAFETY: valid `at::Tensor*` (a bias may be null), borrowed for the call; `layers` holds 2 N, `y` N.
    call(|error, capacity| unsafe {
        vlm_r1_normed_linears(
            pointer(x),
            pointer(w),
            b.map_or(std::ptr::null_mut(), pointer),
            eps,
            offset,
            is_layer_norm,
            N,
            pointers.as_ptr(),
            y.as_mut_ptr(),
            error,
            capacity,
        )
    })?;
    // SAFETY: handles made by `new`, owned by nobody else.
    Ok(y.map(|handle| unsafe { Tensor::from_ptr(handle) }))
}

/// A linear layer of `weight [out, in]` and `bias [out]` over [`gated`] of `gate`, `up [T, in]`: `[T, out]`. The backward
/// pass recomputes the activation instead of saving it.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn gated_linear(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    (weight, bias): (&Tensor, Option<&Tensor>),
) -> Result<Tensor, TorchError> {
    check("gated_linear", gate.dim() == 2 && has_cpu_kernel(gate), &[gate, up])?;
    let bias = bias.map_or(std::ptr::null_mut(), pointer);
    // SAFETY: valid `at::Tensor*` (the bias may be null), borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        let [gate, up, weight] = [gate, up, weight].map(pointer);
        vlm_r1_gated_linear(gate, up, weight, bias, activation as c_int, y, error, capacity)
    })
}

/// A linear layer of `weight [out, in]` and `bias [out]` over [`activate`] of `x [T, in]`: `[T, out]`. The backward pass recomputes the
/// activation instead of saving it.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn activated_linear(
    x: &Tensor,
    activation: Activation,
    (weight, bias): (&Tensor, Option<&Tensor>),
) -> Result<Tensor, TorchError> {
    check("activated_linear", x.dim() == 2 && has_cpu_kernel(x), &[x, weight])?;
    let bias = bias.map_or(std::ptr::null_mut(), pointer);
    // SAFETY: valid `at::Tensor*` (the bias may be null), borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        let [x, weight] = [x, weight].map(pointer);
        vlm_r1_activated_linear(x, weight, bias, activation as c_int, y, error, capacity)
    })
}

/// [`crate::rotate`], by tables in the type of `x` or in f32.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn rotate(
    x: &Tensor,
    [cos, sin]: [&Tensor; 2],
    pairing: Pairing,
) -> Result<Tensor, TorchError> {
    let adjacent = c_int::from(pairing == Pairing::Adjacent);
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rotate(pointer(x), pointer(cos), pointer(sin), adjacent, y, error, capacity)
    })
}

/// Log-softmax of `logits [N, vocab_size]` times `scale` at `targets [N]`, and entropies without gradient; both `[N]` in f32. Of the
/// logits' size only the logits themselves are saved.
///
/// # Errors
/// Tensors that do not fit, a target outside the vocabulary.
pub(crate) fn token_scores(
    logits: &Tensor,
    targets: &Tensor,
    scale: f64,
) -> Result<[Tensor; 2], TorchError> {
    let mut outputs = [std::ptr::null_mut(); 2];
    let [logprobs, entropies] = &mut outputs;
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_token_scores(
            pointer(logits),
            pointer(targets),
            scale,
            logprobs,
            entropies,
            error,
            capacity,
        )
    })?;
    // SAFETY: handles made by `new`, owned by nobody else.
    Ok(outputs.map(|handle| unsafe { Tensor::from_ptr(handle) }))
}

pub(crate) fn dims<const N: usize>(x: &Tensor) -> [i64; N] {
    let size = x.size();
    std::array::from_fn(|i| size.get(i).copied().unwrap_or(0))
}

pub(crate) fn check(what: &str, fits: bool, tensors: &[&Tensor]) -> Result<(), TorchError> {
    if fits {
        return Ok(());
    }
    let shapes: Vec<String> =
        tensors.iter().map(|x| format!("{} {:?}", crate::kind_name(x.kind()), x.size())).collect();
    Err(TorchError::Libtorch(format!("{what}: tensors that do not fit: {}", shapes.join(", "))))
}

#[cfg(test)]
#[path = "fused_tests.rs"]
pub(crate) mod tests;
