//! Where rows go: stdout line by line, or a file that appears when it is whole.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::NamedTempFile;

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
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let file = NamedTempFile::new_in(folder).with_context(|| format!("{}", path.display()))?;
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
                let mut stdout = std::io::stdout().lock();
                writeln!(stdout, "{row}")
                    .and_then(|()| stdout.flush())
                    .context("stdout")
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
