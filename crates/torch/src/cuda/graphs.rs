//! CUDA graphs: GPU work captured once and replayed by one launch.
//!
//! libtorch has them in `libtorch_cuda.so`, which the program does not link. `graphs.cpp` is therefore a library of its own: the program
//! embeds it and loads it, through a file in memory, only where graphs are asked for.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::OnceLock;

use tch::Device;

use super::carried::open;
use crate::TorchError;
use crate::call::call;
use crate::out_of_memory::catch_libtorch;

const LIBRARY: &[u8] = include_bytes!(env!("VLM_R1_GRAPHS"));

type OfPool = unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> c_int;
type Delete = unsafe extern "C" fn(*mut c_void);

/// The table of functions at the end of `graphs.cpp`.
#[derive(Debug)]
#[repr(C)]
struct Functions {
    pool: unsafe extern "C" fn(c_int, *mut *mut c_void, *mut c_char, usize) -> c_int,
    pool_delete: Delete,
    enter: OfPool,
    leave: OfPool,
    begin: unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut c_char, usize) -> c_int,
    end: OfPool,
    replay: OfPool,
    delete: Delete,
}

static FUNCTIONS: OnceLock<Result<&'static Functions, String>> = OnceLock::new();

/// Checks that graphs can be captured on `device`.
///
/// # Errors
/// A device that is no GPU; libtorch's CUDA library that is not there or did not load, and names that it lacks.
pub fn check_graphs(device: Device) -> Result<(), TorchError> {
    if !device.is_cuda() {
        let cause = format!("expected a GPU, got {}", format!("{device:?}").to_lowercase());
        return Err(TorchError::Graphs(cause));
    }
    functions().map(|_| ())
}

fn functions() -> Result<&'static Functions, TorchError> {
    let loaded = FUNCTIONS.get_or_init(load);
    loaded.clone().map_err(TorchError::Graphs)
}

fn load() -> Result<&'static Functions, String> {
    let table = open(LIBRARY, c"vlm_r1_graphs")?;
    // SAFETY: `graphs.cpp` declares the table with this type, and the library is never closed.
    unsafe { table.cast::<Functions>().as_ref() }
        .ok_or_else(|| "their library lacks its table of functions".to_owned())
}

/// A side stream of one GPU to capture on, and the memory that the graphs of this pool share. Read a graph's results, or copy them within
/// the graph, before another one is replayed. Dropping the last graph releases the memory; further graphs need a new pool. For one thread.
#[derive(Debug)]
pub struct GraphPool {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    functions: &'static Functions,
    pool: *mut c_void,
    index: c_int,
}

/// Captured work.
#[derive(Debug)]
pub struct Graph {
    graph: *mut c_void,
    /// Its memory.
    pool: Rc<Inner>,
}

impl GraphPool {
    /// On a GPU.
    ///
    /// # Errors
    /// As [`check_graphs`]; CUDA's own.
    pub fn new(device: Device) -> Result<Self, TorchError> {
        check_graphs(device)?;
        let Device::Cuda(index) = device else {
            unreachable!("checked above");
        };
        Self::of_index(index as c_int)
    }

    fn of_index(index: c_int) -> Result<Self, TorchError> {
        let functions = functions()?;
        let mut pool = null_mut();
        // SAFETY: a place for the handle, and for the message.
        call(|error, capacity| unsafe { (functions.pool)(index, &mut pool, error, capacity) })?;
        let inner = Rc::new(Inner { functions, pool, index });
        Ok(GraphPool { inner })
    }

    /// A new one on the same GPU.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn renew(&self) -> Result<Self, TorchError> {
        Self::of_index(self.inner.index)
    }

    /// Runs `work` on the side stream, so that libtorch allocates its per-stream state before a capture.
    ///
    /// # Errors
    /// CUDA's own, and what libtorch refuses in `work`.
    pub fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError> {
        let aside = Aside::enter(&self.inner)?;
        catch_libtorch(work).map_err(TorchError::Graphs)?;
        aside.leave()
    }

    /// Captures `work` without running it. It must not synchronize and must not create a tensor that outlives it.
    ///
    /// # Errors
    /// CUDA's own, which name what cannot be captured.
    pub fn capture(&self, work: &mut dyn FnMut()) -> Result<Graph, TorchError> {
        let aside = Aside::enter(&self.inner)?;
        let mut recording = Recording::begin(&self.inner)?;
        let captured = catch_libtorch(work).map_err(TorchError::Graphs);
        let ended = recording.end();
        aside.leave()?;
        // What went wrong first says why the capture could not end.
        captured.and(ended)
    }
}

