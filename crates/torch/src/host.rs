//! Tensors of a device that wait in host memory, and the way there and back.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use tch::{Cuda, Device, Tensor};

use crate::TorchError;
use crate::call::call;

unsafe extern "C" {
    fn vlm_r1_event_record(
        device: c_int,
        event: *mut *mut c_void,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_event_wait(event: *mut c_void, error: *mut c_char, capacity: usize) -> c_int;
    fn vlm_r1_event_delete(event: *mut c_void);
}

/// A copy in host memory, page-locked where `device` is a GPU: copies of it to there need not be waited for.
///
/// # Errors
/// Where memory is not to be had.
pub fn host_copy(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    let copy = tensor.f_to_device_(Device::Cpu, tensor.kind(), false, true)?;
    Ok(if device.is_cuda() { copy.f_pin_memory(device)? } else { copy })
}

/// A copy on `to`, begun but perhaps not done: what `to` computes comes after it; the host must
/// [`wait_for`] the device before it reads.
///
/// # Errors
/// Where memory is not to be had.
pub fn begin_copy(tensor: &Tensor, to: Device) -> Result<Tensor, TorchError> {
    Ok(tensor.f_to_device_(to, tensor.kind(), true, true)?)
}

/// Waits until `device` has done all that it was told, copies from and to it included.
pub fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// A tensor on its way to the host: the device may be told more meanwhile.
#[derive(Debug)]
pub struct Reading {
    copy: Tensor,
    /// After the copy, in the order of what the device is told; null where there is nothing to wait for.
    event: *mut c_void,
}

impl Reading {
    /// Begins to copy what `tensor` will hold when the device has done what it was told so far.
    ///
    /// # Errors
    /// Where memory is not to be had; the device's own.
    pub fn begin(tensor: &Tensor) -> Result<Self, TorchError> {
        let copy = begin_copy(tensor, Device::Cpu)?;
        let mut event = null_mut();
        if let Device::Cuda(index) = tensor.device() {
            // SAFETY: a place for the handle, and for the message.
            call(|error, capacity| unsafe {
                vlm_r1_event_record(index as c_int, &mut event, error, capacity)
            })?;
        }
        Ok(Reading { copy, event })
    }

    /// Waits for the copy, and for nothing that the device was told later.
    ///
    /// # Errors
    /// What the device failed in.
    pub fn wait(self) -> Result<Tensor, TorchError> {
        if !self.event.is_null() {
            // SAFETY: an event that lives.
            call(|error, capacity| unsafe { vlm_r1_event_wait(self.event, error, capacity) })?;
        }
        Ok(self.copy.shallow_clone())
    }
}

impl Drop for Reading {
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
    fn what_is_read_is_what_was_there_when_reading_began() {
        let tensor = Tensor::from_slice(&[1.0f64, 2.0]);
        let reading = Reading::begin(&tensor).unwrap();
        let _ = tensor.shallow_clone().fill_(9.0);
        assert_eq!(Vec::<f64>::try_from(reading.wait().unwrap()).unwrap(), [1.0, 2.0]);
    }
}
