//! `c10d.cpp`: its functions, and owners of what they make.

use std::ffi::{CString, c_char, c_int};
use std::ptr::{NonNull, null_mut};
use std::sync::Once;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use super::nccl::functions;
use crate::TorchError;
use crate::call::{call, pointer};

/// As in `c10d.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    AllReduceSum,
    AllReduceMax,
    ReduceScatterSum,
    AllGather,
    Broadcast,
}

/// Types of C++, known by pointers.
pub mod cpp {
    #[repr(C)]
    pub struct Store([u8; 0]);
    #[repr(C)]
    pub struct Backend([u8; 0]);
    #[repr(C)]
    pub struct Work([u8; 0]);
    #[repr(C)]
    pub struct Bytes([u8; 0]);
}

/// c10d's own lines, with frames of its stack, say what our errors say better. libtorch's other warnings go with them. A level that the user
/// has set is obeyed, which libtorch by itself does in Python alone.
fn quiet() {
    const FATAL: c_int = 3;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| match std::env::var_os("TORCH_CPP_LOG_LEVEL") {
        // SAFETY: a function without arguments that reads this variable.
        Some(_) => unsafe { init_logging() },
        // SAFETY: a number that libtorch reads before it writes a line.
        None => unsafe { FLAGS_caffe2_log_level = FATAL },
    });
}

