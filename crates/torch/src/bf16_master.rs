//! An f32 master weight stored as its bf16 value plus a 16-bit residual: 4 bytes for the master and the value that layers compute
//! with, instead of 6. AdamW over such weights on the CPU is here too.
//!
//! The value is the nearest bf16, of two equally near the one farther from zero. The residual counts the steps of f32 between the
//! two, at most 2^15.

use std::ffi::{c_char, c_int};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::call::{call, call_for_tensor, pointer};
use crate::{AdamWOptions, TorchError};

unsafe extern "C" {
    fn vlm_r1_bf16_master_store(
        weight: *mut C_tensor,
        value: *mut C_tensor,
        residual: *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_bf16_master_load(
        value: *mut C_tensor,
        residual: *mut C_tensor,
        weight: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_bf16_master_adamw(
        tensors: *const *mut C_tensor,
        step: f64,
        options: *const AdamWOptions,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// An f32 weight as two tensors of one shape, on one device and without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Bf16Master<'a> {
    /// bf16: what layers compute with.
    pub value: &'a Tensor,
    /// int16: the f32 weight's bits minus those of the value.
    pub residual: &'a Tensor,
}

const NAN_BITS: i64 = 0x7fc0_0000;

impl Bf16Master<'_> {
    /// Writes `weight` (f32) into value and residual. A NaN stays a NaN.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn store(&self, weight: &Tensor) -> Result<(), TorchError> {
        let Bf16Master { value, residual } = *self;
        if value.device() != Device::Cpu {
            return self.store_by_libtorch(weight);
        }
        // SAFETY: valid `at::Tensor*`, borrowed for the call.
        call(|error, capacity| unsafe {
            vlm_r1_bf16_master_store(
                pointer(weight),
                pointer(value),
                pointer(residual),
                error,
                capacity,
            )
        })
    }

    /// The f32 weight that was stored, bit for bit.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn load(&self) -> Result<Tensor, TorchError> {
        let Bf16Master { value, residual } = *self;
        if value.device() != Device::Cpu {
            return self.load_by_libtorch();
        }
        // SAFETY: valid `at::Tensor*`, borrowed for the call.
        call_for_tensor(|weight, error, capacity| unsafe {
            vlm_r1_bf16_master_load(pointer(value), pointer(residual), weight, error, capacity)
        })
    }

    /// As [`crate::fused_adamw`] over this weight, on the CPU, in one pass over memory; `step` becomes 1 larger.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn adamw(
        &self,
        gradient: &Tensor,
        [exp_avg, exp_avg_sq]: [&Tensor; 2],
        step: &Tensor,
        options: AdamWOptions,
    ) -> Result<(), TorchError> {
        let _ = step.shallow_clone().f_add_scalar_(1.0)?;
        let count = step.f_double_value(&[])?;
        let tensors = [self.value, self.residual, gradient, exp_avg, exp_avg_sq];
        if let Some(elsewhere) = tensors.iter().find(|x| x.device() != Device::Cpu) {
            let cause = format!("AdamW of a bf16 master: a tensor on {:?}", elsewhere.device());
            return Err(TorchError::Libtorch(cause));
        }
        let pointers = tensors.map(pointer);
        // SAFETY: five valid `at::Tensor*` on the CPU and the options, borrowed for the call.
        call(|error, capacity| unsafe {
            vlm_r1_bf16_master_adamw(pointers.as_ptr(), count, &options, error, capacity)
        })
    }

    fn store_by_libtorch(&self, weight: &Tensor) -> Result<(), TorchError> {
        let bits = weight.f_view_dtype(Kind::Int)?.f_masked_fill(&weight.f_isnan()?, NAN_BITS)?;
        // Sums wrap and the shift is arithmetic, as with bits without a sign.
        let high = (bits.f_add_scalar(0x8000)?).f_bitwise_right_shift_tensor_scalar(16)?;
        let low = bits.f_sub(&high.f_mul_scalar(1 << 16)?)?;
        let high = high.f_to_kind(Kind::Int16)?.f_view_dtype(Kind::BFloat16)?;
        self.value.detach().f_copy_(&high)?;
        self.residual.shallow_clone().f_copy_(&low)?;
        Ok(())
    }

    fn load_by_libtorch(&self) -> Result<Tensor, TorchError> {
        let high = self.value.detach().f_view_dtype(Kind::Int16)?;
        let high = high.f_to_kind(Kind::Int)?.f_mul_scalar(1 << 16)?;
        Ok((high.f_add(self.residual)?).f_view_dtype(Kind::Float)?)
    }
}

