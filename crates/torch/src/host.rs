//! Tensors of a device that wait in host memory, and the way there and back.

use tch::{Cuda, Device, Tensor};

use crate::TorchError;

/// A copy in host memory, page-locked where `device` is a GPU: copies of it to there need not be waited for.
///
/// # Errors
/// Where memory is not to be had.
pub fn host_copy(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    let copy = tensor.f_to_device_(Device::Cpu, tensor.kind(), false, true)?;
    Ok(if device.is_cuda() {
        copy.f_pin_memory(device)?
    } else {
        copy
    })
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
