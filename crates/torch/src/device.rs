//! Operations of models in few launches, for GPUs: each by as few of libtorch's operations as there are. They run on any device, and tests
//! compare them on the CPU with the `_reference` forms. Which are in use is said by [`crate::FastPath`].

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call_for_tensor, pointer};
use crate::fast_paths::{FastPath, is_enabled};

unsafe extern "C" {
    fn vlm_r1_rotate_by_operations(
        x: *mut C_tensor,
        cos: *mut C_tensor,
        sin: *mut C_tensor,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Whether `x` takes the form that `path` names.
pub(crate) fn takes(path: FastPath, x: &Tensor) -> bool {
    x.device().is_cuda()
        && matches!(x.kind(), Kind::Float | Kind::BFloat16 | Kind::Half)
        && is_enabled(path)
}

/// [`crate::rms_norm`] as one operation, which rounds once, after the weight.
pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Tensor {
    x.internal_fused_rms_norm(w.size(), Some(w), eps).0
}

/// [`crate::rotate`] in three operations, and as many backward.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rotate_by_operations(pointer(x), pointer(cos), pointer(sin), y, error, capacity)
    })
}

/// `[T, head_dim, head_dim]`: the rotations of [`crate::rotate`] by `cos`, `sin [T, head_dim]` as matrices, so that `x [T, heads, head_dim]`
/// is rotated by one batched product. Each column holds two numbers that are not zero. For few tokens only.
pub fn rotation_matrices(cos: &Tensor, sin: &Tensor) -> Tensor {
    let [tokens, dim] = crate::fused::dims(cos);
    let half = dim / 2;
    let matrices = Tensor::zeros([tokens, dim, dim], (cos.kind(), cos.device()));
    matrices.diagonal(0, 1, 2).copy_(cos);
    matrices.diagonal(-half, 1, 2).copy_(&sin.narrow(1, 0, half).neg());
    matrices.diagonal(half, 1, 2).copy_(&sin.narrow(1, half, half));
    matrices
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
