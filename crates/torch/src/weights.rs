//! Weights in safetensors files: read through a memory map, one tensor at a time, and written as
//! transformers writes them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use tch::{Kind, Tensor};

use crate::TorchError;

/// The weight files of a model folder: one `model.safetensors`, or shards with an index.
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<(String, Mmap)>,
    /// Tensor name -> index into `files`.
    index: BTreeMap<String, usize>,
}

impl WeightFiles {
    /// Opens the weight files of `folder` and reads their headers.
    ///
    /// # Errors
    /// No weight file, a broken index, a shard that is missing or cut off.
    pub fn open(folder: &Path) -> Result<Self, TorchError> {
        let names = match folder.join("model.safetensors.index.json") {
            index if index.exists() => shard_names(&index)?,
            _ => vec!["model.safetensors".to_string()],
        };
        let mut files = Vec::new();
        let mut index = BTreeMap::new();
        for name in names {
            let map = map_file(&folder.join(&name))?;
            let header = parse(&map, &folder.join(&name))?;
            for tensor in header.names() {
                index.insert(tensor.to_string(), files.len());
            }
            files.push((name, map));
        }
        Ok(WeightFiles {
            folder: folder.to_path_buf(),
            files,
            index,
        })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The file that holds a tensor, relative to the folder.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&i| self.files[i].0.as_str())
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`TorchError::Missing`].
    pub fn shape(&self, name: &str) -> Result<Vec<i64>, TorchError> {
        self.with_view(name, |view| {
            Ok(view.shape().iter().map(|&d| d as i64).collect())
        })
    }

    /// A tensor in the type of the file, on the CPU.
    ///
    /// # Errors
    /// [`TorchError::Missing`], or a type that is not a floating one.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TorchError> {
        self.with_view(name, |view| to_tensor(name, view))
    }

    fn with_view<R>(
        &self,
        name: &str,
        read: impl FnOnce(&TensorView<'_>) -> Result<R, TorchError>,
    ) -> Result<R, TorchError> {
        let missing = || TorchError::Missing {
            name: name.into(),
            folder: self.folder.clone(),
        };
        let (file, map) = &self.files[*self.index.get(name).ok_or_else(missing)?];
        let header = parse(map, &self.folder.join(file))?;
        let view = header.tensor(name).map_err(|_| missing())?;
        read(&view)
    }
}

fn shard_names(index: &Path) -> Result<Vec<String>, TorchError> {
    let text = std::fs::read_to_string(index).map_err(|source| TorchError::Io {
        path: index.into(),
        source,
    })?;
    let broken = |cause: String| TorchError::Index {
        path: index.into(),
        cause,
    };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| broken(format!("not JSON: {e}")))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| broken("no object `weight_map`".into()))?;
    let mut names = Vec::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|f| !f.contains('/') && !f.contains(".."))
            .ok_or_else(|| {
                broken(format!(
                    "`weight_map.{tensor}`: expected a file name, got {file}"
                ))
            })?;
        if !names.iter().any(|n| n == file) {
            names.push(file.to_string());
        }
    }
    names.sort();
    Ok(names)
}

fn map_file(path: &Path) -> Result<Mmap, TorchError> {
    let io = |source| TorchError::Io {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only; a file changed by others while mapped is outside our contract,
    // as for every reader of safetensors.
    unsafe { Mmap::map(&file) }.map_err(io)
}

fn parse<'a>(map: &'a Mmap, path: &Path) -> Result<SafeTensors<'a>, TorchError> {
    SafeTensors::deserialize(map).map_err(|e| TorchError::Format {
        path: path.into(),
        cause: e.to_string(),
    })
}

fn to_tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, TorchError> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        other => {
            return Err(TorchError::Dtype {
                name: name.into(),
                got: format!("{other:?}"),
            });
        }
    };
    let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

/// All tensors of one safetensors file, by name.
///
/// # Errors
/// As [`WeightFiles::open`].
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, TorchError> {
    let map = map_file(path)?;
    let header = parse(&map, path)?;
    header
        .iter()
        .map(|(name, view)| Ok((name.to_string(), to_tensor(name, &view)?)))
        .collect()
}

/// Writes tensors to one safetensors file with the metadata that transformers asks for, and syncs it.
///
/// # Errors
/// The file cannot be written, or a tensor has a type safetensors lacks.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), TorchError> {
    let bytes = tensors
        .iter()
        .map(|(name, tensor)| tensor_bytes(name, tensor))
        .collect::<Result<Vec<_>, _>>()?;
    let format = |cause: String| TorchError::Format {
        path: path.into(),
        cause,
    };
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, _), (dtype, shape, data)) in tensors.iter().zip(&bytes) {
        let view =
            TensorView::new(*dtype, shape.clone(), data).map_err(|e| format(e.to_string()))?;
        views.push((name.as_str(), view));
    }
    let metadata = [("format".to_string(), "pt".to_string())]
        .into_iter()
        .collect();
    serialize_to_file(views, Some(metadata), path).map_err(|e| format(e.to_string()))?;
    let io = |source| TorchError::Io {
        path: path.into(),
        source,
    };
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io)
}

type TensorBytes = (Dtype, Vec<usize>, Vec<u8>);

fn tensor_bytes(name: &str, tensor: &Tensor) -> Result<TensorBytes, TorchError> {
    let dtype = match tensor.kind() {
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        other => {
            return Err(TorchError::Dtype {
                name: name.into(),
                got: format!("{other:?}"),
            });
        }
    };
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let mut data = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut data, tensor.numel())?;
    let shape = tensor.size().iter().map(|&d| d as usize).collect();
    Ok((dtype, shape, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let a = Tensor::randn([3, 5], (Kind::Float, Device::Cpu));
        let b = Tensor::randn([4], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let list = [
            ("a".to_string(), a.shallow_clone()),
            ("b".to_string(), b.shallow_clone()),
        ];
        write_tensors(&path, &list).unwrap();
        let files = WeightFiles::open(folder.path()).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(files.shape("a").unwrap(), [3, 5]);
        assert!(files.tensor("a").unwrap().equal(&a));
        assert!(files.tensor("b").unwrap().equal(&b));
        assert!(matches!(files.tensor("c"), Err(TorchError::Missing { .. })));
    }

    #[test]
    fn a_cut_off_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let a = Tensor::randn([3, 5], (Kind::Float, Device::Cpu));
        write_tensors(&path, &[("a".to_string(), a)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 7]).unwrap();
        let error = WeightFiles::open(folder.path()).err().unwrap();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}
