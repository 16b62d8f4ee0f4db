//! The pages of the commands: what of their results is shown, and in which words. How a page looks is [`report`]'s.

pub mod compare;
mod completion_parts;
pub mod data_check;
pub mod demo;
pub mod eval;
mod eval_boxes;
mod page_image;
pub mod rewards;
pub mod thinning;

use std::error::Error;
use std::path::PathBuf;

/// Why a page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The page, or the numbers on it.
    #[error(transparent)]
    Report(#[from] report::ReportError),
    /// An image.
    #[error(transparent)]
    Image(#[from] data::image::ImageError),
    /// An evaluation.
    #[error(transparent)]
    Eval(#[from] ::eval::EvalError),
    /// A JPEG that could not be made.
    #[error(transparent)]
    Jpeg(std::io::Error),
    /// A file that could not be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// What JSON cannot hold.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Nothing to show.
    #[error("no held-out rows")]
    NoRows,
}

/// The error and its causes.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
