//! Features on disk: one safetensors file for each image, named by tower and content.
//!
//! A file is written beside its name, then renamed, so that processes that share the folder see whole
//! files only; two that compute the same image write the same. A checksum finds what the disk damaged.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use torch::{read_tensors, write_tensors};

use super::{Kept, Key, bytes};
use crate::ModelError;

/// What features must be to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Image tokens, `feature_size`.
    pub dims: [i64; 2],
    /// The compute type.
    pub kind: Kind,
    /// Where they are computed with.
    pub device: Device,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    /// A disk that was full once is left alone.
    is_full: Cell<bool>,
}

impl Store {
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        fs::create_dir_all(folder)
            .map_err(|source| ModelError::Io { path: folder.to_path_buf(), source })?;
        Ok(Store { folder: folder.to_path_buf(), is_full: Cell::new(false) })
    }

    fn path(&self, key: &Key) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("{name}.safetensors"))
    }

    /// The features under `key`; `None` where there is no file.
    pub fn read(&self, key: &Key, shape: Shape) -> Result<Option<Kept>, ModelError> {
        let path = self.path(key);
        if !path.exists() {
            return Ok(None);
        }
        let mut tensors = read_tensors(&path)?;
        let refuse = |cause: String| ModelError::Features { path: path.clone(), cause };
        let mut take = |name: &str| {
            let tensor = tensors.remove(name);
            tensor.ok_or_else(|| refuse(format!("no tensor `{name}`")))
        };
        let (features, sum, secs) = (take("features")?, take("sha256")?, take("secs")?);
        if (features.size(), features.kind()) != (shape.dims.to_vec(), shape.kind) {
            let expected = format!("{} {:?}", torch::kind_name(shape.kind), shape.dims);
            let got = format!("{} {:?}", torch::kind_name(features.kind()), features.size());
            return Err(refuse(format!("features: expected {expected}, got {got}")));
        }
        let expected = checksum(&features)?;
        if sum.kind() != Kind::Int64 || !sum.equal(&expected) {
            return Err(refuse("the checksum is not that of the features".into()));
        }
        let secs = (secs.numel() == 1).then(|| f64::try_from(secs.view(1i64).get(0)));
        let secs = secs.transpose()?.filter(|secs| *secs >= 0.0);
        Ok(Some(Kept {
            features: features.f_to_device(shape.device)?,
            secs: secs.ok_or_else(|| refuse("secs: expected one number".into()))?,
        }))
    }

    /// Writes features that are not there yet; after a failure no more.
    pub fn write(&self, key: &Key, kept: &Kept) -> Result<(), ModelError> {
        if self.is_full.get() {
            return Ok(());
        }
        let written = self.write_whole(&self.path(key), kept);
        self.is_full.set(written.is_err());
        written
    }

    fn write_whole(&self, path: &Path, kept: &Kept) -> Result<(), ModelError> {
        let io = |source| ModelError::Io { path: path.to_path_buf(), source };
        let file = base::temporary_file(&self.folder).map_err(io)?.into_temp_path();
        let tensors = [
            ("features".to_owned(), kept.features.shallow_clone()),
            ("sha256".to_owned(), checksum(&kept.features)?),
            ("secs".to_owned(), Tensor::from_slice(&[kept.secs])),
        ];
        write_tensors(&file, &tensors)?;
        file.persist(path).map_err(|error| io(error.error))
    }
}

/// SHA-256 of the numbers, as four integers.
fn checksum(features: &Tensor) -> Result<Tensor, ModelError> {
    let sum = Sha256::digest(bytes(features)?);
    let words: Vec<i64> = sum
        .chunks_exact(8)
        .map(|word| word.iter().fold(0, |sum, &byte| sum << 8 | i64::from(byte)))
        .collect();
    Ok(Tensor::f_from_slice(&words)?)
}
