//! CUDA by `dlopen`: one binary starts on every machine and uses the GPU where there is one.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::TorchError;

pub mod graphs;
pub(crate) mod stand_in;

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlerror() -> *const c_char;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Why the CUDA library could not be loaded; [`parse_device`] reports it.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Loads `libtorch_cuda.so` from the folder of `libtorch_cpu.so` if it lies there; its kernels
/// register themselves. [`parse_device`] calls it where a GPU may be meant; nothing may ask libtorch for one before,
/// because libtorch caches "no CUDA". A library that does not load is no failure yet:
/// [`parse_device`] refuses where a GPU is wanted.
pub fn load_cuda() -> bool {
    static LOADED: OnceLock<bool> = OnceLock::new();
    *LOADED.get_or_init(load)
}

fn load() -> bool {
    let Some(library) = cuda_place().filter(|place| place.exists()) else {
        return false;
    };
    match open(&library) {
        Ok(_) => true,
        Err(cause) => {
            let _ = FAILURE.set(format!("{}: {cause}", library.display()));
            false
        }
    }
}

fn open(library: &Path) -> Result<*mut c_void, String> {
    let path = CString::new(library.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a terminated path; the handle is kept for the life of the process.
    let handle = unsafe { dlopen(path.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: after a failed `dlopen` it is a terminated string that stays until the next call.
    let message = unsafe { dlerror().as_ref().map(|text| CStr::from_ptr(text)) };
    Err(message.map_or_else(
        || "the loader gives no reason".to_string(),
        |text| text.to_string_lossy().into_owned(),
    ))
}

/// Beside the `libtorch_cpu.so` of this process, whether it lies there or not.
fn cuda_place() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let cpu = PathBuf::from(&line[line.find('/')?..]);
    Some(cpu.with_file_name("libtorch_cuda.so"))
}

/// `auto`, `cpu`, `cuda` or `cuda:N`. `auto` takes the first GPU that libtorch sees, else the CPU. CUDA's
/// libraries, half a gigabyte and more, are loaded here, and not for `cpu`.
///
/// # Errors
/// An unknown name, a GPU that is not there, or one that `auto` would pass over only because
/// libtorch's CUDA library does not load.
pub fn parse_device(name: &str) -> Result<Device, TorchError> {
    let error = |cause: String| TorchError::Device { got: name.to_string(), cause };
    if name == "auto" || name.starts_with("cuda") {
        load_cuda();
    }
    let failure = FAILURE.get().map(String::as_str);
    let index = match name {
        "auto" => {
            return match failure {
                Some(cause) if Path::new("/dev/nvidia0").exists() => Err(error(format!(
                    "a GPU is here, but {cause}\nhint: --device cpu does without it"
                ))),
                _ => Ok(Device::cuda_if_available()),
            };
        }
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => name
            .strip_prefix("cuda:")
            .and_then(|n| n.parse::<usize>().ok())
            .ok_or_else(|| error("expected `auto`, `cpu`, `cuda` or `cuda:N`".into()))?,
    };
    let found = Cuda::device_count();
    if index as i64 >= found {
        let why = failure.map_or_else(String::new, |cause| format!("; {cause}"));
        return Err(error(format!("libtorch sees {found} GPUs here{why}")));
    }
    Ok(Device::Cuda(index))
}

/// Where tests put their tensors, as `--device` takes it: what `VLM_R1_TEST_DEVICE` says, else the CPU.
#[doc(hidden)]
pub fn name_of_test_device() -> String {
    std::env::var("VLM_R1_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// The device of [`name_of_test_device`].
///
/// # Panics
/// Where there is no such device.
#[doc(hidden)]
pub fn device_of_tests() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let name = name_of_test_device();
        parse_device(&name).unwrap_or_else(|error| panic!("VLM_R1_TEST_DEVICE: {error}"))
    })
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

    #[test]
    fn a_library_that_does_not_load_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libtorch_cuda.so");
        std::fs::write(&library, "no library").unwrap();
        let cause = open(&library).unwrap_err();
        assert!(cause.contains("libtorch_cuda.so"), "{cause}");
        assert!(open(&folder.path().join("absent.so")).is_err());
    }
}
