//! Model folders as transformers and PEFT write them: whether one is there, what it says of itself, and for a
//! folder that was given as a model and is none, what lies there and where a model may be.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::console::first_of;

const CONFIG: &str = "config.json";
/// What PEFT says of an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The file of weights that lie in one.
const WEIGHTS: &str = "model.safetensors";
/// The index of weights that lie in shards.
const INDEX: &str = "model.safetensors.index.json";
/// How far below the folder a model is looked for: the hub's cache has `snapshots/<commit>`.
const MAX_DEPTH: usize = 2;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// Why a folder is not taken for a model's.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// A folder that holds no model.
    #[error("{}: No such file{beside}\nhint: {hint}", folder.join("config.json").display())]
    NoModel {
        /// The folder.
        folder: PathBuf,
        /// What lies there instead.
        beside: String,
        /// Where a model may be.
        hint: String,
    },
    /// `config.json` is broken or lacks a key.
    #[error("{path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Whether a folder holds an adapter.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG).is_file()
}

/// `model_type` of `config.json`.
///
/// # Errors
/// No readable `config.json`, or no such key.
pub fn read_family(folder: &Path) -> Result<String, ModelFolderError> {
    let path = folder.join(CONFIG);
    let config = read_config(folder)?;
    config
        .get("model_type")
        .and_then(Value::as_str)
        .map(str::to_string)
        .ok_or(ModelFolderError::Config { path, cause: "no string `model_type`".into() })
}

/// `config.json` as it came.
///
/// # Errors
/// A missing file or broken JSON.
pub fn read_config(folder: &Path) -> Result<Value, ModelFolderError> {
    check_model_folder(folder)?;
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path)
        .map_err(|source| ModelFolderError::Io { path: path.clone(), source })?;
    serde_json::from_str(&text)
        .map_err(|e| ModelFolderError::Config { path, cause: format!("not JSON: {e}") })
}

/// Files of weights that a model folder, or that of an adapter, names and lacks.
pub fn missing_weights(folder: &Path) -> Vec<String> {
    if folder.join(WEIGHTS).is_file() {
        return Vec::new();
    }
    let index = match fs::read_to_string(folder.join(INDEX)) {
        Ok(index) => Some(index),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        // Told where it is read.
        Err(_) => return Vec::new(),
    };
    let Some(index) = index else {
        // An adapter's weights have another name.
        let ends = [".safetensors", ".bin", ".pt", ".pth", ".gguf"];
        let has_others =
            names_in(folder).iter().any(|name| ends.iter().any(|end| name.ends_with(end)));
        return if has_others { Vec::new() } else { vec![WEIGHTS.to_owned()] };
    };
    // A broken index is told where it is read.
    let index: Value = serde_json::from_str(&index).unwrap_or_default();
    let files = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let mut files: Vec<String> = files.filter_map(Value::as_str).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    if files.iter().any(|file| file.contains('/') || file == "..") {
        // Told where it is read.
        return Vec::new();
    }
    files.retain(|file| !folder.join(file).is_file());
    files
}

/// Refuses a folder that holds neither a model nor an adapter.
///
/// # Errors
/// [`ModelFolderError::NoModel`], with what a better folder may be.
pub fn check_model_folder(folder: &Path) -> Result<(), ModelFolderError> {
    if folder.join(CONFIG).exists() || is_adapter(folder) {
        return Ok(());
    }
    let names = names_in(folder);
    let weights = |ends: &[&str]| -> Vec<String> {
        let is_meant = |name: &&String| ends.iter().any(|end| name.ends_with(end));
        names.iter().filter(is_meant).map(|name| format!("`{name}`")).collect()
    };
    let packed = weights(&[".gguf", ".ggml"]);
    let adapter = weights(&["adapter_model.safetensors", "adapter_model.bin"]);
    let original = weights(&["consolidated.safetensors", "consolidated.00.pth", "params.json"]);
    let nested = models_below(folder, MAX_DEPTH);
    let (beside, hint) = if !nested.is_empty() {
        let shown: Vec<String> =
            nested.iter().map(|path| format!("`{}`", path.display())).collect();
        (Vec::new(), format!("there is one in {}", first_of(&shown)))
    } else if !packed.is_empty() {
        let hint = "GGUF is not read; take the folder that it was made of, in safetensors";
        (packed, hint.to_owned())
    } else if !adapter.is_empty() {
        let hint = "an adapter needs its adapter_config.json, which names the model under it";
        (adapter, hint.to_owned())
    } else if !original.is_empty() {
        let hint = "weights in their authors' own form are not read; take the folder in the form of transformers";
        (original, hint.to_owned())
    } else if let Some(above) = model_above(folder) {
        (Vec::new(), format!("there is one in `{}`", above.display()))
    } else {
        let hint = "a model folder is what `save_pretrained` of model and processor writes";
        (weights(&[".safetensors", ".bin", ".pt", ".pth"]), hint.to_owned())
    };
    Err(ModelFolderError::NoModel {
        folder: folder.to_owned(),
        beside: match beside.is_empty() {
            true => String::new(),
            false => format!(", but {}", first_of(&beside)),
        },
        hint,
    })
}

/// Folders below that hold a model, the latest checkpoint first.
fn models_below(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for name in names_in(folder) {
        let path = folder.join(&name);
        if path.join(CONFIG).is_file() || is_adapter(&path) {
            found.push(path);
        } else if depth > 1 && path.is_dir() {
            found.extend(models_below(&path, depth - 1));
        }
    }
    let number = |path: &PathBuf| -> u64 {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.rsplit('-').next().and_then(|end| end.parse().ok()).unwrap_or(0)
    };
    found.sort_by_key(|path| std::cmp::Reverse(number(path)));
    found
}

/// The folder that holds this one, where that is a model.
fn model_above(folder: &Path) -> Option<PathBuf> {
    let above = folder.canonicalize().ok()?.parent()?.to_owned();
    above.join(CONFIG).is_file().then_some(above)
}

/// Names in a folder, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_ENTRIES);
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
