//! What tests ask of the stand-in for CUDA (`tools/stand_in`), found in the process by name.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// What a device did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Operations that launch a kernel.
    pub launches: i64,
    /// Times that the host waited for the device.
    pub waits: i64,
    /// Graphs that were captured.
    pub captures: i64,
    /// Graphs that were replayed.
    pub replays: i64,
    /// Copies from the host that waited, because their source was not page-locked.
    pub pageable_uploads: i64,
}

/// The counts of the stand-in in this process; `None` where no stand-in is loaded.
pub fn device_counts() -> Option<DeviceCounts> {
    let symbol = function(c"vlm_r1_stand_in_counts")?;
    // SAFETY: the stand-in declares the function with this type.
    let counts: unsafe extern "C" fn(*mut i64) = unsafe { std::mem::transmute(symbol) };
    let mut numbers = [0i64; 16];
    // SAFETY: room for the four counts and twice the six kinds of copies.
    unsafe { counts(numbers.as_mut_ptr()) };
    let [launches, waits, captures, replays, pageable_uploads, ..] = numbers;
    Some(DeviceCounts { launches, waits, captures, replays, pageable_uploads })
}

/// Allocations on device `index` beyond `bytes` of live tensors fail from now on.
///
/// # Panics
/// Without a stand-in.
pub(crate) fn limit_memory(index: usize, bytes: i64) {
    let symbol = function(c"vlm_r1_stand_in_limit").expect("a stand-in for CUDA");
    // SAFETY: the stand-in declares the function with this type.
    unsafe {
        let limit: unsafe extern "C" fn(c_int, i64) = std::mem::transmute(symbol);
        limit(index as c_int, bytes);
    }
}

fn function(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: no library, which stands for all that are loaded, and a terminated name.
    let symbol = unsafe { dlsym(null_mut(), name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use crate::{begin_copy, device_of_tests, wait_for};

    /// The stand-in is as strict as CUDA, or it would prove nothing.
    #[test]
    fn what_cuda_refuses_is_refused() {
        let device = device_of_tests();
        if super::device_counts().is_none() {
            println!("skipped: `make test-device` has a stand-in");
            return;
        }
        let says = |result: Result<Tensor, tch::TchError>, part: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        };
        let here = Tensor::ones([3, 3], (Kind::Float, device));
        let there = Tensor::ones([3, 3], (Kind::Float, Device::Cpu));
        says(here.f_add(&there), "on the same device");
        says(here.f_matmul(&there), "on the same device");
        says(here.f_add(&here.to_device(Device::Cuda(1))), "on the same device");
        says(here.f_index_select(0, &Tensor::from_slice(&[1i64])), "on the same device");
        // A number of the host is an argument of the kernel.
        assert_eq!(here.f_mul(&Tensor::from(2.0f32)).unwrap().double_value(&[1, 1]), 2.0);
        let whole = here.to_kind(Kind::Int64);
        says(whole.f_matmul(&whole), "not implemented for 'Long'");
        let bins = Tensor::from_slice(&[0f32, 1.0]).to_device(device);
        assert!(here.f_histogram(&bins, None::<Tensor>, false).is_err(), "it has no kernel");
        assert_ne!(here.data_ptr() as usize >> 62, 0, "the host could touch it");
        assert!(Tensor::empty([8], (Kind::Float, device)).isnan().all().int64_value(&[]) == 1);
    }

    #[test]
    fn a_copy_is_there_when_it_was_waited_for() {
        let device = device_of_tests();
        if super::device_counts().is_none() {
            println!("skipped: `make test-device` has a stand-in");
            return;
        }
        let sent = Tensor::from_slice(&[1.0f32, 2.0]).to_device(device);
        let copy = begin_copy(&sent, Device::Cpu).unwrap();
        let read = || Vec::<f32>::try_from(&copy).unwrap();
        assert!(read().iter().all(|number| number.is_nan()), "{:?}", read());
        wait_for(device);
        assert_eq!(read(), [1.0, 2.0]);
    }
}
