//! What this machine's NVIDIA driver, cards and libraries are, and whether a build of libtorch can use them. No libtorch
//! here: libraries are opened at run time, so a program without a GPU starts and can say what is missing.
//!
//! After `torch` the only crate with `unsafe`, for calls into the driver.

mod beside;
mod driver;
pub mod elf;
mod links;
mod machine;
mod refusal;
mod shared_library;

pub use beside::{CUDA_LIBRARY, cuda_major, library_beside, library_folders};
pub use driver::{CardFacts, CudaVersion, Driver, DriverError, Version};
pub use links::{Link, Nvml};
pub use machine::{Machine, machine};
pub use refusal::{BF16_NEEDS, Build, FLASH_ATTENTION_NEEDS, Refusal};
pub use shared_library::SharedLibrary;
