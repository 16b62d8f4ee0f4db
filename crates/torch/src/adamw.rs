//! AdamW over many tensors in one call of libtorch's fused kernel (CPU and CUDA).

use std::ffi::{c_char, c_int};

use tch::{Tensor, no_grad};
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
    let n = params.len();
    assert!([grads, exp_avgs, exp_avg_sqs, steps].iter().all(|list| list.len() == n));
    if n == 0 {
        return Ok(());
    }
    // The kernel corrects for bias with the number of the step it takes, from 1.
    for step in steps {
        let _ = step.shallow_clone().f_add_scalar_(1.0)?;
    }
    if params[0].device().is_cuda() && !is_enabled(FastPath::FusedAdamw) {
        for i in 0..n {
            let [p, g, m, v] = [params, grads, exp_avgs, exp_avg_sqs].map(|list| &list[i]);
            adamw_reference([p, g, m, v], &steps[i], options)?;
        }
        return Ok(());
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

/// [`fused_adamw`] of one tensor by libtorch's operations; `step` is the number of this step.
pub(crate) fn adamw_reference(
    [param, grad, exp_avg, exp_avg_sq]: [&Tensor; 4],
    step: &Tensor,
    options: AdamWOptions,
) -> Result<(), TorchError> {
    let AdamWOptions { lr, beta1, beta2, eps, weight_decay } = options;
    no_grad(|| {
        // 1 - beta^step, on the device.
        let correction = |beta: f64| step.f_mul_scalar(beta.ln())?.f_expm1()?.f_neg();
        let [mut param, mut mean, mut square] =
            [param, exp_avg, exp_avg_sq].map(Tensor::shallow_clone);
        let _ = param.f_mul_scalar_(1.0 - lr * weight_decay)?;
        let _ = mean.f_lerp_(grad, 1.0 - beta1)?;
        let _ = square.f_mul_scalar_(beta2)?.f_add_(&(grad.f_square()? * (1.0 - beta2)))?;
        let root = square.f_div(&correction(beta2)?)?.f_sqrt()?.f_add_scalar(eps)?;
        let _ = param.f_sub_(&(mean.f_div(&correction(beta1)?)?.f_div(&root)? * lr))?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::tests::{distance, draw};
    use tch::Kind;

    #[test]
    fn one_step_by_hand() {
        let options =
            AdamWOptions { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };
        let on = |list: &[f32]| Tensor::from_slice(list).to_device(crate::device_of_tests());
        let p = [on(&[1.0, -2.0])];
        let g = [on(&[0.5, 0.25])];
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
    fn the_reference_takes_the_same_steps() {
        let options =
            AdamWOptions { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };
        let state = || {
            let p = draw(&[40], Kind::Float, 1).to_device(crate::device_of_tests());
            let zeros = || p.zeros_like();
            [
                [p.shallow_clone()],
                [zeros()],
                [zeros()],
                [Tensor::zeros([], (Kind::Float, crate::device_of_tests()))],
            ]
        };
        let (fused, plain) = (state(), state());
        for key in 0..5 {
            let g = [draw(&[40], Kind::Float, 10 + key).to_device(crate::device_of_tests())];
            let [p, m, v, s] = &fused;
            fused_adamw(p, &g, m, v, s, options).unwrap();
            let [p, m, v, s] = &plain;
            let _ = s[0].shallow_clone().f_add_scalar_(1.0).unwrap();
            adamw_reference([&p[0], &g[0], &m[0], &v[0]], &s[0], options).unwrap();
        }
        for (fused, plain) in fused.iter().zip(&plain) {
            assert!(distance(&plain[0], &fused[0]) < 1e-6, "{plain:?} {fused:?}");
        }
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
