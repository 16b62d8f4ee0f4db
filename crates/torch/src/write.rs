//! Writes a safetensors file a part of a tensor at a time, so that a checkpoint takes little memory beside its tensors, and computes its
//! checksum on the way.
//!
//! Order and header are those of safetensors' own writer, which takes whole tensors and gives no checksum.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crc32c::crc32c_append;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor, no_grad};

use crate::TorchError;

/// Scalars that are converted and copied at a time.
const PART: i64 = 1 << 22;

/// A file as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// CRC-32C of all its bytes.
    pub crc32c: u32,
}

/// Writes tensors to one safetensors file with the metadata that transformers asks for, and syncs it.
///
/// # Errors
/// The file cannot be written, or a tensor has a type safetensors lacks.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<Written, TorchError> {
    let typed: Vec<(String, Tensor, Kind)> = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.shallow_clone(), tensor.kind()))
        .collect();
    write_tensors_as(path, &typed)
}

/// As [`write_tensors`], each tensor in the type given with it.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_tensors_as(
    path: &Path,
    tensors: &[(String, Tensor, Kind)],
) -> Result<Written, TorchError> {
    let mut sorted = Vec::with_capacity(tensors.len());
    for (name, tensor, kind) in tensors {
        sorted.push((dtype_of(name, *kind)?, name, tensor, *kind));
    }
    // Types of large scalars first, so that all are aligned.
    sorted.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let mut out = Out::create(path)?;
    let header =
        header(&sorted).map_err(|cause| TorchError::Format { path: path.into(), cause })?;
    out.write(&header)?;
    for (_, _, tensor, kind) in &sorted {
        out.tensor(tensor, *kind)?;
    }
    out.finish()
}

type Outgoing<'a> = (Dtype, &'a String, &'a Tensor, Kind);

