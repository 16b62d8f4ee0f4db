//! A stand-in for NVIDIA's driver, for programs that a test starts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source` with `cc` and these arguments.
///
/// # Panics
/// If that fails.
pub fn compile(source: &Path, output: &Path, arguments: &[&str]) {
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1"]).args(arguments).arg("-o").arg(output).arg(source);
    let status = command.status().unwrap_or_else(|error| panic!("cc: {error}"));
    assert!(status.success(), "cc {}: {status}", source.display());
}

/// Puts `libcuda.so.1` and `libnvidia-ml.so.1` into `folder`; `driver/driver.c` says what they can be told.
///
/// # Panics
/// If they cannot be compiled.
pub fn stand_in_driver(folder: &Path) {
    let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/driver/driver.c"));
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        compile(&source, &folder.join(name), &[]);
    }
}

/// `LD_LIBRARY_PATH` with these folders before what it holds.
pub fn library_path(folders: &[&Path]) -> OsString {
    let had = std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty());
    let mut folders: Vec<PathBuf> = folders.iter().map(|&folder| folder.to_owned()).collect();
    folders.extend(had.iter().flat_map(std::env::split_paths));
    std::env::join_paths(folders).unwrap_or_else(|error| panic!("LD_LIBRARY_PATH: {error}"))
}
