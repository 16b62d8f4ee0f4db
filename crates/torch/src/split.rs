//! An f32 number as a bf16 and what that lacks in 16 bits: 4 bytes for an exact weight and the rounded one that layers compute with,
//! instead of 6. AdamW over such weights on the CPU is here too.
//!
//! The bf16 is the nearest, of two equally near the one farther from zero; `rest` is how many steps of f32 lie between, at most 2^15.

use std::ffi::{c_char, c_int};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::call::{call, call_for_tensor, pointer};
use crate::{AdamWOptions, TorchError};

unsafe extern "C" {
    fn vlm_r1_split(
        exact: *mut C_tensor,
        value: *mut C_tensor,
        rest: *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_adamw_split(
        tensors: *const *mut C_tensor,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_join(
        value: *mut C_tensor,
        rest: *mut C_tensor,
        exact: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// A weight that was [`split`], with what AdamW needs; all on the CPU and of one shape.
#[derive(Debug)]
pub struct SplitWeight<'a> {
    /// bf16.
    pub value: &'a Tensor,
    /// int16.
    pub rest: &'a Tensor,
    /// f32.
    pub gradient: &'a Tensor,
    /// f32.
    pub exp_avg: &'a Tensor,
    /// f32.
    pub exp_avg_sq: &'a Tensor,
}

/// As [`crate::fused_adamw`] over one weight that is split, on the CPU, in one pass over memory; `step` becomes 1 larger.
///
/// # Errors
/// Tensors that do not fit.
pub fn adamw_split(
    weight: &SplitWeight<'_>,
    step: &Tensor,
    options: AdamWOptions,
) -> Result<(), TorchError> {
    let _ = step.shallow_clone().f_add_scalar_(1.0)?;
    let count = step.f_double_value(&[])?;
    let tensors = [weight.value, weight.rest, weight.gradient, weight.exp_avg, weight.exp_avg_sq];
    if let Some(elsewhere) = tensors.iter().find(|x| x.device() != Device::Cpu) {
        let cause = format!("adamw_split: a tensor on {:?}", elsewhere.device());
        return Err(TorchError::Libtorch(cause));
    }
    let pointers = tensors.map(pointer);
    // SAFETY: five valid `at::Tensor*` on the CPU, borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_adamw_split(
            pointers.as_ptr(),
            count,
            options.lr,
            options.beta1,
            options.beta2,
            options.weight_decay,
            options.eps,
            error,
            capacity,
        )
    })
}

const NAN_BITS: i64 = 0x7fc0_0000;

/// Writes `exact` (f32) into `value` (bf16) and `rest` (int16), all of one shape, on one device and without gaps. A NaN stays a NaN.
///
/// # Errors
/// Tensors that do not fit.
pub fn split(exact: &Tensor, value: &Tensor, rest: &Tensor) -> Result<(), TorchError> {
    if value.device() != Device::Cpu {
        return split_by_operations(exact, value, rest);
    }
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_split(pointer(exact), pointer(value), pointer(rest), error, capacity)
    })
}

/// The f32 numbers that were [`split`] into `value` and `rest`.
///
/// # Errors
/// Tensors that do not fit.
pub fn join(value: &Tensor, rest: &Tensor) -> Result<Tensor, TorchError> {
    if value.device() != Device::Cpu {
        return join_by_operations(value, rest);
    }
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|exact, error, capacity| unsafe {
        vlm_r1_join(pointer(value), pointer(rest), exact, error, capacity)
    })
}

/// `exact` in `kind`, rounded as by [`split`] where that is bf16.
///
/// # Errors
/// Where memory is not to be had.
pub fn round_to(exact: &Tensor, kind: Kind) -> Result<Tensor, TorchError> {
    if kind != Kind::BFloat16 || exact.kind() != Kind::Float {
        return Ok(exact.f_to_kind(kind)?);
    }
    let empty = |kind| Tensor::f_empty(exact.size().as_slice(), (kind, exact.device()));
    let (value, rest) = (empty(kind)?, empty(Kind::Int16)?);
    split(&exact.f_contiguous()?, &value, &rest)?;
    Ok(value)
}

fn split_by_operations(exact: &Tensor, value: &Tensor, rest: &Tensor) -> Result<(), TorchError> {
    let bits = exact.f_view_dtype(Kind::Int)?.f_masked_fill(&exact.f_isnan()?, NAN_BITS)?;
    // Sums wrap and the shift is arithmetic, as with bits without a sign.
    let high = (bits.f_add_scalar(0x8000)?).f_bitwise_right_shift_tensor_scalar(16)?;
    let low = bits.f_sub(&high.f_mul_scalar(1 << 16)?)?;
    let high = high.f_to_kind(Kind::Int16)?.f_view_dtype(Kind::BFloat16)?;
    value.detach().f_copy_(&high)?;
    rest.shallow_clone().f_copy_(&low)?;
    Ok(())
}

