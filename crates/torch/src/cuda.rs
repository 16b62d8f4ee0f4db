//! CUDA without linking it: one binary starts on every machine and takes the GPU where there is one.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs;
use std::path::PathBuf;

use tch::{Cuda, Device};

use crate::TorchError;

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
}

/// Loads `libtorch_cuda.so` from the folder of `libtorch_cpu.so` if it lies there; its kernels
/// register themselves. Must be the first act of `main`: libtorch remembers "no CUDA" for good.
pub fn load_cuda() -> bool {
    let Some(library) = cuda_library() else {
        return false;
    };
    let Ok(path) = CString::new(library.to_string_lossy().into_owned()) else {
        return false;
    };
    // SAFETY: a terminated path; the handle is kept for the life of the process.
    let handle = unsafe { dlopen(path.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
    !handle.is_null()
}

fn cuda_library() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let cpu = PathBuf::from(&line[line.find('/')?..]);
    let cuda = cpu.with_file_name("libtorch_cuda.so");
    cuda.exists().then_some(cuda)
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// An unknown name, or a GPU that is not there.
pub fn parse_device(name: &str) -> Result<Device, TorchError> {
    let error = |cause: String| TorchError::Device {
        got: name.to_string(),
        cause,
    };
    match name {
        "auto" => Ok(Device::cuda_if_available()),
        "cpu" => Ok(Device::Cpu),
        _ => {
            let index = match name.strip_prefix("cuda") {
                Some("") => 0,
                Some(rest) => rest
                    .strip_prefix(':')
                    .and_then(|n| n.parse::<usize>().ok())
                    .ok_or_else(|| error("expected auto, cpu or cuda:N".into()))?,
                None => return Err(error("expected auto, cpu or cuda:N".into())),
            };
            let found = Cuda::device_count();
            if index as i64 >= found {
                return Err(error(format!("libtorch sees {found} GPUs here")));
            }
            Ok(Device::Cuda(index))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!(parse_device("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:", "cuda:x", "cuda:99", ""] {
            assert!(parse_device(bad).unwrap_err().to_string().contains(bad));
        }
    }
}
