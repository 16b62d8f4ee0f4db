//! Training files: `:`-separated lists of JSONL files and image folders, read and checked row by
//! row before anything is trained. One row's own checks are in [`crate::row`].

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base::Example;
pub use config::OnBadRow;
use python::json::Lost;

use crate::error::{BadRows, DataError, MAX_LISTED_ROWS, RowCause, RowError};
use crate::image::{self, ImageCause, ImageError};
use crate::image_folder::ImageFolder;
use crate::image_folder::MAX_KNOWN;
use crate::order::shuffled;
use crate::row::{ReadRow, RowChecks, RowReader};
use crate::row_index::{RowIndex, Rows};
use crate::row_texts::{RowText, RowTexts};

/// Enough to tell image formats apart.
const NUM_HEAD_BYTES: u64 = 16;

/// One training file with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The JSONL file.
    pub path: PathBuf,
    /// The folder its images lie in; without one, rows with images are bad.
    pub image_folder: Option<PathBuf>,
    /// Accuracy method of rows that name none.
    pub reward_method: Option<String>,
}

/// The training files of a run, in the order they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    /// The files.
    pub files: Vec<DataFile>,
}

impl DataFiles {
    /// Pairs the `:`-separated lists of `--data_file_paths` and, where given, `--image_folders` and
    /// `--reward_method`.
    ///
    /// # Errors
    /// Lists of different lengths, empty entries.
    pub fn from_lists(
        data_file_paths: &str,
        image_folders: Option<&str>,
        reward_methods: Option<&str>,
    ) -> Result<Self, DataError> {
        const FILES: &str = "data_file_paths";
        let paths = entries(FILES, data_file_paths)?;
        let paired = |second: &'static str, list: Option<&str>| {
            let Some(list) = list else {
                return Ok(vec![None; paths.len()]);
            };
            let list = entries(second, list)?;
            if list.len() == paths.len() {
                return Ok(list.into_iter().map(Some).collect());
            }
            let (num_first, num_second) = (paths.len(), list.len());
            Err(DataError::ListLengths { first: FILES, num_first, second, num_second })
        };
        let folders = paired("image_folders", image_folders)?;
        let methods = paired("reward_method", reward_methods)?;
        let files = paths
            .iter()
            .zip(folders)
            .zip(methods)
            .map(|((path, folder), reward_method)| DataFile {
                path: path.into(),
                image_folder: folder.map(PathBuf::from),
                reward_method,
            })
            .collect();
        Ok(Self { files })
    }
}

fn entries(flag: &'static str, list: &str) -> Result<Vec<String>, DataError> {
    let entries: Vec<String> = list.split(':').map(|entry| entry.trim().to_owned()).collect();
    match entries.iter().position(String::is_empty) {
        Some(i) => Err(DataError::EmptyEntry { flag, position: i + 1 }),
        None => Ok(entries),
    }
}

/// What was read.
#[derive(Debug)]
pub struct LoadReport<R = Vec<Example>> {
    /// Good rows, in the order of the files.
    pub rows: R,
    /// Bad rows that were left out ([`OnBadRow::Skip`]).
    pub skipped: Vec<RowError>,
}

/// Reads and checks all rows of all files, and keeps them.
///
/// # Errors
/// A file that cannot be read or has no (good) row; with [`OnBadRow::Stop`], bad rows: the first
/// and up to ten more are listed, all are counted.
pub fn load_rows(
    data: &DataFiles,
    checks: &RowChecks,
    on_bad_row: OnBadRow,
) -> Result<LoadReport, DataError> {
    let mut rows = Vec::new();
    let skipped = read_rows(data, checks, on_bad_row, &mut |_, _, row| {
        rows.push(row.example);
        Ok(())
    })?;
    Ok(LoadReport { rows, skipped })
}

/// Reads and checks all rows of all files, and keeps their positions. `keep` decides on each good row, given the values in it
/// that JSON cannot hold.
///
/// # Errors
/// As [`load_rows`].
pub fn index_rows(
    data: &DataFiles,
    checks: &RowChecks,
    on_bad_row: OnBadRow,
    keep: &mut dyn FnMut(&Example, &[Lost]) -> bool,
) -> Result<LoadReport<Rows>, DataError> {
    let mut rows = RowIndex::new(checks);
    let skipped = read_rows(data, checks, on_bad_row, &mut |file, text, row| match keep(
        &row.example,
        &row.lost,
    ) {
        true => rows.add(file, text),
        false => Ok(()),
    })?;
    let rows = rows.finished();
    Ok(LoadReport { rows, skipped })
}

type Visit<'a> = &'a mut dyn FnMut(&DataFile, &RowText, ReadRow) -> Result<(), DataError>;

