//! Weights in safetensors files, read through a memory map, one tensor at a time.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Kind, Tensor};

use crate::TorchError;
use crate::weight_index::{INDEX, choose, faults, passed_over};

/// Numbers that are compared at once.
const PIECE: usize = 1 << 22;

/// The weight files of a model folder: one `model.safetensors`, or shards with an index.
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<StoredFile>,
    /// Tensor name -> index into `files`.
    index: BTreeMap<String, usize>,
    is_sharded: bool,
    index_faults: Vec<String>,
    passed_over: Vec<String>,
}

/// A mapped file and its header, read once.
struct StoredFile {
    name: String,
    map: Mmap,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl WeightFiles {
    /// Opens the weight files of `folder` and reads their headers.
    ///
    /// # Errors
    /// No weight file, a broken index, a shard that is missing or cut off, a tensor in two shards.
    pub fn open(folder: &Path) -> Result<Self, TorchError> {
        let (names, listed) = choose(folder)?;
        let mut files: Vec<StoredFile> = Vec::new();
        let mut index = BTreeMap::new();
        for name in names {
            let file = StoredFile::open(folder, name)?;
            for tensor in file.header.tensors().into_keys() {
                if let Some(&other) = index.get(&tensor) {
                    let other: &StoredFile = &files[other];
                    let cause =
                        format!("weight {tensor} is in `{}` and in `{}`", other.name, file.name);
                    return Err(TorchError::Index { path: folder.join(INDEX), cause });
                }
                index.insert(tensor, files.len());
            }
            files.push(file);
        }
        let read: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let held = index.iter().map(|(tensor, &i)| (tensor.as_str(), read[i]));
        let index_faults =
            listed.as_ref().map(|listed| faults(listed, &held.collect())).unwrap_or_default();
        Ok(WeightFiles {
            folder: folder.to_path_buf(),
            passed_over: passed_over(folder, &read, listed.is_some()),
            is_sharded: listed.is_some(),
            index_faults,
            files,
            index,
        })
    }

    /// The index that names the shards; `None` where one file holds all.
    pub fn index_name(&self) -> Option<&'static str> {
        self.is_sharded.then_some(INDEX)
    }

    /// Where the index and the shards differ, a line for each tensor. All tensors of the shards are read nevertheless.
    pub fn index_faults(&self) -> &[String] {
        &self.index_faults
    }