fn join_by_operations(value: &Tensor, rest: &Tensor) -> Result<Tensor, TorchError> {
    let high = value.detach().f_view_dtype(Kind::Int16)?;
    let high = high.f_to_kind(Kind::Int)?.f_mul_scalar(1 << 16)?;
    Ok((high.f_add(rest)?).f_view_dtype(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, fill_random, fused_adamw};

    /// Every bf16 with all that may follow it near the borders, ties, zeros, the largest, infinities.
    fn numbers() -> Tensor {
        let low = [0u32, 1, 2, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff];
        let all = (0..=0xffffu32).flat_map(|high| low.map(|low| f32::from_bits(high << 16 | low)));
        Tensor::from_slice(&all.filter(|x| !x.is_nan()).collect::<Vec<f32>>())
    }

    fn places(exact: &Tensor) -> (Tensor, Tensor) {
        let empty = |kind| Tensor::zeros(exact.size(), (kind, Device::Cpu));
        (empty(Kind::BFloat16), empty(Kind::Int16))
    }

    #[test]
    fn what_is_split_is_joined_bit_for_bit_and_lies_nearest() {
        let exact = numbers();
        let (value, rest) = places(&exact);
        split(&exact, &value, &rest).unwrap();
        let bits = |x: &Tensor| x.view_dtype(Kind::Int);
        assert_eq!(bits(&join(&value, &rest).unwrap()), bits(&exact));
        assert_eq!(bits(&join_by_operations(&value, &rest).unwrap()), bits(&exact));
        let (other_value, other_rest) = places(&exact);
        split_by_operations(&exact, &other_value, &other_rest).unwrap();
        assert_eq!(other_value.view_dtype(Kind::Int16), value.view_dtype(Kind::Int16));
        assert_eq!(other_rest, rest);
        // As libtorch rounds, but for ties.
        let ties = bits(&exact).bitwise_and(0xffff).eq(0x8000);
        let same = value.eq_tensor(&exact.to_kind(Kind::BFloat16));
        assert_eq!(same.logical_or(&ties).all().int64_value(&[]), 1);
        assert!(
            value
                .abs()
                .to_kind(Kind::Float)
                .ge_tensor(&exact.abs())
                .logical_or(&ties.logical_not())
                .all()
                .int64_value(&[])
                == 1
        );
    }

    /// Thirty updates by both, from the same weights with the same gradients.
    #[test]
    fn updates_are_those_of_the_fused_kernel() {
        let options =
            AdamWOptions { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        let draw = |key, scale: f64| {
            let x = Tensor::empty([5000], (Kind::Float, Device::Cpu));
            fill_random(&x, key, Distribution::Uniform(-scale, scale)).unwrap();
            x
        };
        let exact = draw(1, 0.1);
        let (value, rest) = places(&exact);
        split(&exact, &value, &rest).unwrap();
        let zeros = || exact.zeros_like();
        let (m, v, own_m, own_v) = (zeros(), zeros(), zeros(), zeros());
        let count = || Tensor::zeros([], (Kind::Float, Device::Cpu));
        let (step, own_step) = (count(), count());
        for update in 0..30 {
            let gradient = draw(2 + update, 0.01);
            let lists = [&exact, &gradient, &m, &v, &step].map(std::slice::from_ref);
            let [p, g, m, v, s] = lists;
            fused_adamw(p, g, m, v, s, options).unwrap();
            let weight = SplitWeight {
                value: &value,
                rest: &rest,
                gradient: &gradient,
                exp_avg: &own_m,
                exp_avg_sq: &own_v,
            };
            adamw_split(&weight, &own_step, options).unwrap();
        }
        let own = join(&value, &rest).unwrap();
        let apart =
            |a: &Tensor, b: &Tensor| ((a - b).abs().max() / b.abs().max()).double_value(&[]);
        assert!(apart(&own, &exact) < 2e-6, "{}", apart(&own, &exact));
        assert!(apart(&own_m, &m) < 1e-6 && apart(&own_v, &v) < 1e-6);
        assert_eq!(own_step.double_value(&[]), 30.0);
        let moved = (&exact - draw(1, 0.1)).abs();
        let moved = moved.mean(Kind::Float).double_value(&[]);
        assert!(moved > 1e-3, "{moved}");
    }

    #[test]
    fn no_number_stays_no_number_and_what_does_not_fit_is_refused() {
        let broken =
            Tensor::from_slice(&[f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff)]);
        let (value, rest) = places(&broken);
        for split in [split, split_by_operations] {
            split(&broken, &value, &rest).unwrap();
            assert_eq!(value.isnan().all().int64_value(&[]), 1);
            assert_eq!(join(&value, &rest).unwrap().isnan().all().int64_value(&[]), 1);
        }
        let (few, _) = places(&Tensor::from_slice(&[1f32]));
        assert!(super::split(&broken, &few, &rest).is_err());
        assert!(super::split(&broken, &value, &rest.to_kind(Kind::Int)).is_err());
        assert!(join(&few, &rest).is_err());
    }
}
