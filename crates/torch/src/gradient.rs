//! Gradients that leave their leaf: what `tch` cannot do is set a gradient back to "none".

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, pointer};

unsafe extern "C" {
    fn vlm_r1_take_grad(
        leaf: *mut C_tensor,
        gradient: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Moves the gradient out of `leaf`, which then has none, as after PyTorch's
/// `zero_grad(set_to_none=True)`; `None` where it had none. Nothing is copied.
///
/// # Errors
/// Whatever libtorch refuses, for instance a tensor that is not a leaf.
pub fn take_grad(leaf: &Tensor) -> Result<Option<Tensor>, TorchError> {
    let mut gradient = std::ptr::null_mut();
    // SAFETY: `leaf` is a valid `at::Tensor*`, borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_take_grad(pointer(leaf), &mut gradient, error, capacity)
    })?;
    // SAFETY: a handle made by `new`, owned by nobody else; `Tensor` deletes it.
    Ok((!gradient.is_null()).then(|| unsafe { Tensor::from_ptr(gradient) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_gradient_leaves_and_the_next_one_starts_from_nothing() {
        let leaf = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        assert!(take_grad(&leaf).unwrap().is_none());
        for _ in 0..2 {
            (&leaf * 3.0).sum(Kind::Float).backward();
            let gradient = take_grad(&leaf).unwrap().unwrap();
            assert_eq!(Vec::<f32>::try_from(&gradient).unwrap(), [3.0, 3.0]);
            assert!(!gradient.requires_grad());
            assert!(!leaf.grad().defined());
        }
        let plain = Tensor::zeros([2], (Kind::Float, crate::device_of_tests()));
        assert!(take_grad(&plain).unwrap().is_none());
    }
}
