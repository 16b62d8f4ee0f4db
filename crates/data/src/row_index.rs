//! The rows of a run by their position in their file. A row is read again when it is used and takes about thirty bytes of
//! memory, however long it is.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use base::{Example, SourceLine};

use crate::error::{DataError, RowError, io_error};
use crate::image_folder::ImageFolder;
use crate::row::{RowChecks, RowReader};
use crate::row_texts::RowText;
use crate::rows::DataFile;

/// Rows that were checked, in the order of their files.
#[derive(Clone, Debug)]
pub struct Rows {
    files: Arc<[RowFile]>,
    places: Vec<Place>,
}

/// A file that stays open, so that offsets stay valid if it is replaced.
#[derive(Debug)]
struct RowFile {
    path: PathBuf,
    store: Store,
    folder: ImageFolder,
    method: Option<String>,
    checks: RowChecks,
}

/// Where the texts are.
#[derive(Debug)]
enum Store {
    File(File),
    /// What came through a pipe, which cannot be read twice.
    Memory(Vec<u8>),
}

/// The position of a row.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    /// Digest of the text, to notice a changed file.
    digest: u64,
    length: u32,
    line: u32,
    /// 0 where the row has a line to itself.
    item: u32,
    file: u32,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A digest of the texts of all rows, in their order: other data has another.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for place in &self.places {
            (place.digest, place.item).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Reads a row.
    ///
    /// # Errors
    /// A file that cannot be read, or says something else than before.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn get(&self, index: usize) -> Result<Example, DataError> {
        let place = self.places[index];
        let file = &self.files[place.file as usize];
        let text = file.text(place)?;
        let source = file.source(place);
        if digest(&text) != place.digest {
            return Err(DataError::Changed { row: source });
        }
        let reader = RowReader {
            folder: &file.folder,
            method: file.method.as_deref(),
            checks: &file.checks,
            takes_problems: false,
        };
        let row = reader.read(&text, source.clone());
        row.map(|row| row.example)
            .map_err(|cause| DataError::Row(Box::new(RowError { source_line: source, cause })))
    }

    /// Reads the rows of a range, one after another.
    pub fn iter(&self) -> impl Iterator<Item = Result<Example, DataError>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Those that `is_held_out` does not name, and those that it does.
    pub(crate) fn parted(self, is_held_out: &[bool]) -> (Self, Self) {
        let of = |held_out: bool| {
            let places = self.places.iter().zip(is_held_out);
            let places = places.filter(|(_, of)| **of == held_out);
            Self {
                files: Arc::clone(&self.files),
                places: places.map(|(place, _)| *place).collect(),
            }
        };
        (of(false), of(true))
    }
}

impl RowFile {
    fn open(file: &DataFile, checks: &RowChecks) -> Result<Self, DataError> {
        let io = io_error(&file.path);
        // Asked before opening: to open a pipe again would wait for its other end.
        let is_file = std::fs::metadata(&file.path).map(|metadata| metadata.is_file());
        let store = is_file.and_then(|is_file| match is_file {
            true => File::open(&file.path).map(Store::File),
            false => Ok(Store::Memory(Vec::new())),
        });
        Ok(Self {
            path: file.path.clone(),
            store: store.map_err(io)?,
            folder: ImageFolder::new(file.image_folder.as_deref()).known(),
            method: file.reward_method.clone(),
            checks: checks.clone(),
        })
    }

    fn text(&self, place: Place) -> Result<Vec<u8>, DataError> {
        let length = place.length as usize;
        match &self.store {
            Store::File(file) => {
                let mut text = vec![0; length];
                match file.read_exact_at(&mut text, place.offset) {
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        let row = self.source(place);
                        Err(DataError::Changed { row })
                    }
                    read => read.map(|()| text).map_err(io_error(&self.path)),
                }
            }
            Store::Memory(all) => {
                let start = place.offset as usize;
                Ok(all[start..start + length].to_vec())
            }
        }
    }

    fn source(&self, place: Place) -> SourceLine {
        SourceLine {
            file: self.path.clone(),
            line: place.line as usize,
            item: (place.item > 0).then_some(place.item as usize),
        }
    }
}

/// Builds [`Rows`].
pub(crate) struct RowIndex<'a> {
    checks: &'a RowChecks,
    files: Vec<RowFile>,
    places: Vec<Place>,
    /// The file that rows are read from now.
    now: Option<DataFile>,
}

impl<'a> RowIndex<'a> {
    pub(crate) fn new(checks: &'a RowChecks) -> Self {
        Self { checks, files: Vec::new(), places: Vec::new(), now: None }
    }

    /// Takes a row of `file`, whose rows come one after another.
    pub(crate) fn add(&mut self, file: &DataFile, text: &RowText) -> Result<(), DataError> {
        let Ok(bytes) = &text.text else { return Ok(()) };
        let is_new = self.now.as_ref() != Some(file);
        if is_new || self.files.is_empty() {
            self.files.push(RowFile::open(file, self.checks)?);
            self.now = Some(file.clone());
        }
        let index = self.files.len() - 1;
        let offset = match &mut self.files[index].store {
            Store::File(_) => text.offset,
            Store::Memory(all) => {
                all.extend_from_slice(bytes);
                (all.len() - bytes.len()) as u64
            }
        };
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        self.places.push(Place {
            offset,
            digest: digest(bytes),
            length: small(bytes.len()),
            line: small(text.line),
            item: small(text.item.unwrap_or(0)),
            file: small(index),
        });
        Ok(())
    }

    pub(crate) fn finished(mut self) -> Rows {
        self.places.shrink_to_fit();
        Rows { files: self.files.into(), places: self.places }
    }
}

fn digest(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row took 2.9 kB when all of them were kept as they were read.
    #[test]
    fn a_row_costs_few_bytes_however_long_it_is() {
        assert!(size_of::<Place>() <= 32);
    }
}
