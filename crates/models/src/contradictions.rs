//! Warnings about model folders that contradict themselves. What is read is what transformers 5.17 reads.

use std::io::ErrorKind;
use std::path::Path;

use base::console::first_of;
use base::model_folder::is_adapter;
use torch::{TorchError, WeightFiles};

use crate::ModelError;
use crate::checkpoint::HEAD;
use crate::names::Names;

/// The embedding that a head may be tied to, as transformers 5 names it in every family.
const EMBEDDING: &str = "model.language_model.embed_tokens.weight";

/// Warns of weights of the folder that are not read, and of a wrong index.
pub(crate) fn warn_of_files(files: &WeightFiles, path: &Path) {
    let folder = path.display();
    let left: Vec<String> = files
        .passed_over()
        .iter()
        // A complete adapter is read, or warned of, elsewhere.
        .filter(|name| !name.starts_with("adapter_model.") || !is_adapter(path))
        .map(|name| format!("`{name}`"))
        .collect();
    if !left.is_empty() {
        let read = files.index_name().map_or_else(
            || "`model.safetensors`".to_owned(),
            |index| format!("the shards of `{index}`"),
        );
        base::console::say_once(&format!(
            "warning: {folder}: weights are read from {read}, as in transformers; not read: {}\nhint: remove what is stale",
            first_of(&left)
        ));
    }
    if let Some(index) = files.index_name().filter(|_| !files.index_faults().is_empty()) {
        base::console::say_once(&format!(
            "warning: {folder}/{index}: does not fit the shards, whose weights are read as they lie: {}",
            first_of(files.index_faults())
        ));
    }
}

/// Warns where a folder with an adapter over `base` also has the weights of a whole model, which are not read, and where `base` has an
/// adapter of its own.
pub(crate) fn warn_of_adapter(adapter: &Path, base: &Path) {
    let same = match (adapter.canonicalize(), base.canonicalize()) {
        (Ok(adapter), Ok(base)) => adapter == base,
        _ => adapter == base,
    };
    if same {
        return;
    }
    if is_adapter(base) {
        base::console::say_once(&format!(
            "warning: {}: the adapter of this folder is not read, only the weights under it: {} lies over them",
            base.display(),
            adapter.display()
        ));
    }
    let whole = ["model.safetensors", "model.safetensors.index.json"];
    let whole = whole.into_iter().find(|name| adapter.join(name).is_file());
    if let Some(name) = whole {
        base::console::say_once(&format!(
            "warning: {}: an adapter and the weights of a whole model: the adapter is read, over {}; not read: `{name}`",
            adapter.display(),
            base.display()
        ));
    }
}

/// Whether a head that the configuration ties to the embedding stays tied: a stored head that differs counts, as in transformers.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn stays_tied(
    names: &Names,
    files: &WeightFiles,
    folder: &Path,
) -> Result<bool, ModelError> {
    if !files.contains(HEAD) || head_is_embedding(names, files)? {
        return Ok(true);
    }
    base::console::say_once(&format!(
        "warning: {}: config.json has `tie_word_embeddings` true, but `{HEAD}` differs from the embedding: the two are not tied\nhint: write `\"tie_word_embeddings\": false` into config.json; to tie them, remove `{HEAD}` from the weights",
        folder.display()
    ));
    Ok(false)
}

/// Whether the stored head holds the embedding's numbers; true where the embedding is missing, which loading refuses.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn head_is_embedding(names: &Names, files: &WeightFiles) -> Result<bool, ModelError> {
    let embedding = files.names().find(|name| names.current(name) == EMBEDDING);
    Ok(match embedding {
        Some(embedding) => files.same_numbers(embedding, HEAD)?,
        None => true,
    })
}

/// The weights of a folder; `None` where they are not there.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn weights_if_there(folder: &Path) -> Result<Option<WeightFiles>, ModelError> {
    match WeightFiles::open(folder) {
        Ok(files) => Ok(Some(files)),
        Err(TorchError::NoWeights { .. }) => Ok(None),
        Err(TorchError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
