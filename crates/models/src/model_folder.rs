//! The error for a folder that holds no model: what is there, and where a model may be.

use std::fs;
use std::path::{Path, PathBuf};

use torch::first_of;

use crate::ModelError;
use crate::lora::is_adapter;

const CONFIG: &str = "config.json";
/// How far below the folder a model is looked for: the hub's cache has `snapshots/<commit>`.
const MAX_DEPTH: usize = 2;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// Refuses a folder that holds neither a model nor an adapter.
///
/// # Errors
/// [`ModelError::NoModel`], with what a better folder may be.
pub fn check_model_folder(folder: &Path) -> Result<(), ModelError> {
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
    Err(ModelError::NoModel {
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