/// Out of memory stays what it is: a smaller batch may do.
fn of_graphs(error: TorchError) -> TorchError {
    match error {
        TorchError::Libtorch(cause) if !cause.contains("out of memory") => {
            TorchError::Graphs(cause)
        }
        other => other,
    }
}

impl Graph {
    /// Launches the captured work on the current stream; the host does not wait.
    ///
    /// # Errors
    /// CUDA's own.
    pub fn replay(&self) -> Result<(), TorchError> {
        // SAFETY: a graph that lives.
        call(|error, capacity| unsafe { (self.pool.functions.replay)(self.graph, error, capacity) })
            .map_err(of_graphs)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `begin`, deleted once.
        unsafe { (self.pool.functions.delete)(self.graph) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made by `pool`, deleted once.
        unsafe { (self.functions.pool_delete)(self.pool) }
    }
}

/// Makes the side stream current while it lives; a panic (libtorch's errors are panics) restores the stream too.
struct Aside<'a> {
    inner: &'a Inner,
}

impl<'a> Aside<'a> {
    fn enter(inner: &'a Inner) -> Result<Self, TorchError> {
        let aside = Aside { inner };
        // SAFETY: a pool that lives.
        call(|error, capacity| unsafe { (inner.functions.enter)(inner.pool, error, capacity) })?;
        Ok(aside)
    }

    fn leave(self) -> Result<(), TorchError> {
        // SAFETY: a pool that lives. Leaving a second time, on drop, does nothing.
        call(|error, capacity| unsafe {
            (self.inner.functions.leave)(self.inner.pool, error, capacity)
        })
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        // SAFETY: a pool that lives. Where it fails, the panic or error under way says why.
        let _ = call(|error, capacity| unsafe {
            (self.inner.functions.leave)(self.inner.pool, error, capacity)
        });
    }
}

/// A capture in progress; dropping it early aborts the capture.
struct Recording<'a> {
    inner: &'a Rc<Inner>,
    graph: Option<Graph>,
}

impl<'a> Recording<'a> {
    fn begin(inner: &'a Rc<Inner>) -> Result<Self, TorchError> {
        let mut graph = null_mut();
        // SAFETY: a pool that lives, a place for the handle, and for the message.
        call(|error, capacity| unsafe {
            (inner.functions.begin)(inner.pool, &mut graph, error, capacity)
        })
        .map_err(of_graphs)?;
        let pool = Rc::clone(inner);
        Ok(Recording { inner, graph: Some(Graph { graph, pool }) })
    }