/// Length and text of the header, padded to 8 bytes.
fn header(sorted: &[Outgoing<'_>]) -> Result<Vec<u8>, String> {
    let mut start = 0;
    let infos = sorted.iter().map(|(dtype, name, tensor, kind)| {
        let end = start + tensor.numel() * kind.elt_size_in_bytes();
        let info = TensorInfo {
            dtype: *dtype,
            shape: tensor.size().iter().map(|&d| d as usize).collect(),
            data_offsets: (start, end),
        };
        start = end;
        ((*name).clone(), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).map_err(|e| e.to_string())?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([(text.len() as u64).to_le_bytes().as_slice(), &text].concat())
}

/// A file that is being written, with its sum so far.
struct Out {
    file: File,
    written: Written,
    /// The bytes of a part.
    buffer: Vec<u8>,
}

impl Out {
    /// A new file: one that is there may be mapped by somebody, who keeps it.
    fn create(path: &Path) -> Result<Self, TorchError> {
        let create = || {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            OpenOptions::new().write(true).create_new(true).open(path)
        };
        let written = Written { path: path.into(), bytes: 0, crc32c: 0 };
        Ok(Self {
            file: create().map_err(|source| failed(path, source))?,
            written,
            buffer: Vec::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TorchError> {
        self.written.bytes += bytes.len() as u64;
        self.written.crc32c = crc32c_append(self.written.crc32c, bytes);
        self.file.write_all(bytes).map_err(|source| failed(&self.written.path, source))
    }

    fn tensor(&mut self, tensor: &Tensor, kind: Kind) -> Result<(), TorchError> {
        no_grad(|| {
            let tensor = tensor.detach();
            // Of weights all are contiguous, and this copies nothing.
            let flat = tensor.f_contiguous()?.f_view([-1])?;
            let len = flat.size()[0];
            let mut start = 0;
            while start < len {
                let count = PART.min(len - start);
                let part = flat.f_narrow(0, start, count)?.f_to_device(Device::Cpu)?;
                self.part(&part.f_to_kind(kind)?.f_contiguous()?, kind)?;
                start += count;
            }
            Ok(())
        })
    }

    fn part(&mut self, part: &Tensor, kind: Kind) -> Result<(), TorchError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let len = part.numel() * kind.elt_size_in_bytes();
        let missing = len.saturating_sub(buffer.len());
        buffer
            .try_reserve(missing)
            .map_err(|_| failed(&self.written.path, io::Error::from(ErrorKind::OutOfMemory)))?;
        buffer.resize(len, 0);
        part.f_copy_data_u8(&mut buffer, part.numel())?;
        let written = self.write(&buffer);
        self.buffer = buffer;
        written
    }

    fn finish(self) -> Result<Written, TorchError> {
        let synced = self.file.sync_all();
        synced.map_err(|source| failed(&self.written.path, source))?;
        Ok(self.written)
    }
}

fn failed(path: &Path, source: io::Error) -> TorchError {
    TorchError::Io { path: path.into(), source }
}

fn dtype_of(name: &str, kind: Kind) -> Result<Dtype, TorchError> {
    match kind {
        Kind::Float => Ok(Dtype::F32),
        Kind::Half => Ok(Dtype::F16),
        Kind::BFloat16 => Ok(Dtype::BF16),
        Kind::Double => Ok(Dtype::F64),
        Kind::Int64 => Ok(Dtype::I64),
        Kind::Int16 => Ok(Dtype::I16),
        Kind::Uint8 => Ok(Dtype::U8),
        other => Err(TorchError::Dtype { name: name.into(), got: crate::kind_name(other) }),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::{View, serialize};

    use super::*;

    /// What safetensors' own writer makes of it.
    struct Whole(Dtype, Vec<usize>, Vec<u8>);

    impl View for Whole {
        fn dtype(&self) -> Dtype {
            self.0
        }
        fn shape(&self) -> &[usize] {
            &self.1
        }
        fn data(&self) -> std::borrow::Cow<'_, [u8]> {
            self.2.as_slice().into()
        }
        fn data_len(&self) -> usize {
            self.2.len()
        }
    }

    #[test]
    fn a_file_is_that_of_safetensors_and_its_sum_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let options = (Kind::Float, Device::Cpu);
        // Over one part, a scalar, nothing, a view.
        let large = Tensor::randn([PART + 5], options).to_kind(Kind::BFloat16);
        let turned = Tensor::randn([3, 5], options).transpose(0, 1);
        let list = [
            ("z".to_owned(), large, Kind::BFloat16),
            ("turned".to_owned(), turned, Kind::Half),
            ("one".to_owned(), Tensor::from(2.5f32), Kind::Float),
            ("none".to_owned(), Tensor::zeros([0, 4], options), Kind::Float),
        ];
        let written = write_tensors_as(&path, &list).unwrap();
        let views = list.iter().map(|(name, tensor, kind)| {
            let tensor = tensor.to_kind(*kind).contiguous();
            let mut data = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
            tensor.copy_data_u8(&mut data, tensor.numel());
            let shape = tensor.size().iter().map(|&d| d as usize).collect();
            (name, Whole(dtype_of(name, *kind).unwrap(), shape, data))
        });
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let expected = serialize(views, Some(format)).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert!(bytes == expected);
        assert_eq!(written.bytes, bytes.len() as u64);
        assert_eq!(written.crc32c, crc32c::crc32c(&bytes));
    }

    #[test]
    fn who_has_mapped_a_file_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let of = |value: f32| [("a".to_owned(), Tensor::from_slice(&[value; 1000]))];
        write_tensors(&path, &of(1.0)).unwrap();
        let opened = File::open(&path).unwrap();
        write_tensors(&path, &of(2.0)).unwrap();
        let len = opened.metadata().unwrap().len();
        assert_eq!(len, fs::metadata(&path).unwrap().len());
        assert!(fs::read(&path).unwrap().ends_with(&2.0f32.to_le_bytes()));
    }
}
