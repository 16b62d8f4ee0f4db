//! Images out of a file into a folder, each once, under the name of its content.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use base::unfinished::{Unfinished, sweep_folder};
use sha2::{Digest, Sha256};

use super::ConvertError;
use crate::image::{ImageCause, extension};

/// Bytes of the digest that name an image.
const NAME_BYTES: usize = 16;

/// The folder, and what is known to be in it.
#[derive(Debug)]
pub(super) struct ImageStore {
    folder: PathBuf,
    known: HashSet<String>,
    num_written: u64,
}

impl ImageStore {
    /// Makes the folder where it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, ConvertError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        // What a killed run left of images.
        sweep_folder(folder, |name| {
            let digits = name.bytes().take_while(u8::is_ascii_hexdigit);
            digits.count() == 2 * NAME_BYTES
        });
        Ok(Self { folder: folder.to_owned(), known: HashSet::new(), num_written: 0 })
    }

    /// The name of the file with these bytes, written if it was not there. Inside: why the bytes are no
    /// image.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<Result<String, ImageCause>, ConvertError> {
        let extension = match extension(bytes) {
            Ok(extension) => extension,
            Err(cause) => return Ok(Err(cause)),
        };
        let digest = Sha256::digest(bytes);
        let hex = digest[..NAME_BYTES].iter().map(|byte| format!("{byte:02x}"));
        let name = format!("{}.{extension}", hex.collect::<String>());
        if !self.known.contains(&name) {
            let path = self.folder.join(&name);
            let is_there = fs::metadata(&path).is_ok_and(|file| file.len() == bytes.len() as u64);
            if !is_there {
                self.write(&path, bytes).map_err(io(&path))?;
                self.num_written += 1;
            }
            self.known.insert(name.clone());
        }
        Ok(Ok(name))
    }

    /// Beside its name, then renamed: a file under its name is whole.
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = Unfinished::create(path)?;
        file.write_all(bytes)?;
        file.name()
    }

    pub(super) fn num_written(&self) -> u64 {
        self.num_written
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ConvertError + '_ {
    move |source| ConvertError::Io { path: path.to_owned(), source }
}