/// `weight` in `kind`, rounded as by [`Bf16Master::store`] where that is bf16.
///
/// # Errors
/// Out of memory.
pub fn round_to(weight: &Tensor, kind: Kind) -> Result<Tensor, TorchError> {
    if kind != Kind::BFloat16 || weight.kind() != Kind::Float {
        return Ok(weight.f_to_kind(kind)?);
    }
    let empty = |kind| Tensor::f_empty(weight.size().as_slice(), (kind, weight.device()));
    let (value, residual) = (empty(kind)?, empty(Kind::Int16)?);
    Bf16Master { value: &value, residual: &residual }.store(&weight.f_contiguous()?)?;
    Ok(value)
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

    fn empty_master(exact: &Tensor) -> (Tensor, Tensor) {
        let empty = |kind| Tensor::zeros(exact.size(), (kind, Device::Cpu));
        (empty(Kind::BFloat16), empty(Kind::Int16))
    }

    #[test]
    fn a_stored_weight_loads_bit_for_bit_and_its_value_is_nearest() {
        let exact = numbers();
        let (value, residual) = empty_master(&exact);
        let master = Bf16Master { value: &value, residual: &residual };
        master.store(&exact).unwrap();
        let bits = |x: &Tensor| x.view_dtype(Kind::Int);
        assert_eq!(bits(&master.load().unwrap()), bits(&exact));
        assert_eq!(bits(&master.load_by_libtorch().unwrap()), bits(&exact));
        let (other_value, other_residual) = empty_master(&exact);
        let other = Bf16Master { value: &other_value, residual: &other_residual };
        other.store_by_libtorch(&exact).unwrap();
        assert_eq!(other_value.view_dtype(Kind::Int16), value.view_dtype(Kind::Int16));
        assert_eq!(other_residual, residual);
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
        let (value, residual) = empty_master(&exact);
        let master = Bf16Master { value: &value, residual: &residual };
        master.store(&exact).unwrap();
        let zeros = || exact.zeros_like();
        let (m, v, own_m, own_v) = (zeros(), zeros(), zeros(), zeros());
        let count = || Tensor::zeros([], (Kind::Float, Device::Cpu));
        let (step, own_step) = (count(), count());
        for update in 0..30 {
            let gradient = draw(2 + update, 0.01);
            let lists = [&exact, &gradient, &m, &v, &step].map(std::slice::from_ref);
            let [p, g, m, v, s] = lists;
            fused_adamw(p, g, m, v, s, options).unwrap();
            master.adamw(&gradient, [&own_m, &own_v], &own_step, options).unwrap();
        }
        let own = master.load().unwrap();
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
    fn a_nan_stays_a_nan_and_what_does_not_fit_is_refused() {
        let broken =
            Tensor::from_slice(&[f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff)]);
        let (value, residual) = empty_master(&broken);
        let master = Bf16Master { value: &value, residual: &residual };
        for store in [Bf16Master::store, Bf16Master::store_by_libtorch] {
            store(&master, &broken).unwrap();
            assert_eq!(value.isnan().all().int64_value(&[]), 1);
            assert_eq!(master.load().unwrap().isnan().all().int64_value(&[]), 1);
        }
        let (short, _) = empty_master(&Tensor::from_slice(&[1f32]));
        let short = Bf16Master { value: &short, residual: &residual };
        assert!(short.store(&broken).is_err());
        assert!(short.load().is_err());
        let wide = residual.to_kind(Kind::Int);
        assert!(Bf16Master { value: &value, residual: &wide }.store(&broken).is_err());
    }
}
