//! NCCL of libtorch: `nccl.cpp`, which the program carries in itself.

use std::ffi::{c_char, c_int};
use std::sync::OnceLock;

use super::c10d::cpp;
use crate::cuda::carried::open;

const LIBRARY: &[u8] = include_bytes!(env!("VLM_R1_NCCL"));

/// The table of functions at the end of `nccl.cpp`.
#[derive(Debug)]
#[repr(C)]
pub struct Functions {
    pub make: unsafe extern "C" fn(
        *const cpp::Store,
        c_int,
        c_int,
        c_int,
        i64,
        *mut *mut cpp::Backend,
        *mut c_char,
        usize,
    ) -> c_int,
}

static FUNCTIONS: OnceLock<Result<&'static Functions, String>> = OnceLock::new();

/// Loads them; the error says what is missing.
pub fn functions() -> Result<&'static Functions, String> {
    FUNCTIONS.get_or_init(load).clone()
}

fn load() -> Result<&'static Functions, String> {
    let table = open(LIBRARY, c"vlm_r1_nccl")?;
    // SAFETY: `nccl.cpp` declares the table with this type, and the library is never closed.
    unsafe { table.cast::<Functions>().as_ref() }
        .ok_or_else(|| "their library lacks its table of functions".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use tch::{Device, Kind, Tensor};

    use crate::cuda::carried::{is_loaded, tests::names};
    use crate::cuda::cuda_place;
    use crate::ranks::{Group, GroupOptions, RankError, Store, Transport};

    fn join(card: usize) -> Result<Group, RankError> {
        let transport = Transport::Nccl { card };
        let limit = Duration::from_secs(60);
        let options =
            GroupOptions { rank: 0, size: 1, transport, address: None, limit, checks: true };
        Group::new(&Store::in_process(), options, Arc::new(|| None))
    }

    #[test]
    fn without_cuda_nccl_is_refused_with_what_was_looked_for() {
        if !is_loaded("libtorch_cuda.so") {
            let error = join(0).unwrap_err().to_string();
            assert!(error.starts_with("join 1 ranks: NCCL: `"), "{error}");
            assert!(error.ends_with("/libtorch_cuda.so` is not loaded"), "{error}");
        }
    }

    /// What CUDA's side must offer: a change here is a change of what a libtorch is asked for.
    const OPEN: [&str; 2] = [
        "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb",
        "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_typeIS3_EEEEiiNS2_INS0_7OptionsENS5_IS8_EEEE",
    ];

    #[test]
    fn the_library_is_open_to_these_names_of_libtorch() {
        let open = names(Path::new(env!("VLM_R1_NCCL")), false);
        let cpu = crate::libtorch_folder().unwrap();
        let mut offered = names(&cpu.join("libtorch_cpu.so"), true);
        offered.extend(names(&cpu.join("libc10.so"), true));
        let of_libtorch = |name: &&String| name.contains("c10") || name.contains("2at");
        let open: Vec<_> =
            open.iter().filter(of_libtorch).filter(|name| !offered.contains(*name)).collect();
        assert_eq!(open, OPEN);
    }

    /// `LD_LIBRARY_PATH=.../torch/lib cargo test --release -p torch -- --ignored nccl_beside_libtorch_cuda`, with the `lib` of a PyTorch 2.11 for
    /// CUDA; no GPU is needed.
    #[test]
    #[ignore = "needs the CUDA libraries of PyTorch 2.11"]
    fn nccl_beside_libtorch_cuda() {
        let place = cuda_place().unwrap();
        let offered = names(&place, true);
        for name in OPEN {
            assert!(offered.contains(name), "{name} is not in {}", place.display());
        }
        assert!(crate::load_cuda());
        if tch::Cuda::device_count() == 0 {
            let error = join(0).unwrap_err().to_string();
            assert!(error.contains("no GPUs found"), "{error}");
        }
    }

    /// Each operation by NCCL, of one rank: more need more cards.
    #[test]
    fn one_rank_computes_on_its_card() {
        let device = crate::device_of_tests();
        let Device::Cuda(card) = device else { return println!("skipped: no GPU") };
        if crate::device_counts().is_some() {
            // The stand-in for CUDA has no NCCL.
            let error = join(card).unwrap_err().to_string();
            assert!(error.contains("does not fit this `libtorch_cuda.so`"), "{error}");
            return;
        }
        let group = join(card).unwrap();
        let numbers = |tensor: &Tensor| Vec::<f32>::try_from(&tensor.to_kind(Kind::Float)).unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let tensor = Tensor::from_slice(&[1.5f32, -2.0]).to_kind(kind).to_device(device);
            group.all_reduce_sum(&tensor).unwrap();
            group.all_reduce_max(&tensor).unwrap();
            assert_eq!(numbers(&group.reduce_scatter_sum(&tensor).unwrap()), [1.5, -2.0]);
            group.all_gather(&tensor).unwrap();
            group.broadcast(&tensor, 0).unwrap();
            assert_eq!(numbers(&tensor), [1.5, -2.0]);
        }
        assert_eq!(group.exchange(vec![7; 3000]).unwrap(), [vec![7; 3000]]);
        let cpu = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        assert!(
            group.all_reduce_sum(&cpu).unwrap_err().to_string().contains("expected a tensor on")
        );
        // Ends NCCL in order.
        drop(group);
    }
}