    fn end(&mut self) -> Result<Graph, TorchError> {
        let graph = self.graph.take().expect("ended once");
        // SAFETY: a graph whose capture has begun.
        call(|error, capacity| unsafe { (self.inner.functions.end)(graph.graph, error, capacity) })
            .map_err(of_graphs)?;
        Ok(graph)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.graph.is_some() {
            let _ = self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::carried::tests::names;
    use super::super::{FAILURE, carried::is_loaded, cuda_place};
    use super::*;

    #[test]
    fn without_a_gpu_graphs_are_refused_with_what_was_looked_for() {
        let error = check_graphs(Device::Cpu).unwrap_err().to_string();
        assert_eq!(
            error,
            "CUDA graphs: expected a GPU, got cpu\nhint: --cuda_graphs false decodes without them"
        );
        if !is_loaded("libtorch_cuda.so") {
            let error = check_graphs(Device::Cuda(0)).unwrap_err().to_string();
            assert!(error.starts_with("CUDA graphs: `"), "{error}");
            assert!(error.contains("/libtorch_cuda.so` is not loaded"), "{error}");
            assert!(GraphPool::new(Device::Cuda(0)).is_err());
        }
    }

    /// What CUDA's side must offer: a change here is a change of what a libtorch is asked for.
    const OPEN: [&str; 11] = [
        "_ZN2at4cuda17graph_pool_handleEv",
        "_ZN2at4cuda9CUDAGraph11capture_endEv",
        "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode",
        "_ZN2at4cuda9CUDAGraph6replayEv",
        "_ZN2at4cuda9CUDAGraphC1Eb",
        "_ZN2at4cuda9CUDAGraphD1Ev",
        "_ZN3c104cuda14ExchangeDeviceEa",
        "_ZN3c104cuda17getStreamFromPoolEba",
        "_ZN3c104cuda18device_synchronizeEv",
        "_ZN3c104cuda20getCurrentCUDAStreamEa",
        "_ZN3c104cuda20setCurrentCUDAStreamENS0_10CUDAStreamE",
    ];

    #[test]
    fn the_library_is_open_to_these_names_of_libtorch() {
        let open: Vec<String> = names(Path::new(env!("VLM_R1_GRAPHS")), false)
            .into_iter()
            .filter(|name| name.starts_with("_ZN2at") || name.starts_with("_ZN3c10"))
            .collect();
        assert_eq!(open, OPEN);
    }

    /// `LD_LIBRARY_PATH=.../torch/lib cargo test --release -p torch -- --ignored beside_libtorch_cuda`, with the `lib` of a PyTorch 2.11 for CUDA; no GPU is needed.
    #[test]
    #[ignore = "needs the CUDA libraries of PyTorch 2.11"]
    fn the_library_loads_beside_libtorch_cuda() {
        let place = cuda_place().unwrap();
        assert!(place.exists(), "no {}", place.display());
        let mut offered = names(&place, true);
        offered.extend(names(&place.with_file_name("libc10_cuda.so"), true));
        for name in OPEN {
            assert!(offered.contains(name), "{name} is not in {}", place.display());
        }
        assert!(crate::load_cuda(), "{:?}", FAILURE.get());
        functions().unwrap();
        if tch::Cuda::device_count() == 0 {
            let error = GraphPool::of_index(0).unwrap_err().to_string();
            assert!(error.contains("CUDA"), "{error}");
        }
    }

    /// What is recorded is done when it is replayed, each time, on the numbers of that time.
    #[test]
    fn a_graph_does_its_work_again() {
        use tch::{Kind, Tensor};

        let device = crate::device_of_tests();
        if !device.is_cuda() {
            println!("skipped: `make test-device` has a device that captures");
            return;
        }
        let pool = GraphPool::new(device).unwrap();
        let x = Tensor::arange(4, (Kind::Float, device));
        let y = Tensor::zeros([4], (Kind::Float, device));
        let mut work = || {
            let twice = &x * 2.0 + &y;
            y.shallow_clone().copy_(&twice);
        };
        pool.warm_up(&mut work).unwrap();
        let graph = pool.capture(&mut work).unwrap();
        let read = || Vec::<f32>::try_from(&y).unwrap();
        assert_eq!(read(), [0.0, 2.0, 4.0, 6.0]);
        graph.replay().unwrap();
        assert_eq!(read(), [0.0, 4.0, 8.0, 12.0]);
        let _ = x.shallow_clone().fill_(1.0);
        graph.replay().unwrap();
        assert_eq!(read(), [2.0, 6.0, 10.0, 14.0]);
        // What waits for the device cannot be recorded; afterwards all is as before.
        let wait = || drop(Tensor::from_slice(&[1.0f32]).to_device(device));
        let error = pool.capture(&mut || wait()).unwrap_err().to_string();
        assert!(error.contains("operation not permitted when stream is capturing"), "{error}");
        assert!(error.contains("hint: --cuda_graphs false"), "{error}");
        assert_eq!(read(), [2.0, 6.0, 10.0, 14.0]);
        graph.replay().unwrap();
        assert_eq!(read(), [4.0, 8.0, 12.0, 16.0]);
    }
}