    /// Safetensors files and indexes of the folder that are not read, sorted.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Whether two tensors of one shape hold the same numbers, to the precision of the coarser type.
    ///
    /// # Errors
    /// [`TorchError::Missing`], or a type that is not read.
    pub fn same_numbers(&self, a: &str, b: &str) -> Result<bool, TorchError> {
        if self.shape(a)? != self.shape(b)? {
            return Ok(false);
        }
        let kinds = [self.kind(a)?, self.kind(b)?];
        let bytes = [self.bytes(a)?, self.bytes(b)?];
        if kinds[0] == kinds[1] && bytes[0] == bytes[1] {
            return Ok(true);
        }
        let sizes = kinds.map(|kind| kind.elt_size_in_bytes());
        let common = match sizes[0].cmp(&sizes[1]) {
            _ if kinds[0] == kinds[1] => kinds[0],
            Ordering::Less => kinds[0],
            Ordering::Greater => kinds[1],
            Ordering::Equal => Kind::Float,
        };
        // In pieces: an embedding of a large model takes gigabytes.
        let pieces = |i: usize| bytes[i].chunks(sizes[i] * PIECE);
        for (x, y) in pieces(0).zip(pieces(1)) {
            let piece = |bytes: &[u8], i: usize| {
                let size = (bytes.len() / sizes[i]) as i64;
                Tensor::f_from_data_size(bytes, &[size], kinds[i])?.f_to_kind(common)
            };
            if !piece(x, 0)?.f_equal(&piece(y, 1)?)? {
                return Ok(false);
            }
        }
        Ok(true)
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
    ///
    /// # Errors
    /// [`TorchError::Missing`].
    pub fn file_of(&self, name: &str) -> Result<&str, TorchError> {
        Ok(&self.find(name)?.0.name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`TorchError::Missing`].
    pub fn shape(&self, name: &str) -> Result<Vec<i64>, TorchError> {
        Ok(dims(&self.find(name)?.1.shape))
    }

    /// The type of a tensor.
    ///
    /// # Errors
    /// [`TorchError::Missing`], or a type that is not read.
    pub fn kind(&self, name: &str) -> Result<Kind, TorchError> {
        kind_of(name, self.find(name)?.1.dtype)
    }

    /// A tensor in the type of the file, on the CPU.
    ///
    /// # Errors
    /// [`TorchError::Missing`], or a type that is not read.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TorchError> {
        let (bytes, kind) = (self.bytes(name)?, self.kind(name)?);
        Ok(Tensor::f_from_data_size(bytes, &self.shape(name)?, kind)?)
    }

    fn bytes(&self, name: &str) -> Result<&[u8], TorchError> {
        let (file, info) = self.find(name)?;
        let (from, to) = info.data_offsets;
        Ok(&file.map[file.data + from..file.data + to])
    }

    fn find(&self, name: &str) -> Result<(&StoredFile, &TensorInfo), TorchError> {
        let found = self.index.get(name).and_then(|&i| {
            let file = &self.files[i];
            Some((file, file.header.info(name)?))
        });
        found.ok_or_else(|| TorchError::Missing { name: name.into(), folder: self.folder.clone() })
    }
}

impl StoredFile {
    fn open(folder: &Path, name: String) -> Result<Self, TorchError> {
        let path = folder.join(&name);
        let map = map_file(&path)?;
        let (header_len, header) = SafeTensors::read_metadata(&map)
            .map_err(|e| TorchError::Format { path, cause: e.to_string() })?;
        // Eight bytes of length stand before the header.
        let data = 8 + header_len;
        Ok(StoredFile { name, map, header, data })
    }
}

/// A mapped safetensors file of which parts of tensors are read.
pub struct TensorFile {
    path: PathBuf,
    file: StoredFile,
}

impl TensorFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// A file that is missing or cut off.
    pub fn open(path: &Path) -> Result<Self, TorchError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = StoredFile::open(path.parent().unwrap_or(Path::new("")), name)?;
        Ok(TensorFile { path: path.into(), file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name and shape of each tensor.
    pub fn shapes(&self) -> impl Iterator<Item = (String, Vec<i64>)> {
        let tensors = self.file.header.tensors().into_iter();
        tensors.map(|(name, info)| (name, dims(&info.shape)))
    }

    /// The shape of a tensor, where there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        Some(dims(&self.file.header.info(name)?.shape))
    }

    /// `len` numbers of a tensor from `start`, flat, in the type of the file and on the CPU.
    ///
    /// # Errors
    /// [`TorchError::Format`] where the tensor is missing or ends before, or a type that is not read.
    pub fn range(&self, name: &str, start: i64, len: i64) -> Result<Tensor, TorchError> {
        let broken = |cause| TorchError::Format { path: self.path.clone(), cause };
        let info = self.file.header.info(name).ok_or_else(|| broken(format!("no `{name}`")))?;
        let numbers: i64 = dims(&info.shape).iter().product();
        if start < 0 || len < 0 || start + len > numbers {
            let end = start + len;
            return Err(broken(format!("`{name}`: numbers {start} to {end} of {numbers}")));
        }
        let kind = kind_of(name, info.dtype)?;
        let size = kind.elt_size_in_bytes();
        let from = self.file.data + info.data_offsets.0 + start as usize * size;
        let bytes = &self.file.map[from..from + len as usize * size];
        Ok(Tensor::f_from_data_size(bytes, &[len], kind)?)
    }
}

fn map_file(path: &Path) -> Result<Mmap, TorchError> {
    let io = |source| TorchError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only; a file changed by others while mapped is outside our contract,
    // as for every reader of safetensors.
    unsafe { Mmap::map(&file) }.map_err(io)
}

fn kind_of(name: &str, dtype: Dtype) -> Result<Kind, TorchError> {
    match dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        Dtype::F64 => Ok(Kind::Double),
        Dtype::I64 => Ok(Kind::Int64),
        Dtype::I16 => Ok(Kind::Int16),
        Dtype::U8 => Ok(Kind::Uint8),
        other => Err(TorchError::Dtype { name: name.into(), got: format!("{other:?}") }),
    }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&d| d as i64).collect()
}

