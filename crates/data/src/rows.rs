//! Training files: `:`-separated lists of JSONL files and image folders, read and checked row by
//! row before anything is trained. One row's own checks are in [`crate::row`].

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

pub use base::config::OnBadRow;
use base::{Sample, SourceLine};

use crate::error::{BadRows, DataError, MAX_LISTED_ROWS, RowCause, RowError, io_error};
use crate::image::{self, ImageCause, ImageError};
use crate::image_folder::ImageFolder;
use crate::row::{RowChecks, parse_row};
use crate::sampler::shuffled;

/// Enough to tell image formats apart.
const NUM_HEAD_BYTES: u64 = 16;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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
            Err(DataError::ListLengths {
                first: FILES,
                num_first,
                second,
                num_second,
            })
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
    let entries: Vec<String> = list
        .split(':')
        .map(|entry| entry.trim().to_owned())
        .collect();
    match entries.iter().position(String::is_empty) {
        Some(i) => Err(DataError::EmptyEntry {
            flag,
            position: i + 1,
        }),
        None => Ok(entries),
    }
}

/// What was read.
#[derive(Debug)]
pub struct LoadReport {
    /// Good rows, in the order of the files.
    pub rows: Vec<Sample>,
    /// Bad rows that were left out ([`OnBadRow::Skip`]).
    pub skipped: Vec<RowError>,
}

/// Reads and checks all rows of all files.
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
    let mut bad = BadRowList {
        keep_all: on_bad_row == OnBadRow::Skip,
        listed: Vec::new(),
        count: 0,
    };
    for file in &data.files {
        load_file(file, checks, &mut rows, &mut bad)?;
    }
    if on_bad_row == OnBadRow::Skip || bad.listed.is_empty() {
        return Ok(LoadReport {
            rows,
            skipped: bad.listed,
        });
    }
    let first = bad.listed.remove(0);
    let rows = BadRows {
        first,
        further: bad.listed,
        num_further: bad.count - 1,
    };
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

fn load_file(
    file: &DataFile,
    checks: &RowChecks,
    rows: &mut Vec<Sample>,
    bad: &mut BadRowList,
) -> Result<(), DataError> {
    let folder = ImageFolder::new(file.image_folder.as_deref());
    let (rows_before, bad_before) = (rows.len(), bad.count);
    let (num_listed, method) = (bad.listed.len(), file.reward_method.as_deref());
    for_each_line(&file.path, |line, number| {
        let source = SourceLine::new(&file.path, number);
        match parse_row(line, source.clone(), &folder, method, checks).and_then(check_images) {
            Ok(sample) => rows.push(sample),
            Err(cause) => bad.push(RowError {
                source_line: source,
                cause,
            }),
        }
    })?;
    let num_bad = bad.count - bad_before;
    let path = file.path.clone();
    match (rows.len() - rows_before, num_bad) {
        (0, 0) => Err(DataError::NoRows { path }),
        (0, num_skipped) if bad.keep_all => {
            let first = Box::new(bad.listed.swap_remove(num_listed));
            Err(DataError::AllRowsBad {
                path,
                num_skipped,
                first,
            })
        }
        _ => Ok(()),
    }
}

/// Looks at the head of each image: a file that is no image is found before the run, a truncated
/// one when it is decoded.
pub(crate) fn check_images(sample: Sample) -> Result<Sample, RowCause> {
    for path in &sample.images {
        let refuse = |cause| ImageError::File {
            path: path.clone(),
            cause,
        };
        let head = read_head(path).map_err(|error| refuse(ImageCause::Unreadable(error)))?;
        // Of so few bytes only the magic can be judged; that they end early says nothing.
        if let Err(cause @ (ImageCause::Empty | ImageCause::NotAnImage { .. })) =
            image::decode(&head, u64::MAX)
        {
            return Err(refuse(cause).into());
        }
    }
    Ok(sample)
}

fn read_head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(NUM_HEAD_BYTES as usize);
    File::open(path)?
        .take(NUM_HEAD_BYTES)
        .read_to_end(&mut head)?;
    Ok(head)
}

/// Calls `visit` with each line that is not blank, and its number from 1.
pub(crate) fn for_each_line(
    path: &Path,
    mut visit: impl FnMut(&[u8], usize),
) -> Result<(), DataError> {
    for line in Lines::open(path)? {
        let (number, line) = line?;
        visit(&line, number);
    }
    Ok(())
}

/// The lines of a file that are not blank, with their numbers from 1, without their ends and a byte
/// order mark. Nothing follows an error.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
    is_over: bool,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        Ok(Self {
            reader: BufReader::new(File::open(path).map_err(io_error(path))?),
            path: path.to_owned(),
            number: 0,
            is_over: false,
        })
    }

    /// The next line as it stands in the file; none at the end.
    fn read(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let length = self.reader.read_until(b'\n', &mut line)?;
        Ok((length > 0).then_some(line))
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, Vec<u8>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            let line = match self.read() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(io_error(&self.path)(error)));
                }
            };
            self.number += 1;
            let line = content(&line, self.number == 1);
            if !line.trim_ascii().is_empty() {
                return Some(Ok((self.number, line.to_vec())));
            }
        }
        None
    }
}

/// A line without its end and, where it is the first, without a byte order mark.
fn content(line: &[u8], is_first: bool) -> &[u8] {
    let mark = if is_first { BYTE_ORDER_MARK } else { b"" };
    let line = line.strip_prefix(mark).unwrap_or(line);
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Holds out `ratio` of the samples (rounded up) for validation, drawn with `seed`; both parts keep
/// the order of the data. Returns `(training, validation)`.
///
/// # Errors
/// A ratio outside `[0, 1)`, or one that leaves nothing to train on.
pub fn split(
    samples: Vec<Sample>,
    ratio: f64,
    seed: u64,
) -> Result<(Vec<Sample>, Vec<Sample>), DataError> {
    let num_samples = samples.len();
    let refuse = |reason| {
        Err(DataError::Split {
            ratio,
            num_samples,
            reason,
        })
    };
    if !(0.0..1.0).contains(&ratio) {
        return refuse("the share must be at least 0 and below 1");
    }
    let num_held_out = (ratio * num_samples as f64).ceil() as usize;
    if num_held_out > 0 && num_held_out >= num_samples {
        return refuse("nothing would be left to train on");
    }
    let mut held_out = vec![false; num_samples];
    for index in &shuffled(num_samples, seed, crate::sampler::SPLIT_STREAM)[..num_held_out] {
        held_out[*index as usize] = true;
    }
    let (validation, training): (Vec<_>, Vec<_>) = samples
        .into_iter()
        .zip(held_out)
        .partition(|(_, held_out)| *held_out);
    let samples = |part: Vec<(Sample, bool)>| part.into_iter().map(|(sample, _)| sample).collect();
    Ok((samples(training), samples(validation)))
}
