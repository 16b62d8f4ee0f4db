//! Converts other data sets to VLM-R1's rows.
//!
//! One file per format; each reads its source and passes drafts to [`sink`]. The sink turns a draft
//! into a row, checks it with [`crate::row`] as training would, and counts what is refused. Random
//! draws depend only on the seed and on the position of an image in its file.

mod coco;
mod d3;
mod detection;
mod error;
mod image_store;
mod json;
mod llama_factory;
mod ovdeval;
mod parquet;
mod refcoco;
mod sink;
mod vlm_r1_json;

use std::path::{Path, PathBuf};

use base::run_folder::StopFlag;
use config::{DataFormat, RowPer};
use serde::Serialize;
use serde_json::Value;

pub use detection::{asked_labels, question as detection_question};
pub use error::{ConvertError, WriteError};
pub(crate) use json::{json_error, text_of};
use sink::Sink;

/// What is converted, and how.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Form of the source.
    pub format: DataFormat,
    /// Its files, in order.
    pub input: Vec<PathBuf>,
    /// COCO's file of boxes beside RefCOCO's expressions.
    pub annotations: Option<PathBuf>,
    /// The only split that is wanted.
    pub split: Option<String>,
    /// Where images are, or go to.
    pub image_folder: Option<PathBuf>,
    /// Whether images may lie where links in that folder lead.
    pub follow_links: bool,
    /// What is put before the name of each image.
    pub image_prefix: String,
    /// What of RefCOCO a row is made of.
    pub row_per: RowPer,
    /// Fewest and most absent categories to ask for beside the present ones.
    pub negatives: [usize; 2],
    /// Share of images that are asked for absent categories only.
    pub none_share: f64,
    /// Ask for all categories of OVDEval's file; none: as its evaluation does.
    pub all_categories: Option<bool>,
    /// Columns of Parquet files.
    pub columns: Columns,
    /// Seed of the draws.
    pub seed: u64,
}

/// Which columns of a table mean what.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Images; none: the first known name that is there.
    pub image: Option<String>,
    /// Question; none: the first known name that is there.
    pub question: Option<String>,
    /// Answer; none: the first known name that is there.
    pub answer: Option<String>,
    /// Further columns that rows keep.
    pub kept: Vec<String>,
}

/// What was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The reason, one word.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

/// What became of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConvertReport {
    /// Rows written.
    pub kept: u64,
    /// Rows left out, by reason.
    pub skipped: Vec<LeftOut>,
    /// Boxes left out of rows that were kept, by reason.
    pub boxes_left_out: Vec<LeftOut>,
    /// Image files written.
    pub images_written: u64,
    /// What else is odd, in lines.
    pub notes: Vec<String>,
}

/// Where rows go: the name of their split, and the row.
pub type WriteRow<'a> = &'a mut dyn FnMut(&str, &Value) -> Result<(), WriteError>;

/// Converts a source, row by row.
///
/// # Errors
/// A source that cannot be read or is no such data; rows that cannot be written; being stopped.
pub fn convert(
    options: &ConvertOptions,
    stop: &StopFlag,
    write: WriteRow<'_>,
) -> Result<ConvertReport, ConvertError> {
    let mut sink = Sink::new(options, stop, write);
    for input in &options.input {
        match options.format {
            DataFormat::RefCoco => refcoco::convert(input, options, &mut sink),
            DataFormat::Coco => coco::convert(input, options, &mut sink),
            DataFormat::D3 => d3::convert(input, options, &mut sink),
            DataFormat::OvdEval => ovdeval::convert(input, options, &mut sink),
            DataFormat::LlamaFactory => llama_factory::convert(input, &mut sink),
            DataFormat::Parquet => parquet::convert(input, options, &mut sink),
            DataFormat::VlmR1Json => vlm_r1_json::convert(input, &mut sink),
        }?;
    }
    Ok(sink.report())
}

/// Reads a file whole.
fn read_file(path: &Path) -> Result<Vec<u8>, ConvertError> {
    std::fs::read(path).map_err(|source| ConvertError::Io { path: path.to_owned(), source })
}

/// The value in a pickle file.
fn read_pickle(path: &Path) -> Result<Value, ConvertError> {
    let bytes = read_file(path)?;
    python::pickle::parse(&bytes).map_err(|fault| ConvertError::Pickle {
        path: path.to_owned(),
        byte: fault.byte,
        reason: fault.reason,
    })
}

/// The file's name without folder and end.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}
