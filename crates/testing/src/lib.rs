//! What tests of several crates need: golden files and JSON Lines.
//!
//! A dev-dependency only, without libtorch. A missing file panics: a test must not pass without
//! its golden numbers.

mod driver;

pub use driver::{compile, library_path, stand_in_driver};

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The path `name` in this repository.
pub fn repository(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// The path `name` under `golden/`.
///
/// # Panics
/// If nothing is there.
pub fn golden(name: impl AsRef<Path>) -> PathBuf {
    let path = repository("golden").join(name);
    assert!(path.exists(), "golden files missing: {}", path.display());
    path
}

/// The folder of a tiny checkpoint: `nested` (names as transformers 5 writes them, one file) or
/// `flat` (older names, shards, a tied head).
///
/// # Panics
/// If there is no such folder.
pub fn checkpoint(name: &str) -> PathBuf {
    golden("parity/checkpoints").join(name)
}

/// The text of `path`.
///
/// # Panics
/// If it cannot be read.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a JSON file.
///
/// # Panics
/// If the file cannot be read or is no `T`.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> T {
    let path = path.as_ref();
    serde_json::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each line of a JSON Lines file.
///
/// # Panics
/// If the file cannot be read or a line is no `T`.
pub fn read_jsonl<T: DeserializeOwned>(path: impl AsRef<Path>) -> Vec<T> {
    let path = path.as_ref();
    let line = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), index + 1))
    };
    read(path).lines().enumerate().map(line).collect()
}

/// Each line of a JSON Lines file that must hold at least so many.
///
/// # Panics
/// If there are fewer, or a line is no `T`.
pub fn cases<T: DeserializeOwned>(path: impl AsRef<Path>, at_least: usize) -> Vec<T> {
    let path = path.as_ref();
    let cases = read_jsonl(path);
    assert!(cases.len() >= at_least, "{}: {} cases", path.display(), cases.len());
    cases
}

/// [`cases`] of a file under `golden/`.
pub fn golden_cases<T: DeserializeOwned>(name: &str, at_least: usize) -> Vec<T> {
    cases(golden(name), at_least)
}
