//! Libraries that are opened while the program runs.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlerror() -> *const c_char;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// An open library; it is never closed.
#[derive(Clone, Copy, Debug)]
pub struct SharedLibrary(*mut c_void);

// SAFETY: a handle that stays valid; `dlsym` may be called from any thread.
unsafe impl Send for SharedLibrary {}
// SAFETY: as above.
unsafe impl Sync for SharedLibrary {}

impl SharedLibrary {
    /// Opens a path, or a name that the loader looks for (`LD_LIBRARY_PATH`, the system's folders). Its names are then
    /// known to libraries that are opened later.
    ///
    /// # Errors
    /// The loader's own words.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, String> {
        let path = path.as_ref().as_os_str().as_encoded_bytes();
        let path = CString::new(path).map_err(|error| error.to_string())?;
        // SAFETY: a terminated path; the handle is kept for the life of the process.
        let handle = unsafe { dlopen(path.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
        if !handle.is_null() {
            return Ok(Self(handle));
        }
        // SAFETY: after a failed `dlopen` it is a terminated string that stays until the next call.
        let message = unsafe { dlerror().as_ref().map(|text| CStr::from_ptr(text)) };
        Err(message.map_or_else(
            || "the loader gives no reason".to_owned(),
            |text| text.to_string_lossy().into_owned(),
        ))
    }

    /// Where a name of the library is; null where it has none of that name.
    pub fn address(&self, name: &CStr) -> *mut c_void {
        // SAFETY: an open library and a terminated name.
        unsafe { dlsym(self.0, name.as_ptr()) }
    }

    /// The function of that name.
    ///
    /// # Safety
    /// `F` must be the type of a pointer to that function.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &CStr) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let address = self.address(name);
        // SAFETY: of the same size, and the caller vouches for the type.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_does_not_load_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libtorch_cuda.so");
        std::fs::write(&library, "no library").unwrap();
        let cause = SharedLibrary::open(&library).unwrap_err();
        assert!(cause.contains("libtorch_cuda.so"), "{cause}");
        assert!(SharedLibrary::open(folder.path().join("absent.so")).is_err());
    }

    #[test]
    fn names_are_found_or_null() {
        let libc = SharedLibrary::open("libc.so.6").unwrap();
        assert!(!libc.address(c"getpid").is_null());
        assert!(libc.address(c"no_function_of_this_name").is_null());
        // SAFETY: `getpid` takes nothing and gives a number.
        let getpid = unsafe { libc.function::<unsafe extern "C" fn() -> c_int>(c"getpid") };
        // SAFETY: as above.
        assert_eq!(unsafe { getpid.unwrap()() } as u32, std::process::id());
    }
}
