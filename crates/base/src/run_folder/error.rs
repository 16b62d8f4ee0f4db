//! What can go wrong with a run folder.

use std::path::PathBuf;

/// A run folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Something in it could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process writes to it.
    #[error("{}: in use by {}\nhint: wait for it, stop it, or choose another folder", dir.display(), holder(*pid))]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// The process, where it has said so.
        pid: Option<u32>,
    },
    /// A line that is no metrics, and not the last one.
    #[error("{}:{line}: not a line of metrics: {cause}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// An event file with a broken record, and not the last one.
    #[error("{}: broken record at byte {offset}", path.display())]
    Events {
        /// The file.
        path: PathBuf,
        /// Where the record starts.
        offset: usize,
    },
    /// A file of a checkpoint that is not what was written.
    #[error("{}: damaged: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was expected, and what is there.
        cause: String,
    },
    /// The step has such a folder already.
    #[error("{}: is already there", path.display())]
    AlreadyThere {
        /// The folder.
        path: PathBuf,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
