//! Fused CPU operations of models with their gradients (`cpu/`), each one pass over memory. The same from libtorch's operations takes four
//! to ten passes and saves the intermediate results for the backward pass.
//!
//! They take f32 and bf16 on the CPU, see [`has_cpu_kernel`]. `operations` takes libtorch's for everything else.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, call_for_tensor, pointer};

unsafe extern "C" {
    fn vlm_r1_rms_norm(
        x: *mut C_tensor,
        w: *mut C_tensor,
        eps: f64,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_swiglu(
        gate: *mut C_tensor,
        up: *mut C_tensor,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_normed_linears(
        x: *mut C_tensor,
        w: *mut C_tensor,
        eps: f64,
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
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_rotate(
        x: *mut C_tensor,
        cos: *mut C_tensor,
        sin: *mut C_tensor,
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

/// `w * x / sqrt(mean(x^2) + eps)` over the last dimension; `w [n]` in the type of `x [.., n]`.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    check("rms_norm", x.kind() == w.kind() && x.size().last() == w.size().last(), &[x, w])?;
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rms_norm(pointer(x), pointer(w), eps, y, error, capacity)
    })
}

/// `silu(gate) * up`, two tensors of one shape and type.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_swiglu(pointer(gate), pointer(up), y, error, capacity)
    })
}

/// Linear layers, each a weight `[out, in]` and a bias `[out]`, over [`rms_norm`] of `x [T, in]`: `[T, out]` each. Saves `x`
/// instead of the normed `x`, which the backward pass recomputes.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn normed_linears<const N: usize>(
    x: &Tensor,
    (w, eps): (&Tensor, f64),
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<[Tensor; N], TorchError> {
    let fits = x.dim() == 2 && x.kind() == w.kind() && x.size()[1..] == w.size();
    check("normed_linears", fits && has_cpu_kernel(x), &[x, w])?;
    let mut pointers = layers.map(|(weight, _)| pointer(weight)).to_vec();
    pointers.extend(layers.map(|(_, bias)| bias.map_or(std::ptr::null_mut(), pointer)));
    let mut y = [std::ptr::null_mut(); N];
    // SAFETY: valid `at::Tensor*` (a bias may be null), borrowed for the call; `layers` holds 2 N, `y` N.
    call(|error, capacity| unsafe {
        vlm_r1_normed_linears(
            pointer(x),
            pointer(w),
            eps,
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

/// A linear layer of `weight [out, in]` and `bias [out]` over [`swiglu`] of `gate`, `up [T, in]`: `[T, out]`. The backward
/// pass recomputes the activation instead of saving it.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn gated_linear(
    gate: &Tensor,
    up: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
) -> Result<Tensor, TorchError> {
    check("gated_linear", gate.dim() == 2 && has_cpu_kernel(gate), &[gate, up])?;
    let bias = bias.map_or(std::ptr::null_mut(), pointer);
    // SAFETY: valid `at::Tensor*` (the bias may be null), borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_gated_linear(pointer(gate), pointer(up), pointer(weight), bias, y, error, capacity)
    })
}

/// Rotary embedding of `x [T, heads, head_dim]`, rotating the two halves of each head's channels, by `cos`, `sin [T, head_dim]`, whose
/// second half equals the first, in the type of `x` or in f32.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rotate(pointer(x), pointer(cos), pointer(sin), y, error, capacity)
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
