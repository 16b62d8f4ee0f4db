//! Reads a trainer state that was written by any number of ranks, as much of it as is asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tch::Tensor;
use torch::{TensorFile, TorchError};

use super::pieces::{Index, index_file, piece_name, whole_file};
use crate::TrainError;
use crate::checkpoint::{damage, is_finite};

/// Tensors of a state by key.
pub(crate) struct SavedTensors {
    /// The file that says what there is.
    source: PathBuf,
    files: BTreeMap<String, TensorFile>,
    keys: BTreeMap<String, Saved>,
    hint: &'static str,
}

/// Where the numbers of a tensor are.
enum Saved {
    /// In one file, by its key; its shape.
    Whole(Vec<i64>),
    /// In ranges of the flat tensor, `[start, length, file]`, in order and without gaps.
    Ranges(Vec<(i64, i64, String)>),
}

impl SavedTensors {
    /// Whether `folder` holds the state `stem`.
    pub fn exist(folder: &Path, stem: &str) -> bool {
        [whole_file(stem), index_file(stem)].iter().any(|file| folder.join(file).exists())
    }

    /// The state `stem` of `folder`; `hint` says what to do where a tensor is missing.
    ///
    /// # Errors
    /// [`TrainError::Damaged`].
    pub fn open(folder: &Path, stem: &str, hint: &'static str) -> Result<Self, TrainError> {
        let (whole, index) = (whole_file(stem), folder.join(index_file(stem)));
        if folder.join(&whole).exists() || !index.exists() {
            let path = folder.join(&whole);
            let file = TensorFile::open(&path).map_err(as_damage)?;
            let keys = file.shapes().map(|(name, shape)| (name, Saved::Whole(shape))).collect();
            return Ok(SavedTensors { source: path, files: [(whole, file)].into(), keys, hint });
        }
        let text = fs::read(&index).map_err(|error| damage(&index, error))?;
        let listed: Index = serde_json::from_slice(&text).map_err(|error| damage(&index, error))?;
        let mut files = BTreeMap::new();
        for (key, ranges) in &listed {
            check_ranges(key, ranges).map_err(|cause| damage(&index, cause))?;
            for (_, _, file) in ranges {
                if !files.contains_key(file) {
                    let opened = TensorFile::open(&folder.join(file)).map_err(as_damage)?;
                    files.insert(file.clone(), opened);
                }
            }
        }
        let keys = listed.into_iter().map(|(key, ranges)| (key, Saved::Ranges(ranges)));
        Ok(SavedTensors { source: index, files, keys: keys.collect(), hint })
    }

    /// Whether there is a tensor of that key.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// `len` numbers of a tensor from `start`, flat and on the CPU; the whole of it has `shape`.
    ///
    /// # Errors
    /// [`TrainError::State`] where it is missing or has another shape; [`TrainError::Damaged`] where a file is not as it was written, or a
    /// number is not finite.
    pub fn read(
        &self,
        key: &str,
        shape: &[i64],
        (start, len): (i64, i64),
    ) -> Result<Tensor, TrainError> {
        match self.keys.get(key) {
            None => {
                let cause = format!("no `{key}`\nhint: {}", self.hint);
                Err(TrainError::State { cause })
            }
            Some(Saved::Whole(saved)) if saved != shape => {
                let cause = format!("`{key}`: expected {shape:?}, got {saved:?}");
                Err(TrainError::State { cause })
            }
            Some(Saved::Whole(_)) => {
                let file = &self.files[&whole_name(&self.source)];
                let tensor = file.range(key, start, len).map_err(as_damage)?;
                finite(file.path(), key, tensor)
            }
            Some(Saved::Ranges(ranges)) => {
                let numbers: i64 = shape.iter().product();
                let saved = ranges.last().map_or(0, |(start, len, _)| start + len);
                if saved != numbers {
                    let cause = format!(
                        "`{key}`: expected {shape:?}, {numbers} numbers, got {saved} numbers"
                    );
                    return Err(TrainError::State { cause });
                }
                self.read_ranges(key, ranges, (start, len))
            }
        }
    }

    fn read_ranges(
        &self,
        key: &str,
        ranges: &[(i64, i64, String)],
        (start, len): (i64, i64),
    ) -> Result<Tensor, TrainError> {
        let mut parts = Vec::new();
        for (first, count, file) in ranges {
            let (from, to) = (start.max(*first), (start + len).min(first + count));
            if from >= to {
                continue;
            }
            let (file, name) = (&self.files[file], piece_name(key, *first));
            let found = file.shape(&name).map(|shape| shape.iter().product::<i64>());
            if found != Some(*count) {
                let found = found.map_or("none".to_owned(), |found| format!("{found} numbers"));
                let cause = format!("`{name}`: expected {count} numbers, got {found}");
                return Err(damage(file.path(), cause));
            }
            let part = file.range(&name, from - first, to - from).map_err(as_damage)?;
            parts.push(finite(file.path(), &name, part)?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

fn whole_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// That ranges follow one another from 0.
fn check_ranges(key: &str, ranges: &[(i64, i64, String)]) -> Result<(), String> {
    let mut next = 0;
    for (start, len, file) in ranges {
        if *start != next || *len <= 0 {
            return Err(format!(
                "`{key}`: expected a range from {next}, got {start} and {len} numbers of `{file}`"
            ));
        }
        if file.contains('/') {
            return Err(format!("`{key}`: expected a file name, got `{file}`"));
        }
        next = start + len;
    }
    Ok(())
}

fn finite(path: &Path, name: &str, tensor: Tensor) -> Result<Tensor, TrainError> {
    match is_finite(&tensor)? {
        true => Ok(tensor),
        false => Err(damage(path, format!("`{name}` is not finite"))),
    }
}

fn as_damage(error: TorchError) -> TrainError {
    match error {
        TorchError::Io { path, source } => damage(&path, source),
        TorchError::Format { path, cause } => damage(&path, cause),
        other => other.into(),
    }
}
