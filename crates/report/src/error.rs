//! Errors of reports.

use std::path::PathBuf;

use thiserror::Error;

/// An error of the report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a metrics file is not a JSON object.
    #[error("{}:{line}: {source}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// No values to take a mean of.
    #[error("mean of no values")]
    NoValues,
    /// A value is NaN or infinite.
    #[error("value {index}: got {value}, expected a finite number")]
    NotFinite {
        /// Index of the value.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Values that should be paired are not equally many.
    #[error("paired values: got {after} after and {before} before, expected as many")]
    Unpaired {
        /// Number of values before.
        before: usize,
        /// Number of values after.
        after: usize,
    },
    /// Bytes that are no image, or pixels that do not fill one.
    #[error("image: {source}")]
    Image {
        /// What the decoder or encoder said.
        source: image::ImageError,
    },
    /// A number of bytes that does not make `width * height` RGB pixels.
    #[error("image of {width} x {height}: got {got} bytes, expected three for each pixel")]
    PixelCount {
        /// Width, px.
        width: u32,
        /// Height, px.
        height: u32,
        /// Number of bytes.
        got: usize,
    },
}
