//! CUDA by `dlopen`: one binary starts on every machine and uses the GPU where there is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gpu::{Build, CUDA_LIBRARY, Refusal, SharedLibrary, machine};
use tch::{Cuda, Device, Kind};

use crate::TorchError;

pub(crate) mod carried;
pub mod graphs;
pub(crate) mod stand_in;

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
    match SharedLibrary::open(&library) {
        Ok(_) => true,
        Err(cause) => {
            let _ = FAILURE.set(cause);
            false
        }
    }
}

/// Beside the `libtorch_cpu.so` of this process, whether it lies there or not.
pub(crate) fn cuda_place() -> Option<PathBuf> {
    Some(libtorch_folder()?.join(CUDA_LIBRARY))
}

/// The folder of this process's libtorch.
pub fn libtorch_folder() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    Some(Path::new(&line[line.find('/')?..]).parent()?.to_owned())
}

/// This process's libtorch, and why its part for GPUs did not load if that was tried.
pub fn libtorch_build() -> Build {
    let build = libtorch_folder().map(|folder| Build::of(&folder)).unwrap_or_default();
    Build { failure: FAILURE.get().cloned(), ..build }
}

/// Loads libtorch's part for GPUs, and counts the cards that libtorch sees.
pub fn num_cards() -> usize {
    load_cuda();
    usize::try_from(Cuda::device_count()).unwrap_or_default()
}

/// `auto`, `cpu`, `cuda` or `cuda:N`. `auto` takes the first GPU that libtorch sees, else the CPU. CUDA's
/// libraries, half a gigabyte and more, are loaded here, and not for `cpu`.
///
/// # Errors
/// An unknown name; a GPU that is not there, or that this libtorch cannot use, with what to do. `auto` takes the CPU where
/// there is no GPU, no driver or no CUDA library, and fails where there are all three and they do not work.
pub fn parse_device(name: &str) -> Result<Device, TorchError> {
    let error = |cause: String| TorchError::Device { got: name.to_string(), cause };
    let index = match name {
        "auto" => {
            return match open_card(0) {
                Ok(device) => Ok(device),
                Err(refusal) if refusal.is_absence() => Ok(Device::Cpu),
                Err(refusal) => Err(error(format!("a GPU is here, but {refusal}"))),
            };
        }
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => name
            .strip_prefix("cuda:")
            .and_then(|n| n.parse::<usize>().ok())
            .ok_or_else(|| error("expected `auto`, `cpu`, `cuda` or `cuda:N`".into()))?,
    };
    open_card(index).map_err(|refusal| error(refusal.to_string()))
}

/// Whether `device` computes in `kind`.
///
/// # Errors
/// bf16 on a card that has no such arithmetic.
pub fn check_kind(device: Device, kind: Kind) -> Result<(), TorchError> {
    match (device, kind) {
        (Device::Cuda(index), Kind::BFloat16) => machine().check_bf16(index).map_err(|refusal| {
            TorchError::Device { got: format!("cuda:{index}"), cause: refusal.to_string() }
        }),
        _ => Ok(()),
    }
}

fn open_card(index: usize) -> Result<Device, Refusal> {
    let build = libtorch_build();
    // Before the driver is asked, which wakes its cards.
    build.check()?;
    let machine = machine();
    // Before libtorch is asked, which would write lines of its own.
    machine.check_driver(&build)?;
    let seen = num_cards();
    if index >= seen {
        return Err(machine.why_not(&libtorch_build(), index, seen));
    }
    machine.check_card(&build, index)?;
    Ok(Device::Cuda(index))
}

/// A card with what its results depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// As the driver calls it: `NVIDIA H200`.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// The driver's version, or the CUDA that it has.
    pub driver: String,
    /// Which libtorch: CUDA's major version, and the bytes of the library for GPUs.
    pub libtorch: String,
}

/// Card `index` of this process; `None` where the driver does not tell.
pub fn card(index: usize) -> Option<Card> {
    let machine = gpu::machine();
    let driver = machine.driver.as_ref().ok()?;
    let build = libtorch_build();
    let bytes = fs::metadata(build.folder.join(gpu::CUDA_LIBRARY)).map_or(0, |file| file.len());
    let version = machine.driver_version.clone();
    Some(Card {
        name: driver.cards.get(index)?.name.clone(),
        memory_bytes: driver.cards[index].memory_bytes,
        driver: version.unwrap_or_else(|| format!("of CUDA {}", driver.cuda)),
        libtorch: format!("CUDA {:?}, {bytes} bytes", build.cuda_major),
    })
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

/// Numbers on the device of tests.
#[doc(hidden)]
pub fn on_test_device<T: tch::kind::Element>(numbers: &[T]) -> tch::Tensor {
    tch::Tensor::from_slice(numbers).to_device(device_of_tests())
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
    fn this_process_knows_its_libtorch() {
        let build = libtorch_build();
        assert!(build.folder.join("libtorch_cpu.so").exists(), "{build:?}");
    }
}
