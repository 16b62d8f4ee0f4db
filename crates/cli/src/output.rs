//! Where rows go: stdout line by line, or a file that appears when it is whole.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use base::{console, temporary_file};
use serde_json::Value;
use tempfile::NamedTempFile;

/// Finds out before the work whether the folder of `path` is there, which would else be found out after.
///
/// # Errors
/// Where it is not.
pub fn check_folder(path: &str) -> Result<()> {
    let folder = folder_of(Path::new(path));
    if !folder.is_dir() {
        bail!("{path}: no folder `{}`", folder.display());
    }
    Ok(())
}

/// The folder that a file of this name lies in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Writes `bytes` beside `path`, then gives them its name.
///
/// # Errors
/// Where they cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = temporary_file(folder_of(path))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("{}", path.display()))
}

static READER_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Whether rows found nobody to read them any more (`| head`): the work ends, and nothing is wrong.
pub fn reader_is_gone() -> bool {
    READER_IS_GONE.load(Ordering::Relaxed)
}

/// JSON lines on their way out.
pub enum Output {
    /// Each line at once.
    Stdout,
    /// All lines under the final name at the end.
    File {
        /// The final name.
        path: PathBuf,
        /// What is written so far, beside it.
        file: BufWriter<NamedTempFile>,
    },
}

impl Output {
    /// Opens `path`, or stdout.
    ///
    /// # Errors
    /// Where nothing can be written beside `path`.
    pub fn open(path: Option<&str>) -> Result<Self> {
        let Some(path) = path.filter(|path| *path != "-").map(PathBuf::from) else {
            return Ok(Self::Stdout);
        };
        let file =
            temporary_file(folder_of(&path)).with_context(|| format!("{}", path.display()))?;
        Ok(Self::File {
            path,
            file: BufWriter::new(file),
        })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&mut self, row: &Value) -> Result<()> {
        match self {
            Self::Stdout => {
                let written = console::write_data(&row.to_string());
                if written.as_ref().is_err_and(console::is_closed) {
                    READER_IS_GONE.store(true, Ordering::Relaxed);
                }
                written.context("stdout")
            }
            Self::File { path, file } => {
                writeln!(file, "{row}").with_context(|| format!("{}", path.display()))
            }
        }
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(self) -> Result<()> {
        let Self::File { path, file } = self else {
            return Ok(());
        };
        let save = || -> Result<()> {
            let file = file.into_inner().map_err(|error| error.into_error())?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        save().with_context(|| format!("{}", path.display()))
    }
}
