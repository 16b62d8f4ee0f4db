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