unsafe extern "C" {
    static mut FLAGS_caffe2_log_level: c_int;
    #[link_name = "_ZN3c1011initLoggingEv"]
    fn init_logging();
    fn vlm_r1_store_in_process(
        store: *mut *mut cpp::Store,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_tcp(
        host: *const c_char,
        port: u16,
        hosts: c_int,
        millis: i64,
        store: *mut *mut cpp::Store,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_prefixed(
        store: *const cpp::Store,
        prefix: *const c_char,
        prefixed: *mut *mut cpp::Store,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_set(
        store: *const cpp::Store,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_get(
        store: *const cpp::Store,
        key: *const c_char,
        value: *mut *mut cpp::Bytes,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_wait(
        store: *const cpp::Store,
        key: *const c_char,
        millis: i64,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_add(
        store: *const cpp::Store,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_store_delete(store: *mut cpp::Store);
    fn vlm_r1_bytes(value: *const cpp::Bytes, length: *mut usize) -> *const u8;
    fn vlm_r1_bytes_delete(value: *mut cpp::Bytes);
    fn vlm_r1_gloo(
        store: *const cpp::Store,
        address: *const c_char,
        rank: c_int,
        size: c_int,
        millis: i64,
        backend: *mut *mut cpp::Backend,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_backend_set_limit(
        backend: *mut cpp::Backend,
        millis: i64,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_backend_error(
        backend: *mut cpp::Backend,
        kind: *mut c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_backend_shutdown(
        backend: *mut cpp::Backend,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_backend_delete(backend: *mut cpp::Backend);
    fn vlm_r1_collective(
        backend: *mut cpp::Backend,
        operation: c_int,
        tensor: *const C_tensor,
        root: i64,
        work: *mut *mut cpp::Work,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_work_wait(
        work: *mut cpp::Work,
        millis: i64,
        polls: c_int,
        is_done: *mut c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_work_delete(work: *mut cpp::Work);
}

/// A result, or the first line of what libtorch says.
pub type Called<T> = Result<T, String>;

fn called(function: impl FnOnce(*mut c_char, usize) -> c_int) -> Called<()> {
    call(function).map_err(|error| match error {
        TorchError::Libtorch(text) => said(&text),
        other => other.to_string(),
    })
}

/// The first line, without the place in libtorch that says it and without the guess that Gloo's wrapper appends.
fn said(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    let line = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((place, rest)) if place.contains(".cc:") || place.contains(".h:") => rest,
        _ => line,
    };
    line.split(". This may indicate").next().unwrap_or(line).to_owned()
}

/// Text for C++; it ends at a zero, which no key or address has.
fn c_text(text: &str) -> Called<CString> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte"))
}

pub fn millis(time: Duration) -> i64 {
    // Zero would be without an end.
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2).max(1)
}

/// A c10d store. Its operations lock.
#[derive(Debug)]
pub struct Store(NonNull<cpp::Store>);

// SAFETY: a c10d store may be used by several threads; each of its operations takes its lock.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    fn made(make: impl FnOnce(*mut *mut cpp::Store, *mut c_char, usize) -> c_int) -> Called<Self> {
        let mut store = null_mut();
        called(|error, capacity| make(&mut store, error, capacity))?;
        NonNull::new(store).map(Store).ok_or_else(|| "no store".to_owned())
    }

    pub fn in_process() -> Called<Self> {
        // SAFETY: places for the handle and the message.
        Self::made(|store, error, capacity| unsafe {
            vlm_r1_store_in_process(store, error, capacity)
        })
    }

    pub fn tcp(host: &str, port: u16, hosts: bool, limit: Duration) -> Called<Self> {
        quiet();
        let host = c_text(host)?;
        // SAFETY: a text that ends, places for the handle and the message.
        Self::made(|store, error, capacity| unsafe {
            vlm_r1_store_tcp(
                host.as_ptr(),
                port,
                hosts.into(),
                millis(limit),
                store,
                error,
                capacity,
            )
        })
    }

    pub fn prefixed(&self, prefix: &str) -> Called<Self> {
        let prefix = c_text(prefix)?;
        // SAFETY: a store that lives, a text that ends, places for the handle and the message.
        Self::made(|store, error, capacity| unsafe {
            vlm_r1_store_prefixed(self.0.as_ptr(), prefix.as_ptr(), store, error, capacity)
        })
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Called<()> {
        let key = c_text(key)?;
        // SAFETY: a store that lives, a text that ends, bytes of the given length, a place for the message.
        called(|error, capacity| unsafe {
            let (bytes, length) = (value.as_ptr(), value.len());
            vlm_r1_store_set(self.0.as_ptr(), key.as_ptr(), bytes, length, error, capacity)
        })
    }

    pub fn get(&self, key: &str) -> Called<Option<Vec<u8>>> {
        let key = c_text(key)?;
        let mut value = null_mut();
        // SAFETY: a store that lives, a text that ends, places for the handle and the message.
        called(|error, capacity| unsafe {
            vlm_r1_store_get(self.0.as_ptr(), key.as_ptr(), &mut value, error, capacity)
        })?;
        if value.is_null() {
            return Ok(None);
        }
        let mut length = 0;
        // SAFETY: the vector lives until it is deleted below; an empty one may have no address.
        unsafe {
            let bytes = vlm_r1_bytes(value, &mut length);
            let copy = if length == 0 { &[] } else { std::slice::from_raw_parts(bytes, length) };
            let copy = copy.to_vec();
            vlm_r1_bytes_delete(value);
            Ok(Some(copy))
        }
    }

    pub fn wait(&self, key: &str, limit: Duration) -> Called<()> {
        let key = c_text(key)?;
        // SAFETY: a store that lives, a text that ends, a place for the message.
        called(|error, capacity| unsafe {
            vlm_r1_store_wait(self.0.as_ptr(), key.as_ptr(), millis(limit), error, capacity)
        })
    }

    pub fn add(&self, key: &str, amount: i64) -> Called<i64> {
        let key = c_text(key)?;
        let mut sum = 0;
        // SAFETY: a store that lives, a text that ends, places for the sum and the message.
        called(|error, capacity| unsafe {
            vlm_r1_store_add(self.0.as_ptr(), key.as_ptr(), amount, &mut sum, error, capacity)
        })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by C++, deleted once.
        unsafe { vlm_r1_store_delete(self.0.as_ptr()) }
    }
}

/// A c10d backend. Deleting it waits for its open work.
#[derive(Debug)]
pub struct Backend {
    backend: NonNull<cpp::Backend>,
    /// Its work is a GPU's.
    is_nccl: bool,
}

// SAFETY: a backend is not bound to a thread.
unsafe impl Send for Backend {}

impl Backend {
    pub fn gloo(
        store: &Store,
        address: &str,
        rank: usize,
        size: usize,
        limit: Duration,
    ) -> Called<Self> {
        quiet();
        let address = c_text(address)?;
        let mut backend = null_mut();
        // SAFETY: a store that lives, a text that ends, places for the handle and the message.
        called(|error, capacity| unsafe {
            vlm_r1_gloo(
                store.0.as_ptr(),
                address.as_ptr(),
                rank as c_int,
                size as c_int,
                millis(limit),
                &mut backend,
                error,
                capacity,
            )
        })?;
        Self::of(backend, false)
    }

    pub fn nccl(
        store: &Store,
        card: usize,
        rank: usize,
        size: usize,
        limit: Duration,
    ) -> Called<Self> {
        quiet();
        let functions = functions().map_err(|cause| format!("NCCL: {cause}"))?;
        let mut backend = null_mut();
        // SAFETY: a store that lives, places for the handle and the message.
        called(|error, capacity| unsafe {
            (functions.make)(
                store.0.as_ptr(),
                rank as c_int,
                size as c_int,
                card as c_int,
                millis(limit),
                &mut backend,
                error,
                capacity,
            )
        })?;
        Self::of(backend, true)
    }

    fn of(backend: *mut cpp::Backend, is_nccl: bool) -> Called<Self> {
        let backend = NonNull::new(backend).ok_or_else(|| "no group".to_owned())?;
        Ok(Self { backend, is_nccl })
    }

    /// Refuses where the backend knows of an error that no work has told.
    pub fn check(&self) -> Called<()> {
        // Gloo knows of none.
        if !self.is_nccl {
            return Ok(());
        }
        let mut kind = 0;
        // SAFETY: a backend that lives, places for the answer and the message.
        called(|error, capacity| unsafe {
            vlm_r1_backend_error(self.backend.as_ptr(), &mut kind, error, capacity)
        })?;
        match kind {
            0 => Ok(()),
            1 => Err("NCCL: its own limit has passed".to_owned()),
            2 => Err("NCCL: a connection to another card broke".to_owned()),
            3 => Err("NCCL: another rank has an error".to_owned()),
            kind => Err(format!("NCCL: error {kind}")),
        }
    }

    pub fn set_limit(&self, limit: Duration) -> Called<()> {
        // SAFETY: a backend that lives, a place for the message.
        called(|error, capacity| unsafe {
            vlm_r1_backend_set_limit(self.backend.as_ptr(), millis(limit), error, capacity)
        })
    }

    pub fn start(&self, operation: Operation, tensor: &Tensor, root: usize) -> Called<Work> {
        let mut work = null_mut();
        // SAFETY: a backend and a tensor that live, places for the handle and the message; the work holds the tensor.
        called(|error, capacity| unsafe {
            vlm_r1_collective(
                self.backend.as_ptr(),
                operation as c_int,
                pointer(tensor),
                root as i64,
                &mut work,
                error,
                capacity,
            )
        })?;
        let work = NonNull::new(work).ok_or_else(|| "no work".to_owned())?;
        Ok(Work { work, polls: self.is_nccl })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if self.is_nccl {
            // The object stays; its threads and connections end. What it says then, nobody needs.
            // SAFETY: a backend that lives, a place for the message.
            let _ = called(|error, capacity| unsafe {
                vlm_r1_backend_shutdown(self.backend.as_ptr(), error, capacity)
            });
        }
        // SAFETY: made by C++, deleted once.
        unsafe { vlm_r1_backend_delete(self.backend.as_ptr()) }
    }
}

/// A collective under way.
#[derive(Debug)]
pub struct Work {
    work: NonNull<cpp::Work>,
    polls: bool,
}

impl Work {
    /// Whether it has ended; waits at most so long.
    pub fn wait(&self, at_most: Duration) -> Called<bool> {
        let mut is_done = 0;
        // SAFETY: a work that lives, places for the answer and the message.
        called(|error, capacity| unsafe {
            let (work, polls) = (self.work.as_ptr(), c_int::from(self.polls));
            vlm_r1_work_wait(work, millis(at_most), polls, &mut is_done, error, capacity)
        })?;
        Ok(is_done != 0)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by C++, deleted once; the backend holds what is under way.
        unsafe { vlm_r1_work_delete(self.work.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::said;

    #[test]
    fn of_what_libtorch_says_the_first_line_is_kept_without_its_place() {
        let gloo = "[/a/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:80. This may indicate a crash\nmore";
        assert_eq!(said(gloo), "Connection closed by peer [127.0.0.1]:80");
        assert_eq!(said("[::1]:80 is in use\n"), "[::1]:80 is in use");
    }
}
