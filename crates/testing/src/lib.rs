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

/// The folder of a tiny checkpoint. Of Qwen2.5-VL: `nested` (names as transformers 5 writes them, one file) and `flat`
/// (older names, shards, a tied head). Of another family: `qwen3_vl/nested` and `qwen3_vl/hub` (the hub's names, shards,
/// a tied head).
///
/// # Panics
/// If there is no such folder.
pub fn checkpoint(name: &str) -> PathBuf {
    in_family("checkpoints", name)
}

/// Families beside Qwen2.5-VL, by model type: those that have golden numbers.
///
/// # Panics
/// If there are none.
pub fn other_families() -> Vec<&'static str> {
    let folder = golden("families");
    let entries = std::fs::read_dir(&folder).expect("golden families");
    let folders = entries.map(|entry| entry.expect("an entry").path()).filter(|p| p.is_dir());
    let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<&'static str> =
        folders.filter_map(name).map(|name| &*Box::leak(name.into_boxed_str())).collect();
    names.sort_unstable();
    assert!(names.len() > 1, "{}: {names:?}", folder.display());
    names
}

fn checkpoints_of(first: &[&'static str], others: &[&str]) -> Vec<&'static str> {
    let of_family = |family: &&str| -> Vec<&'static str> {
        let path = |name: &&str| &*Box::leak(format!("{family}/{name}").into_boxed_str());
        others.iter().map(path).collect()
    };
    let all = other_families();
    first.iter().copied().chain(all.iter().flat_map(of_family)).collect()
}

/// All tiny checkpoints, by the name that [`checkpoint`] takes.
pub fn all_checkpoints() -> Vec<&'static str> {
    checkpoints_of(&["nested", "flat"], &["nested", "hub"])
}

/// The tiny checkpoint of each family that trains in f32, Qwen2.5-VL's first.
pub fn nested_checkpoints() -> Vec<&'static str> {
    checkpoints_of(&["nested"], &["nested"])
}

/// The path of `kind/name` in the golden numbers of a family: Qwen2.5-VL's, or those that `family/name` says.
fn in_family(kind: &str, name: &str) -> PathBuf {
    match name.split_once('/') {
        Some((family, name)) => golden("families").join(family).join(kind).join(name),
        None => golden("parity").join(kind).join(name),
    }
}

/// What transformers computes of one row; see `tools/golden/README.md`.
pub struct ParityCase {
    /// Its name, with the family's before it as in [`checkpoint`].
    pub name: String,
    /// The name of its checkpoint.
    pub checkpoint: String,
    /// Its files.
    pub folder: PathBuf,
    /// `case.json`.
    pub value: serde_json::Value,
}

impl ParityCase {
    /// The case of a name.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(name: &str) -> Self {
        let folder = in_family("cases", name);
        let value: serde_json::Value = read_json(folder.join("case.json"));
        let checkpoint = value["checkpoint"].as_str().expect("a checkpoint");
        let checkpoint = match name.split_once('/') {
            Some((family, _)) => format!("{family}/{checkpoint}"),
            None => checkpoint.to_owned(),
        };
        ParityCase { name: name.to_owned(), checkpoint, folder, value }
    }

    /// All cases of all families.
    ///
    /// # Panics
    /// If a family has fewer than eleven.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for family in std::iter::once("").chain(other_families()) {
            let prefix = if family.is_empty() { String::new() } else { format!("{family}/") };
            let folder = in_family("cases", &prefix);
            let entries = std::fs::read_dir(&folder)
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            let mut names: Vec<String> = entries
                .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            assert!(names.len() >= 11, "{}: {names:?}", folder.display());
            all.extend(names.iter().map(|name| Self::new(&format!("{prefix}{name}"))));
        }
        all
    }
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
