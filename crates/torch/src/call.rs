//! Calls into the C++ of this crate: an exception becomes an error.

use std::ffi::{CStr, c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;

/// Calls `function` with a buffer for an error message and its size. `function` returns 0, or another number after it wrote a
/// message that ends within the buffer.
pub(crate) fn call(function: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), TorchError> {
    let mut error = [0 as c_char; 1024];
    if function(error.as_mut_ptr(), error.len()) == 0 {
        return Ok(());
    }
    // SAFETY: `catch.h` ends the message with 0, and the buffer was zeros before.
    let message = unsafe { CStr::from_ptr(error.as_ptr()) };
    Err(TorchError::Libtorch(message.to_string_lossy().into_owned()))
}

/// As [`call`], for a function that makes a tensor and writes its handle.
pub(crate) fn call_for_tensor(
    function: impl FnOnce(*mut *mut C_tensor, *mut c_char, usize) -> c_int,
) -> Result<Tensor, TorchError> {
    let mut output = std::ptr::null_mut();
    call(|error, capacity| function(&mut output, error, capacity))?;
    // SAFETY: a handle made by `new`, owned by nobody else; `Tensor` deletes it.
    Ok(unsafe { Tensor::from_ptr(output) })
}

/// The `at::Tensor*` of a tensor that is borrowed for the call.
pub(crate) fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr() as *mut C_tensor
}
