//! Copies between a device and host memory.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use tch::kind::Element;
use tch::{Cuda, Device, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, call_for_tensor, pointer};
use crate::fast_paths::{FastPath, is_enabled};

unsafe extern "C" {
    fn vlm_r1_pin_memory(
        tensor: *mut C_tensor,
        pinned: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_is_pinned(
        tensor: *mut C_tensor,
        is_pinned: *mut c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_event_record(
        device: c_int,
        event: *mut *mut c_void,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_event_wait(event: *mut c_void, error: *mut c_char, capacity: usize) -> c_int;
    fn vlm_r1_event_delete(event: *mut c_void);
}

/// A copy in host memory, pinned where `device` is a GPU, so that copies of it to the GPU are asynchronous.
///
/// # Errors
/// Out of memory.
pub fn host_copy(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    let copy = tensor.f_to_device_(Device::Cpu, tensor.kind(), false, true)?;
    if device.is_cuda() && is_enabled(FastPath::PinnedCopies) { pinned(&copy) } else { Ok(copy) }
}

/// A copy of host memory in page-locked memory, or the tensor itself where it lies there.
pub(crate) fn pinned(tensor: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: a valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|pinned, error, capacity| unsafe {
        vlm_r1_pin_memory(pointer(tensor), pinned, error, capacity)
    })
}

/// Whether `tensor` lies in page-locked memory of the host.
///
/// # Errors
/// Whatever libtorch refuses.
pub fn is_pinned(tensor: &Tensor) -> Result<bool, TorchError> {
    let mut is_pinned = 0;
    // SAFETY: a valid `at::Tensor*`, borrowed for the call, and a place for the answer.
    call(|error, capacity| unsafe {
        vlm_r1_is_pinned(pointer(tensor), &mut is_pinned, error, capacity)
    })?;
    Ok(is_pinned != 0)
}

/// Numbers of the host on `device`, without waiting for it: to a GPU they go through page-locked memory, which libtorch keeps until the copy
/// is done.
///
/// # Panics
/// Out of memory.
pub fn upload<T: Element>(numbers: &[T], device: Device) -> Tensor {
    let tensor = Tensor::from_slice(numbers);
    if !device.is_cuda() || !is_enabled(FastPath::PinnedCopies) {
        return tensor.to_device(device);
    }
    pinned(&tensor)
        .and_then(|pinned| begin_copy(&pinned, device))
        .expect("page-locked memory for a few numbers")
}

/// A copy to `to`, asynchronous unless [`FastPath::PinnedCopies`] is off. Work on `to` is ordered after it; the host must [`wait_for`] the
/// device before it reads.
///
/// # Errors
/// Out of memory.
pub fn begin_copy(tensor: &Tensor, to: Device) -> Result<Tensor, TorchError> {
    Ok(tensor.f_to_device_(to, tensor.kind(), is_enabled(FastPath::PinnedCopies), true)?)
}

/// Waits until `device` has done all its work, copies included.
pub fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// An asynchronous copy to the host. The device may get more work meanwhile.
#[derive(Debug)]
pub struct PendingHostCopy {
    copy: Tensor,
    /// Recorded after the copy; null where there is nothing to wait for.
    event: *mut c_void,
}

impl PendingHostCopy {
    /// Begins to copy what `tensor` holds once the work queued so far is done.
    ///
    /// # Errors
    /// Out of memory; the device's own.
    pub fn begin(tensor: &Tensor) -> Result<Self, TorchError> {
        let copy = begin_copy(tensor, Device::Cpu)?;
        let mut event = null_mut();
        if let Device::Cuda(index) = tensor.device() {
            // SAFETY: a place for the handle, and for the message.
            call(|error, capacity| unsafe {
                vlm_r1_event_record(index as c_int, &mut event, error, capacity)
            })?;
        }
        Ok(PendingHostCopy { copy, event })
    }

    /// Waits for the copy, and for no work queued after it.
    ///
    /// # Errors
    /// The device's own.
    pub fn wait(self) -> Result<Tensor, TorchError> {
        if !self.event.is_null() {
            // SAFETY: an event that lives.
            call(|error, capacity| unsafe { vlm_r1_event_wait(self.event, error, capacity) })?;
        }
        Ok(self.copy.shallow_clone())
    }
}

impl Drop for PendingHostCopy {
    fn drop(&mut self) {
        if !self.event.is_null() {
            // SAFETY: made by `vlm_r1_event_record`, deleted once.
            unsafe { vlm_r1_event_delete(self.event) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_what_was_there_when_it_began() {
        let tensor = Tensor::from_slice(&[1.0f64, 2.0]);
        let copy = PendingHostCopy::begin(&tensor).unwrap();
        let _ = tensor.shallow_clone().fill_(9.0);
        assert_eq!(Vec::<f64>::try_from(copy.wait().unwrap()).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn numbers_for_the_cpu_stay_there() {
        let tensor = upload(&[3i64, -1], Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(&tensor).unwrap(), [3, -1]);
        assert!(!is_pinned(&tensor).unwrap());
    }
}
