//! AdamW over many tensors in one call of libtorch's fused kernel (CPU and CUDA).

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, pointer};
use crate::fast_paths::{FastPath, is_enabled};

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
    let by_the_kernel = is_enabled(FastPath::FusedAdamw)
        || params.first().is_none_or(|param| !param.device().is_cuda());
    let update = if by_the_kernel { adamw_by_the_kernel } else { adamw_by_operations };
    update(params, grads, exp_avgs, exp_avg_sqs, steps, options)
}

/// [`fused_adamw`] by libtorch's operations, one tensor at a time.
pub(crate) fn adamw_by_operations(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    options: AdamWOptions,
) -> Result<(), TorchError> {
    let AdamWOptions { lr, beta1, beta2, eps, weight_decay } = options;
    let grads = grads.iter().zip(exp_avgs).zip(exp_avg_sqs);
    for ((param, step), ((grad, m), v)) in params.iter().zip(steps).zip(grads) {
        let [mut param, mut step, mut m, mut v] = [param, step, m, v].map(Tensor::shallow_clone);
        let _ = step.f_add_scalar_(1.0)?;
        let _ = param.f_mul_scalar_(1.0 - lr * weight_decay)?;
        let _ = m.f_mul_scalar_(beta1)?.f_add_(&(grad * (1.0 - beta1)))?;
        let _ = v.f_mul_scalar_(beta2)?.f_add_(&(grad * grad * (1.0 - beta2)))?;
        let bias = |beta: f64| -> Tensor { 1.0 - (&step * beta.ln()).exp() };
        let root = v.f_sqrt()? / bias(beta2).f_sqrt()? + eps;
        let _ = param.f_sub_(&(m.f_div(&(root * bias(beta1)))? * lr))?;
    }
    Ok(())
}

/// [`fused_adamw`] in one call of libtorch's kernel.
pub(crate) fn adamw_by_the_kernel(
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
    fn operations_equal_the_kernel() {
        let options =
            AdamWOptions { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };
        let device = crate::device_of_tests();
        let on = |list: &[f32]| Tensor::from_slice(list).to_device(device);
        let grads = [on(&[0.5, 0.25, 0.0, -3.0])];
        let state = || {
            let p = [on(&[1.0, -2.0, 3.0, 0.5])];
            let [m, v] = [p[0].zeros_like(), p[0].zeros_like()];
            (p, [m], [v], [Tensor::zeros([], (Kind::Float, device))])
        };
        let (by_kernel, by_operations) = (state(), state());
        for _ in 0..3 {
            let (p, m, v, s) = &by_kernel;
            adamw_by_the_kernel(p, &grads, m, v, s, options).unwrap();
            let (p, m, v, s) = &by_operations;
            adamw_by_operations(p, &grads, m, v, s, options).unwrap();
        }
        let close = |a: &Tensor, b: &Tensor| a.allclose(b, 1e-6, 1e-7, false);
        assert!(close(&by_kernel.0[0], &by_operations.0[0]));
        assert!(close(&by_kernel.1[0], &by_operations.1[0]));
        assert!(close(&by_kernel.2[0], &by_operations.2[0]));
        assert!(close(&by_kernel.3[0], &by_operations.3[0]));
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
