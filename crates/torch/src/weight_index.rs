//! Which files of a model folder hold its weights, and where the folder contradicts itself about that.
//!
//! Source: huggingface/transformers v5.17, `modeling_utils.py`, `_get_resolved_checkpoint_files`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::TorchError;

/// The file of weights that lie in one.
const WHOLE: &str = "model.safetensors";
/// The index of weights that lie in shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What is named of a long list.
const NAMED: usize = 3;

/// Tensor -> file, as an index has it.
pub(crate) type Listed = BTreeMap<String, String>;

/// The files to read, and the index that names them where they are shards. `model.safetensors` comes first, as in transformers.
pub(crate) fn choose(folder: &Path) -> Result<(Vec<String>, Option<Listed>), TorchError> {
    if folder.join(WHOLE).is_file() {
        return Ok((vec![WHOLE.to_owned()], None));
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        return Err(TorchError::NoWeights {
            path: folder.join(WHOLE),
            others: weights_of_other_formats(folder),
        });
    }
    let listed = read_index(&index)?;
    let mut files: Vec<String> = listed.values().cloned().collect();
    files.sort();
    files.dedup();
    Ok((files, Some(listed)))
}

fn read_index(index: &Path) -> Result<Listed, TorchError> {
    let text = fs::read_to_string(index)
        .map_err(|source| TorchError::Io { path: index.into(), source })?;
    let broken = |cause: String| TorchError::Index { path: index.into(), cause };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| broken(format!("not JSON: {e}")))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| broken("no object `weight_map`".into()))?;
    if map.is_empty() {
        return Err(broken("`weight_map` names no file".into()));
    }
    let file_of = |(tensor, file): (&String, &serde_json::Value)| {
        let name = file.as_str().filter(|f| !f.contains('/') && !f.contains(".."));
        match name {
            Some(name) => Ok((tensor.clone(), name.to_owned())),
            None => Err(broken(format!("`weight_map.{tensor}`: expected a file name, got {file}"))),
        }
    };
    map.iter().map(file_of).collect()
}

/// Safetensors files and indexes of the folder that are not among those read, sorted.
pub(crate) fn passed_over(folder: &Path, read: &[&str], by_index: bool) -> Vec<String> {
    let mut names = names_with(folder, |name| {
        let is_weights = name.ends_with(".safetensors") && !read.contains(&name);
        let is_index = name.ends_with(".safetensors.index.json") && !(by_index && name == INDEX);
        is_weights || is_index
    });
    names.sort();
    names
}

fn weights_of_other_formats(folder: &Path) -> Vec<String> {
    let mut names = names_with(folder, |name| {
        [".safetensors", ".bin", ".pt", ".pth", ".gguf"].iter().any(|end| name.ends_with(end))
    });
    names.sort();
    names
}

fn names_with(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_wanted(name))
        .collect()
}

/// Where an index and the shards differ, a line each: `held` says which file holds a tensor.
pub(crate) fn faults(listed: &Listed, held: &BTreeMap<&str, &str>) -> Vec<String> {
    let mut faults = Vec::new();
    for (tensor, file) in listed {
        match held.get(tensor.as_str()) {
            Some(holder) if holder == file => {}
            Some(holder) => {
                faults.push(format!("{tensor} is listed in `{file}`, lies in `{holder}`"))
            }
            None => faults.push(format!("{tensor} is listed in `{file}`, lies nowhere")),
        }
    }
    let unlisted = held.iter().filter(|(tensor, _)| !listed.contains_key(**tensor));
    faults
        .extend(unlisted.map(|(tensor, file)| format!("{tensor} is not listed, lies in `{file}`")));
    faults
}

/// The first of a list, and how many more there are.
pub(crate) fn first_of(list: &[String]) -> String {
    let mut text = list[..list.len().min(NAMED)].join(", ");
    if list.len() > NAMED {
        text += &format!(" and {} more", list.len() - NAMED);
    }
    text
}
