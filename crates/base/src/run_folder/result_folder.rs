//! A folder of results: a lock, the settings, files of lines that grow, and files written atomically.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::{append_to, io, read_if_there, remove_unfinished, write_whole};
use super::lock::{Lock, lock};
use super::{CONFIG, RunError};

/// A folder that one process at a time writes results to.
#[derive(Debug)]
pub struct ResultFolder {
    dir: PathBuf,
    _lock: Lock,
}

/// A file that lines are added to.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    file: File,
}

impl ResultFolder {
    /// Creates the folder where it is missing, locks it, and removes what a killed process left
    /// unfinished.
    ///
    /// # Errors
    /// Where another process holds the folder, and where it cannot be written.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, RunError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let lock = lock(&dir)?;
        remove_unfinished(&dir, |_| true)?;
        Ok(Self { dir, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where the settings stand.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// The settings, if the folder holds them.
    ///
    /// # Errors
    /// Where they are there and cannot be read.
    pub fn config(&self) -> Result<Option<String>, RunError> {
        read_if_there(&self.config_path())
    }

    /// Writes the settings.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn write_config(&self, yaml: &str) -> Result<(), RunError> {
        write_whole(&self.config_path(), yaml.as_bytes())
    }

    /// Writes a file atomically.
    ///
    /// # Errors
    /// Where it cannot be written; an old one then stands as it was.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        write_whole(&self.dir.join(name), bytes)
    }

    /// The whole lines of a file; one that a killed process left without its end is cut off.
    ///
    /// # Errors
    /// Where the file cannot be read, is not UTF-8, or cannot be cut.
    pub fn lines(&self, name: &str) -> Result<Vec<String>, RunError> {
        let path = self.dir.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(&path)(error)),
        };
        let end = bytes.iter().rposition(|byte| *byte == b'\n');
        let whole = &bytes[..end.map_or(0, |end| end + 1)];
        if whole.len() < bytes.len() {
            let file = fs::OpenOptions::new().write(true).open(&path);
            file.and_then(|file| file.set_len(whole.len() as u64)).map_err(io(&path))?;
        }
        let text = std::str::from_utf8(whole).map_err(|error| {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            io(&path)(error)
        })?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Opens a file for lines to be added.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn append(&self, name: &str) -> Result<LineFile, RunError> {
        let path = self.dir.join(name);
        let file = append_to(&path)?;
        Ok(LineFile { path, file })
    }
}

impl LineFile {
    /// Adds a line, in one go.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&mut self, line: &Value) -> Result<(), RunError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_torn_last_line_is_cut_off_and_lines_go_on_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ResultFolder::open(dir.path().join("results")).unwrap();
        assert!(folder.lines("a.jsonl").unwrap().is_empty());
        let write = |value| folder.append("a.jsonl").unwrap().write(&value).unwrap();
        write(json!({"n": 1}));
        let path = folder.path().join("a.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"n\": 2, \"te")).unwrap();
        assert_eq!(folder.lines("a.jsonl").unwrap(), ["{\"n\":1}"]);
        write(json!({"n": 3}));
        assert_eq!(folder.lines("a.jsonl").unwrap(), ["{\"n\":1}", "{\"n\":3}"]);
        let second = ResultFolder::open(folder.path()).unwrap_err();
        assert!(matches!(second, RunError::Locked { .. }), "{second}");
    }
}
