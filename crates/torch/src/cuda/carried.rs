//! Libraries with names of `libtorch_cuda.so`, which the program does not link: it carries them in itself, and loads them through a file in
//! memory only where they are asked for.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;

use gpu::SharedLibrary;

use super::{FAILURE, cuda_place};

unsafe extern "C" {
    fn memfd_create(name: *const c_char, flags: u32) -> c_int;
}

/// Loads `library` for good, and returns the address of its table of functions. The error says what is missing.
pub fn open(library: &[u8], table: &CStr) -> Result<*mut c_void, String> {
    if !is_loaded("libtorch_cuda.so") {
        let why = match (FAILURE.get(), cuda_place()) {
            (Some(cause), _) => format!("`libtorch_cuda.so` did not load: {cause}"),
            (None, Some(place)) => format!("`{}` is not loaded", place.display()),
            (None, None) => {
                "no `libtorch_cpu.so` beside which to look for `libtorch_cuda.so`".to_owned()
            }
        };
        return Err(why);
    }
    let file = file_in_memory(library, table)
        .map_err(|error| format!("cannot make a file in memory: {error}"))?;
    // It stays open: the next one would get its number, and by the same path the loader gives the library that it has.
    let path = format!("/proc/self/fd/{}", file.into_raw_fd());
    let library = SharedLibrary::open(Path::new(&path))
        .map_err(|cause| format!("their library does not fit this `libtorch_cuda.so`: {cause}"))?;
    Ok(library.address(table))
}

pub fn is_loaded(library: &str) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let suffix = format!("/{library}");
    maps.lines().any(|line| line.ends_with(&suffix))
}

fn file_in_memory(content: &[u8], name: &CStr) -> std::io::Result<File> {
    const CLOSE_ON_EXEC: u32 = 1;
    // SAFETY: a terminated name; the descriptor is owned by the file alone.
    let mut file = unsafe {
        let descriptor = memfd_create(name.as_ptr(), CLOSE_ON_EXEC);
        if descriptor < 0 {
            return Err(std::io::Error::last_os_error());
        }
        File::from_raw_fd(descriptor)
    };
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    /// The open names of a shared library or, with `defined`, those that it offers.
    pub fn names(library: &Path, defined: bool) -> BTreeSet<String> {
        let which = if defined { "--defined-only" } else { "--undefined-only" };
        let output = std::process::Command::new("nm")
            .args(["-D", "--format=posix", which])
            .arg(library)
            .output()
            .expect("nm, which comes with the C++ compiler");
        assert!(output.status.success(), "nm {}", library.display());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.split([' ', '@']).next()).map(String::from).collect()
    }
}
