//! An adapter put into the weights it was trained over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::{Kind, Tensor, no_grad};
use torch::{WeightFiles, write_tensors_as};

use super::files::SavedAdapter;
use crate::checkpoint::{HEAD, finish_folder};
use crate::contradictions::head_is_embedding;
use crate::names::Names;
use crate::{ModelError, contradictions, family_of};

/// Writes the weights of `base` with `adapter` added, under the names, files and types of `base`, into
/// the existing folder `target`: `W + alpha / rank * B A`, in f32. One file's tensors are in memory at a time.
///
/// # Errors
/// An adapter whose layers or shapes are not those of `base`, a file that cannot be read or written.
pub fn merge_adapter(base: &Path, adapter: &SavedAdapter, target: &Path) -> Result<(), ModelError> {
    let rules = &family_of(base)?.names;
    let files = WeightFiles::open(base)?;
    contradictions::warn_of_adapter(&adapter.folder, base);
    contradictions::warn_of_files(&files, base);
    check(rules, &files, base, adapter)?;
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in files.names() {
        by_file.entry(files.file_of(name)?).or_default().push(name);
    }
    for (file, names) in by_file {
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let stored = files.tensor(name)?;
            let merged = match layer_of(rules, name)
                .and_then(|layer| Some((adapter.matrices(&layer)?, layer)))
            {
                Some(((a, b), layer)) => merged(&stored, a, b, scale_of(adapter, &layer))?,
                None => stored,
            };
            tensors.push((name.to_owned(), merged, files.kind(name)?));
        }
        write_tensors_as(&target.join(file), &tensors)?;
    }
    let has_head = files.contains(HEAD) && !head_is_embedding(rules, &files)?;
    finish_folder(&files, base, target, has_head)
}

/// The layer, as transformers 5 names it, of a stored weight.
fn layer_of(names: &Names, weight: &str) -> Option<String> {
    Some(names.current(weight.strip_suffix(".weight")?))
}

fn scale_of(adapter: &SavedAdapter, layer: &str) -> f64 {
    let (rank, alpha) = adapter.rank_and_alpha(layer);
    alpha / rank as f64
}

fn merged(stored: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor, ModelError> {
    no_grad(|| {
        let [a, b] = [a, b].map(|x| x.f_to_kind(Kind::Float));
        let update = b?.f_matmul(&a?)?;
        Ok(stored.f_to_kind(Kind::Float)?.f_add(&(update * scale))?)
    })
}

/// Refuses an adapter of another model before anything is written.
fn check(
    rules: &Names,
    files: &WeightFiles,
    base: &Path,
    adapter: &SavedAdapter,
) -> Result<(), ModelError> {
    let mut left: BTreeSet<&str> = adapter.modules().collect();
    let mut problems = Vec::new();
    for name in files.names() {
        let Some(layer) = layer_of(rules, name) else {
            continue;
        };
        let Some((a, b)) = adapter.matrices(&layer) else {
            continue;
        };
        left.remove(layer.as_str());
        let (rank, _) = adapter.rank_and_alpha(&layer);
        let expected = files.shape(name)?;
        let fits = a.size().first() == Some(&rank)
            && a.dim() == 2
            && b.dim() == 2
            && b.size()[1] == rank
            && expected == [b.size()[0], a.size()[1]];
        if !fits {
            let (a, b) = (a.size(), b.size());
            problems.push(format!(
                "weight {name} {expected:?}: the adapter's A is {a:?} and its B {b:?}, of rank {rank}"
            ));
        }
    }
    let lost =
        left.into_iter().map(|module| format!("adapter {module}: the model has no such layer"));
    problems.extend(lost);
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::Adapter { adapter: adapter.folder.clone(), base: base.to_path_buf(), problems })
}
