//! Operations of models in few launches, for GPUs: each by as few of libtorch's operations as there are. They run on any device, and tests
//! compare them on the CPU with the `_reference` forms. Which are in use is said by [`crate::FastPath`].

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call_for_tensor, pointer};
use crate::fast_paths::{FastPath, is_enabled};
use crate::norms::Norm;
use crate::operations::Pairing;

unsafe extern "C" {
    fn vlm_r1_rotate_by_operations(
        x: *mut C_tensor,
        cos: *mut C_tensor,
        sin: *mut C_tensor,
        adjacent: c_int,
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

/// [`crate::rms_norm`] as one operation, which rounds once, after the weight. With an offset it is computed in f32.
pub(crate) fn rms_norm(x: &Tensor, Norm { weight, eps, offset }: Norm<'_>) -> Tensor {
    let fused = |x: &Tensor, w: &Tensor| x.internal_fused_rms_norm(w.size(), Some(w), eps).0;
    match offset == 0.0 {
        true => fused(x, weight),
        false => {
            let w = weight.to_kind(Kind::Float) + offset;
            fused(&x.to_kind(Kind::Float), &w).to_kind(x.kind())
        }
    }
}

/// [`crate::rotate`] in three operations, and as many backward.
///
/// # Errors
/// Tensors that do not fit.
pub(crate) fn rotate(
    x: &Tensor,
    tables: [&Tensor; 2],
    pairing: Pairing,
) -> Result<Tensor, TorchError> {
    let ([cos, sin], adjacent) = (tables.map(pointer), c_int::from(pairing == Pairing::Adjacent));
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rotate_by_operations(pointer(x), cos, sin, adjacent, y, error, capacity)
    })
}

/// `[T, head_dim, head_dim]`: the rotations of [`crate::rotate`] by `cos`, `sin [T, width]` as matrices, so that `x [T, heads, head_dim]` is
/// rotated by one batched product. Each column holds two numbers that are not zero, or a one. For few tokens only.
pub fn rotation_matrices([cos, sin]: [&Tensor; 2], head_dim: i64, pairing: Pairing) -> Tensor {
    let [tokens, width] = crate::fused::dims(cos);
    let half = width / 2;
    let matrices = Tensor::zeros([tokens, head_dim, head_dim], (cos.kind(), cos.device()));
    if width < head_dim {
        let _ = matrices.diagonal(0, 1, 2).narrow(1, width, head_dim - width).fill_(1.0);
    }
    let turned = matrices.narrow(1, 0, width).narrow(2, 0, width);
    // [T, 2, half, 2, half]: from a channel of a pair to one.
    let pairs = match pairing {
        Pairing::Halves => turned.unflatten(2, [2, half]).unflatten(1, [2, half]),
        Pairing::Adjacent => {
            turned.unflatten(2, [half, 2]).unflatten(1, [half, 2]).permute([0, 2, 1, 4, 3])
        }
    };
    let (cos, sin) = (cos.narrow(1, 0, half), sin.narrow(1, 0, half));
    for (from, to, numbers) in [(0, 0, &cos), (1, 1, &cos), (1, 0, &sin.neg()), (0, 1, &sin)] {
        pairs.select(1, from).select(2, to).diagonal(0, 1, 2).copy_(numbers);
    }
    matrices
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
