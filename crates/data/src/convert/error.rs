//! Why a source could not be converted.

use std::path::PathBuf;

/// Whatever hindered the writing of a row.
pub type WriteError = Box<dyn std::error::Error + Send + Sync>;

/// Why a source could not be converted. What is wrong with one row is no error: it is counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that is not the JSON that was expected.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's reason.
        reason: String,
    },
    /// A pickle that is broken or holds more than plain data.
    #[error("{}: byte {byte} of the pickle: {reason}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Offset of the instruction.
        byte: usize,
        /// What was met there.
        reason: String,
    },
    /// A Parquet file that cannot be read.
    #[error("{}: {reason}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        reason: String,
    },
    /// A file of another form than was said.
    #[error("{}: {reason}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is there, and what was expected.
        reason: String,
    },
    /// A setting that the format needs.
    #[error("`{flag}` is missing: {reason}")]
    Missing {
        /// The setting.
        flag: &'static str,
        /// What for.
        reason: &'static str,
    },
    /// A row that could not be written.
    #[error(transparent)]
    Write(WriteError),
    /// The user stopped the conversion.
    #[error("stopped: nothing was written")]
    Stopped,
}
