//! The files that a trainer state is written to: one, or a piece for each rank and an index.
//!
//! A tensor of a piece is called `KEY@START`: consecutive numbers of the flat tensor `KEY`, from `START`. The index lists for each key
//! `[start, length, file]`, in order.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch::Written;
use torch::ranks::Group;

use crate::TrainError;

/// `[start, length, file]` of each key.
pub(crate) type Index = BTreeMap<String, Vec<(i64, i64, String)>>;

/// The file that one rank writes of all.
pub(crate) fn whole_file(stem: &str) -> String {
    format!("{stem}.safetensors")
}

/// The index of pieces.
pub(crate) fn index_file(stem: &str) -> String {
    format!("{stem}.index.json")
}

/// The name of consecutive numbers of `key`.
pub(crate) fn piece_name(key: &str, start: i64) -> String {
    format!("{key}@{start}")
}

/// What a rank says of its piece to the others.
#[derive(Serialize, Deserialize)]
struct Report {
    file: String,
    bytes: u64,
    crc32c: u32,
    /// Name and numbers of each tensor.
    tensors: Vec<(String, i64)>,
}

/// Writes what this rank holds of a state as its piece in `folder`, and on rank 0 the index; all see the same folder. Collective: a failure of
/// one is one of all. Rank 0 checks that the pieces of the others are there, as long as they say. Returns the files that all wrote.
///
/// # Errors
/// A file that cannot be written, here or by another rank; ranks that see different folders.
pub(crate) fn write(
    folder: &Path,
    stem: &str,
    group: &Group,
    tensors: &[(String, Tensor)],
) -> Result<Vec<Written>, TrainError> {
    let file = format!("{stem}-{:05}-of-{:05}.safetensors", group.rank() + 1, group.size());
    let written = torch::write_tensors(&folder.join(&file), tensors);
    let own = written.as_ref().map_err(ToString::to_string).map(|written| Report {
        file,
        bytes: written.bytes,
        crc32c: written.crc32c,
        tensors: tensors.iter().map(|(name, x)| (name.clone(), x.numel() as i64)).collect(),
    });
    let reports = exchange(group, &own)?;
    written?;
    let reports = all_of(reports)?;
    let checked = match group.rank() {
        0 => check_and_index(folder, stem, &reports).map_err(|error| error.to_string()),
        _ => Ok(()),
    };
    all_of(exchange(group, &checked)?)?;
    let of = |report: Report| {
        let (bytes, crc32c) = (report.bytes, report.crc32c);
        Written { path: folder.join(report.file), bytes, crc32c }
    };
    Ok(reports.into_iter().map(of).collect())
}

/// What each rank has to say.
fn exchange<T: Serialize + for<'a> Deserialize<'a>>(
    group: &Group,
    own: &Result<T, String>,
) -> Result<Vec<Result<T, String>>, TrainError> {
    let state = |error: serde_json::Error| TrainError::State { cause: error.to_string() };
    let all = group.exchange(serde_json::to_vec(own).map_err(state)?)?;
    all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(state)).collect()
}

/// What all say, or the first failure.
fn all_of<T>(said: Vec<Result<T, String>>) -> Result<Vec<T>, TrainError> {
    let named = |(rank, said): (usize, Result<T, String>)| {
        said.map_err(|cause| TrainError::State { cause: format!("rank {rank}: {cause}") })
    };
    said.into_iter().enumerate().map(named).collect()
}

fn check_and_index(folder: &Path, stem: &str, reports: &[Report]) -> Result<(), TrainError> {
    let mut index = Index::new();
    for (rank, Report { file, bytes, tensors, .. }) in reports.iter().enumerate() {
        let path = folder.join(file);
        let found = fs::metadata(&path).map(|data| data.len()).ok();
        if found != Some(*bytes) {
            let found = found.map_or("none".to_owned(), |found| format!("{found} bytes"));
            let cause = format!(
                "{}: rank {rank} wrote {bytes} bytes, rank 0 finds {found}\nhint: --output_dir must be a folder that all hosts share",
                path.display()
            );
            return Err(TrainError::State { cause });
        }
        for (name, len) in tensors {
            let (key, start) = parse(name).ok_or_else(|| {
                let cause = format!("{}: `{name}` is not `KEY@START`", path.display());
                TrainError::State { cause }
            })?;
            index.entry(key.to_owned()).or_default().push((start, *len, file.clone()));
        }
    }
    index.values_mut().for_each(|ranges| ranges.sort());
    let path = folder.join(index_file(stem));
    let text = serde_json::to_string(&index)
        .map_err(|error| TrainError::State { cause: error.to_string() })?;
    let write = || {
        use std::io::Write;
        let mut file = fs::File::create(&path)?;
        writeln!(file, "{text}")?;
        file.sync_all()
    };
    write().map_err(|source| TrainError::Io { path: path.clone(), source })
}

/// Key and start of a tensor of a piece.
fn parse(name: &str) -> Option<(&str, i64)> {
    let (key, start) = name.rsplit_once('@')?;
    Some((key, start.parse().ok()?))
}
