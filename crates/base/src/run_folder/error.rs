//! What can go wrong with a run folder.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// A run folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Something in it could not be read or written.
    #[error("{}: {source}{}", path.display(), hint(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: Error,
    },
    /// Another process writes to it.
    #[error("{}: in use by {}\nhint: {}", dir.display(), holder(*pid, host.as_deref()), way_out(file.as_deref()))]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// The process, where it has said so.
        pid: Option<u32>,
        /// Where it runs, unless on this host.
        host: Option<String>,
        /// The file that says so, where the file system has no locks.
        file: Option<PathBuf>,
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
}

fn holder(pid: Option<u32>, host: Option<&str>) -> String {
    let process = match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    };
    match host {
        Some(host) if !host.is_empty() => format!("{process} on host `{host}`"),
        _ => process,
    }
}

fn way_out(file: Option<&Path>) -> String {
    match file {
        Some(file) => format!(
            "wait for it, stop it, or choose another folder; if it runs no more, delete `{}`",
            file.display()
        ),
        None => "wait for it, stop it, or choose another folder".to_owned(),
    }
}

/// What to do about an error of the disk: empty, or a line `hint: ...` with its line break before it.
pub fn hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull => {
            "\nhint: the disk is full: free some space there, then give the same command again"
        }
        ErrorKind::QuotaExceeded => {
            "\nhint: your quota of that disk is used up: free some space there, then give the same command again"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "\nhint: the disk is mounted read-only: choose a folder elsewhere, or mount it anew (after an error of the disk the system does this by itself)"
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            "\nhint: the disk failed, or the network to it: see `dmesg`"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_disk_names_file_cause_and_way_out() {
        let errors = [
            (28, "No space left", "is full"),
            (122, "uota exceeded", "quota"),
            (30, "Read-only", "mounted read-only"),
            (5, "nput/output error", "dmesg"),
        ];
        for (code, cause, way_out) in errors {
            let (path, source) = ("out/metrics.jsonl".into(), Error::from_raw_os_error(code));
            let error = RunError::Io { path, source };
            let text = crate::console::describe(&error);
            let (first, last) = text.split_once("\nhint: ").unwrap();
            assert!(first.starts_with("out/metrics.jsonl: "), "{text}");
            assert!(first.contains(cause) && last.contains(way_out), "{text}");
            assert_eq!(text.matches(cause).count(), 1, "{text}");
        }
        assert_eq!(hint(&Error::from_raw_os_error(13)), "");
    }
}
