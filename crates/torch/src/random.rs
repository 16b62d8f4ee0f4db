//! Random numbers from a key, independent of any other generator of the process.

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, pointer};

unsafe extern "C" {
    fn vlm_r1_fill_random(
        tensor: *mut C_tensor,
        key: u64,
        distribution: c_int,
        first: f64,
        second: f64,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// What numbers are sampled from.
#[derive(Clone, Copy, Debug)]
pub enum Distribution {
    /// 1 with this probability, else 0.
    Bernoulli(f64),
    /// Uniform between the two.
    Uniform(f64, f64),
}

/// Fills a tensor; equal keys give equal numbers on one kind of device.
///
/// # Errors
/// Whatever libtorch refuses.
pub fn fill_random(
    tensor: &Tensor,
    key: u64,
    distribution: Distribution,
) -> Result<(), TorchError> {
    let (which, first, second) = match distribution {
        Distribution::Bernoulli(share) => (0, share, 0.0),
        Distribution::Uniform(low, high) => (1, low, high),
    };
    // SAFETY: a valid `at::Tensor*`, borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_fill_random(pointer(tensor), key, which, first, second, error, capacity)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn filled(key: u64, distribution: Distribution) -> Vec<f32> {
        let tensor = Tensor::zeros([10_000], (Kind::Float, crate::device_of_tests()));
        fill_random(&tensor, key, distribution).unwrap();
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn a_key_gives_its_numbers_whatever_else_is_drawn() {
        let share = Distribution::Bernoulli(0.25);
        let first = filled(7, share);
        drop(Tensor::rand([100], (Kind::Float, crate::device_of_tests())));
        assert_eq!(first, filled(7, share));
        assert_ne!(first, filled(8, share));
        let mean = first.iter().sum::<f32>() / first.len() as f32;
        assert!((mean - 0.25).abs() < 0.02, "{mean}");
        let spread = filled(7, Distribution::Uniform(-3.0, 1.0));
        assert!(spread.iter().all(|x| (-3.0..=1.0).contains(x)));
        let mean = spread.iter().sum::<f32>() / spread.len() as f32;
        assert!((mean + 1.0).abs() < 0.1, "{mean}");
    }
}
