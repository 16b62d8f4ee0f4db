//! `alerts.jsonl`, one object per alert, and the history from which a resumed run rebuilds its alerts.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::files::{append_to, io};
use super::{ALERTS, METRICS, RunError, RunFolder};

impl RunFolder {
    /// Appends a line to `alerts.jsonl`; it is on the disk at once, as alerts are few.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn log_alert(&self, alert: &Value) -> Result<(), RunError> {
        let path = self.path().join(ALERTS);
        let mut file = append_to(&path)?;
        file.write_all(format!("{alert}\n").as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io(&path))
    }

    /// Shows `visit` the lines of `alerts.jsonl`, oldest first; none where there is no such file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn each_alert(&self, visit: impl FnMut(Map<String, Value>)) -> Result<(), RunError> {
        each_line(&self.path().join(ALERTS), visit)
    }

    /// As [`Self::each_alert`], for the steps of `metrics.jsonl`.
    ///
    /// # Errors
    /// As [`Self::each_alert`].
    pub fn each_step(&self, visit: impl FnMut(Map<String, Value>)) -> Result<(), RunError> {
        each_line(&self.path().join(METRICS), visit)
    }
}

/// One line is in memory at a time. What is damaged was told when the run was cut back, and ends none.
fn each_line(path: &Path, mut visit: impl FnMut(Map<String, Value>)) -> Result<(), RunError> {
    // Of a pipe or a device the reading might never end.
    if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Ok(());
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(path)(error)),
    };
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(io(path))?;
        if let Ok(line) = serde_json::from_slice(&line) {
            visit(line);
        }
    }
    Ok(())
}