/// All tensors of one safetensors file, by name.
///
/// # Errors
/// As [`WeightFiles::open`].
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, TorchError> {
    let map = map_file(path)?;
    let file = SafeTensors::deserialize(&map)
        .map_err(|e| TorchError::Format { path: path.into(), cause: e.to_string() })?;
    file.iter()
        .map(|(name, view)| {
            let kind = kind_of(name, view.dtype())?;
            let tensor = Tensor::f_from_data_size(view.data(), &dims(view.shape()), kind)?;
            Ok((name.to_string(), tensor))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{write_tensors, write_tensors_as};
    use tch::Device;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let a = Tensor::randn([3, 5], (Kind::Float, Device::Cpu));
        let b = Tensor::randn([4], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let list = [("a".to_string(), a.shallow_clone()), ("b".to_string(), b.shallow_clone())];
        write_tensors(&path, &list).unwrap();
        let files = WeightFiles::open(folder.path()).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(files.shape("a").unwrap(), [3, 5]);
        assert!(files.tensor("a").unwrap().equal(&a));
        assert!(files.tensor("b").unwrap().equal(&b));
        assert!(matches!(files.tensor("c"), Err(TorchError::Missing { .. })));
    }

    #[test]
    fn a_part_of_a_tensor_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let a = Tensor::randn([7, 5], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let list = [("a".to_string(), a.shallow_clone()), ("b".to_string(), Tensor::from(3.0f32))];
        write_tensors(&path, &list).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.shape("a").unwrap(), [7, 5]);
        assert!(file.range("a", 3, 20).unwrap().equal(&a.view([-1]).narrow(0, 3, 20)));
        assert!(file.range("b", 0, 1).unwrap().equal(&Tensor::from_slice(&[3.0f32])));
        for (name, start, len) in [("c", 0, 1), ("a", 30, 6), ("a", -1, 2)] {
            let error = file.range(name, start, len).unwrap_err().to_string();
            assert!(error.contains("state.safetensors") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn tensors_are_written_in_the_type_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let a = Tensor::randn([5, 3], (Kind::Float, Device::Cpu));
        let list = [("a".to_string(), a.transpose(0, 1), Kind::Half)];
        write_tensors_as(&path, &list).unwrap();
        let files = WeightFiles::open(folder.path()).unwrap();
        assert_eq!(files.kind("a").unwrap(), Kind::Half);
        let expected = a.transpose(0, 1).to_kind(Kind::Half);
        assert!(files.tensor("a").unwrap().equal(&expected));
        assert!(read_tensors(&path).unwrap()["a"].equal(&expected));
        let bools = [("b".to_string(), a.gt(0.0))];
        assert!(matches!(write_tensors(&path, &bools), Err(TorchError::Dtype { .. })));
        let nowhere = folder.path().join("absent/model.safetensors");
        let error = write_tensors_as(&nowhere, &list).unwrap_err();
        assert!(error.to_string().contains("absent/model.safetensors"));
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for shard in ["1.safetensors", "2.safetensors"] {
            let list = [("a".to_string(), Tensor::from_slice(&[1.0f32]))];
            write_tensors(&folder.path().join(shard), &list).unwrap();
        }
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let error = WeightFiles::open(folder.path()).err().unwrap().to_string();
        for part in ["index.json", "weight a", "1.safetensors", "2.safetensors"] {
            assert!(error.contains(part), "{error}");
        }
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
