//! Memory of the process and of its tensors.

use std::ffi::c_int;
use std::fs;

use tch::Device;

unsafe extern "C" {
    fn vlm_r1_live_bytes(device: c_int, now: *mut i64, most: *mut i64) -> c_int;
    fn vlm_r1_reset_peak_bytes(device: c_int) -> c_int;
    fn vlm_r1_limit_live_bytes(bytes: i64);
    fn vlm_r1_empty_device_cache() -> c_int;
}

/// Bytes of live tensors on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveBytes {
    /// Now.
    pub now: u64,
    /// The most since [`reset_peak_live_bytes`], or since the start.
    pub peak: u64,
}

/// Bytes of live tensors on `device`; `None` where libtorch does not count them. Other libraries and stacks are not included.
pub fn live_bytes(device: Device) -> Option<LiveBytes> {
    let (mut now, mut peak) = (0, 0);
    // SAFETY: two integers to write to; the function throws nothing.
    let code = unsafe { vlm_r1_live_bytes(index(device)?, &mut now, &mut peak) };
    let bytes = |count: i64| u64::try_from(count).ok();
    (code == 0).then_some(LiveBytes { now: bytes(now)?, peak: bytes(peak)? })
}

/// Resets [`LiveBytes::peak`] of `device` to the present.
pub fn reset_peak_live_bytes(device: Device) {
    if let Some(index) = index(device) {
        // SAFETY: takes an integer and throws nothing. A device that does not count resets nothing,
        // and `live_bytes` says so.
        let _ = unsafe { vlm_r1_reset_peak_bytes(index) };
    }
}

/// For tests: allocations on the device of tests that would bring its live tensors over `bytes` fail as on a full GPU. `None` lifts the limit.
///
/// # Panics
/// Where that device is a GPU and no stand-in.
pub fn limit_live_bytes(bytes: Option<u64>) {
    let bytes = bytes.map(|b| i64::try_from(b).unwrap_or(i64::MAX));
    if let Device::Cuda(index) = crate::device_of_tests() {
        return crate::cuda::stand_in::limit_memory(index, bytes.unwrap_or(i64::MAX));
    }
    // SAFETY: stores an integer.
    unsafe { vlm_r1_limit_live_bytes(bytes.unwrap_or(-1)) };
}

/// Empties libtorch's caching allocator of a GPU. The CPU has none.
pub(crate) fn empty_device_cache(device: Device) {
    if device.is_cuda() {
        // SAFETY: takes nothing and throws nothing. Where it fails the next allocation does too, and
        // says so.
        let _ = unsafe { vlm_r1_empty_device_cache() };
    }
}

fn index(device: Device) -> Option<c_int> {
    match device {
        Device::Cpu => Some(-1),
        Device::Cuda(index) => c_int::try_from(index).ok(),
        _ => None,
    }
}

/// Peak resident memory of this process, bytes; 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    proc_bytes("/proc/self/status", "VmHWM").unwrap_or(0)
}

/// All memory of this machine, bytes; `None` where the system does not tell.
pub fn machine_memory_bytes() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemTotal")
}

/// The line `key: N kB` of a file below `/proc`.
fn proc_bytes(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn a_process_takes_some_memory() {
        assert!(peak_memory_bytes() > 1 << 20);
        assert!(machine_memory_bytes() > Some(peak_memory_bytes()));
    }

    #[test]
    fn tensors_are_counted_as_long_as_they_live() {
        // Larger than whatever tests beside this one allocate.
        const BYTES: u64 = 256 << 20;
        let count = || live_bytes(Device::Cpu).unwrap();
        reset_peak_live_bytes(Device::Cpu);
        let before = count().now;
        let tensor = Tensor::zeros([BYTES as i64 / 4], (Kind::Float, Device::Cpu));
        let view = tensor.view([2, -1]);
        drop(tensor);
        assert!(count().now >= before + BYTES - (8 << 20), "{before} {:?}", count());
        assert!(count().now <= before + BYTES + (8 << 20), "{before} {:?}", count());
        drop(view);
        let after = count();
        assert!(after.now < before + (8 << 20), "{before} {after:?}");
        assert!(after.peak >= BYTES, "{after:?}");
        reset_peak_live_bytes(Device::Cpu);
        assert!(count().peak < BYTES, "{:?}", count());
    }

    #[test]
    fn a_gpu_that_is_not_there_has_no_count() {
        assert_eq!(live_bytes(Device::Cuda(97)), None);
        reset_peak_live_bytes(Device::Cuda(97));
    }
}
