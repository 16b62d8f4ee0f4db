//! Where rows go: stdout line by line, or a file that appears when it is whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use base::console;
use base::unfinished::{self, Unfinished};
use serde_json::Value;

/// Finds out before the work whether the folder of `path` is there, which would else be found out after.
///
/// # Errors
/// Where it is not.
pub fn check_folder(path: &str) -> Result<()> {
    let folder = match Path::new(path).parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!("{path}: no folder `{}`", folder.display());
    }
    Ok(())
}

/// Writes `bytes` beside `path`, then gives them its name.
///
/// # Errors
/// Where they cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    unfinished::write_whole(path, bytes).with_context(|| format!("{}", path.display()))
}

static READER_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Whether rows found nobody to read them any more (`| head`): the work ends, and nothing is wrong.
pub fn reader_is_gone() -> bool {
    READER_IS_GONE.load(Ordering::Relaxed)
}

/// Writes lines to stdout, now.
///
/// # Errors
/// Where they cannot be written.
pub fn write_text(text: &str) -> Result<()> {
    let written = console::write_data(text);
    if written.as_ref().is_err_and(console::is_closed) {
        READER_IS_GONE.store(true, Ordering::Relaxed);
    }
    written.context("stdout")
}

/// JSON lines on their way out.
pub enum Output {
    /// Each line at once.
    Stdout,
    /// Each line as it comes, to what is no file: a device, a pipe.
    Device {
        /// Its name.
        path: PathBuf,
        /// Where lines go.
        file: BufWriter<File>,
    },
    /// All lines under the final name at the end.
    File {
        /// The final name.
        path: PathBuf,
        /// What is written so far, beside it.
        file: BufWriter<Unfinished>,
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
        let named = || format!("{}", path.display());
        if let Some(device) = unfinished::device(&path) {
            let file = BufWriter::new(device.with_context(named)?);
            return Ok(Self::Device { path, file });
        }
        unfinished::sweep(&path);
        let file = BufWriter::new(Unfinished::create(&path).with_context(named)?);
        Ok(Self::File { path, file })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&mut self, row: &Value) -> Result<()> {
        match self {
            Self::Stdout => write_text(&row.to_string()),
            Self::Device { path, file } => writeln!(file, "{row}")
                .and_then(|()| file.flush())
                .with_context(|| format!("{}", path.display())),
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
        let file = file.into_inner().map_err(|error| error.into_error());
        let finished = file.and_then(Unfinished::finish);
        finished.with_context(|| format!("{}", path.display()))
    }
}
