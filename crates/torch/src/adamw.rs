//! AdamW over many tensors in one call of libtorch's fused kernel (CPU and CUDA).

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, pointer};

/// Settings of one step. The layout is that of `adamw_options.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamWOptions {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

unsafe extern "C" {
    fn vlm_r1_fused_adamw(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        exp_avgs: *const *mut C_tensor,
        exp_avg_sqs: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        n: usize,
        options: *const AdamWOptions,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Updates `params`, `exp_avgs` and `exp_avg_sqs` in place and adds 1 to each of `steps`.
///
/// # Shapes
/// The four first lists hold tensors of equal shape and type at equal index; `steps` are f32 scalars.
///
/// # Errors
/// Whatever libtorch refuses: mixed types, devices or shapes.
///
/// # Panics
/// When the lists differ in length.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    options: AdamWOptions,
) -> Result<(), TorchError> {
    let n = params.len();
    assert!([grads, exp_avgs, exp_avg_sqs, steps].iter().all(|list| list.len() == n));
    if n == 0 {
        return Ok(());
    }
    // The kernel corrects for bias with the number of the step it takes, from 1.
    for step in steps {
        let _ = step.shallow_clone().f_add_scalar_(1.0)?;
    }
    let pointers = |list: &[Tensor]| -> Vec<*mut C_tensor> { list.iter().map(pointer).collect() };
    let (p, g, m, v, s) = (
        pointers(params),
        pointers(grads),
        pointers(exp_avgs),
        pointers(exp_avg_sqs),
        pointers(steps),
    );
    // SAFETY: the lists hold n valid `at::Tensor*` each; they and the options are borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_fused_adamw(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            n,
            &options,
            error,
            capacity,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn one_step_by_hand() {
        let options =
            AdamWOptions { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };
        let p = [Tensor::from_slice(&[1.0f32, -2.0])];
        let g = [Tensor::from_slice(&[0.5f32, 0.25])];
        let m = [p[0].zeros_like()];
        let v = [p[0].zeros_like()];
        let s = [Tensor::zeros([], (Kind::Float, crate::device_of_tests()))];
        fused_adamw(&p, &g, &m, &v, &s, options).unwrap();
        // After bias correction the first step moves by lr * sign(grad); decay takes lr * 0.5 * p.
        let got = Vec::<f32>::try_from(&p[0]).unwrap();
        assert!((got[0] - (1.0 - 0.05 - 0.1)).abs() < 1e-6, "{got:?}");
        assert!((got[1] - (-2.0 + 0.1 - 0.1)).abs() < 1e-6, "{got:?}");
        assert_eq!(f32::try_from(&s[0]).unwrap(), 1.0);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let options =
            AdamWOptions { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        let p = [Tensor::zeros([2], (Kind::Float, crate::device_of_tests()))];
        let g = [Tensor::zeros([2], (Kind::BFloat16, crate::device_of_tests()))];
        let s = [Tensor::zeros([], (Kind::Float, crate::device_of_tests()))];
        let (m, v) = ([p[0].zeros_like()], [p[0].zeros_like()]);
        assert!(fused_adamw(&p, &g, &m, &v, &s, options).is_err());
    }
}
