//! What tests ask of the stand-in for CUDA (`tools/stand_in`), found in the process by name.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;

use super::dlsym;

/// What the device would have done so far, in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that are not views; a replayed graph is one.
    pub launches: i64,
    /// Times that the host waited for the device.
    pub waits: i64,
    /// Graphs captured.
    pub captures: i64,
    /// Graphs replayed.
    pub replays: i64,
    /// Copies: to the device from pageable and from page-locked memory, to the host into the same, within the device, between devices.
    pub copies: [i64; 6],
    /// Their bytes.
    pub bytes: [i64; 6],
}

impl Counts {
    /// Since the start of the process.
    ///
    /// # Panics
    /// Without a stand-in.
    pub fn now() -> Self {
        let mut all = [0i64; 16];
        // SAFETY: the function of this name in `tools/stand_in/memory.cpp` writes 16 integers.
        unsafe {
            let count: unsafe extern "C" fn(*mut i64) =
                std::mem::transmute(function(c"vlm_r1_stand_in_counts"));
            count(all.as_mut_ptr());
        }
        let six = |from: usize| std::array::from_fn(|i| all[from + i]);
        let [launches, waits, captures, replays, ..] = all;
        Counts { launches, waits, captures, replays, copies: six(4), bytes: six(10) }
    }

    /// What was done since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let six = |a: &[i64; 6], b: &[i64; 6]| std::array::from_fn(|i| a[i] - b[i]);
        Counts {
            launches: self.launches - before.launches,
            waits: self.waits - before.waits,
            captures: self.captures - before.captures,
            replays: self.replays - before.replays,
            copies: six(&self.copies, &before.copies),
            bytes: six(&self.bytes, &before.bytes),
        }
    }
}

/// Allocations on device `index` beyond `bytes` of live tensors fail from now on.
///
/// # Panics
/// Without a stand-in.
pub fn limit_memory(index: usize, bytes: i64) {
    // SAFETY: the function of this name in `tools/stand_in/memory.cpp` takes these and stores them.
    unsafe {
        let limit: unsafe extern "C" fn(c_int, i64) =
            std::mem::transmute(function(c"vlm_r1_stand_in_limit"));
        limit(index as c_int, bytes);
    }
}

fn function(name: &CStr) -> *mut c_void {
    // SAFETY: a terminated name, looked for in all libraries of the process.
    let found = unsafe { dlsym(null_mut(), name.as_ptr()) };
    assert!(!found.is_null(), "{}: this libtorch_cuda.so is no stand-in", name.to_string_lossy());
    found
}