/// Shows `visit` each good row; returns the bad ones.
fn read_rows(
    data: &DataFiles,
    checks: &RowChecks,
    on_bad_row: OnBadRow,
    visit: Visit<'_>,
) -> Result<Vec<RowError>, DataError> {
    let mut bad =
        BadRowList { keep_all: on_bad_row == OnBadRow::Skip, listed: Vec::new(), count: 0 };
    for file in &data.files {
        read_file(file, checks, visit, &mut bad)?;
    }
    if on_bad_row == OnBadRow::Skip || bad.listed.is_empty() {
        return Ok(bad.listed);
    }
    let first = bad.listed.remove(0);
    let rows = BadRows { first, further: bad.listed, num_further: bad.count - 1 };
    Err(DataError::BadRows(Box::new(rows)))
}

/// Bad rows so far. Under `Stop` only those that the message shows are kept.
struct BadRowList {
    keep_all: bool,
    listed: Vec<RowError>,
    count: usize,
}

impl BadRowList {
    fn push(&mut self, row: RowError) {
        self.count += 1;
        if self.keep_all || self.listed.len() <= MAX_LISTED_ROWS {
            self.listed.push(row);
        }
    }
}

fn read_file(
    file: &DataFile,
    checks: &RowChecks,
    visit: Visit<'_>,
    bad: &mut BadRowList,
) -> Result<(), DataError> {
    let folder = ImageFolder::new(file.image_folder.as_deref());
    let reader = RowReader {
        folder: &folder,
        method: file.reward_method.as_deref(),
        checks,
        takes_problems: false,
    };
    let (mut num_good, bad_before, num_listed) = (0, bad.count, bad.listed.len());
    let mut images = CheckedImages::default();
    for text in RowTexts::open(&file.path)? {
        let mut text = text?;
        let source = text.source(&file.path);
        let row = std::mem::replace(&mut text.text, Ok(Vec::new()));
        let row = row.and_then(|row| {
            let read = reader.read(&row, source.clone())?;
            images.check(&read.example)?;
            text.text = Ok(row);
            Ok(read)
        });
        match row {
            Ok(row) => {
                num_good += 1;
                visit(file, &text, row)?;
            }
            Err(cause) => bad.push(RowError { source_line: source, cause }),
        }
    }
    let path = file.path.clone();
    match (num_good, bad.count - bad_before) {
        (0, 0) => Err(DataError::NoRows { path }),
        (0, num_skipped) if bad.keep_all => {
            let first = Box::new(bad.listed.swap_remove(num_listed));
            Err(DataError::AllRowsBad { path, num_skipped, first })
        }
        _ => Ok(()),
    }
}

/// Images whose first bytes were checked.
#[derive(Default)]
pub(crate) struct CheckedImages(HashSet<PathBuf>);

impl CheckedImages {
    /// Checks the first bytes of each image: a file that is no image is found before the run, a
    /// truncated one only when it is decoded.
    pub(crate) fn check(&mut self, example: &Example) -> Result<(), RowCause> {
        for path in &example.images {
            if self.0.contains(path) {
                continue;
            }
            check_image(path)?;
            if self.0.len() < MAX_KNOWN {
                self.0.insert(path.clone());
            }
        }
        Ok(())
    }
}

fn check_image(path: &Path) -> Result<(), ImageError> {
    let refuse = |cause| ImageError::File { path: path.to_owned(), cause };
    let head = read_head(path).map_err(|error| refuse(ImageCause::Unreadable(error)))?;
    // So few bytes show only the magic number; that they end early is expected.
    match image::decode(&head, u64::MAX) {
        Err(cause @ (ImageCause::Empty | ImageCause::NotAnImage { .. })) => Err(refuse(cause)),
        _ => Ok(()),
    }
}

fn read_head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(NUM_HEAD_BYTES as usize);
    File::open(path)?.take(NUM_HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// Holds out `ratio` of the examples (rounded up) for validation, drawn with `seed`; both parts keep
/// the order of the data. Returns `(training, validation)`.
///
/// # Errors
/// A ratio outside `[0, 1)`, or one that leaves nothing to train on.
pub fn split(examples: Rows, ratio: f64, seed: u64) -> Result<(Rows, Rows), DataError> {
    let num_examples = examples.len();
    let refuse = |reason| Err(DataError::Split { ratio, num_examples, reason });
    if !(0.0..1.0).contains(&ratio) {
        return refuse("the share must be at least 0 and below 1");
    }
    let num_held_out = (ratio * num_examples as f64).ceil() as usize;
    if num_held_out > 0 && num_held_out >= num_examples {
        return refuse("nothing would be left to train on");
    }
    let mut held_out = vec![false; num_examples];
    for index in &shuffled(num_examples, seed, crate::order::SPLIT_STREAM)[..num_held_out] {
        held_out[*index as usize] = true;
    }
    Ok(examples.parted(&held_out))
}
