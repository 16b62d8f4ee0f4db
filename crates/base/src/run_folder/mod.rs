//! The run folder: lock, log, metrics, rollouts, event files, checkpoints.
//!
//! ```text
//! config.yaml  env.json  log.txt  metrics.jsonl  rollouts/step_000001.jsonl  rollouts/index.jsonl  tensorboard/
//! alerts.jsonl  bad_steps/step_000123.jsonl  eval/step_000100/  checkpoint-100/
//! ```
//!
//! Files and checkpoints are written beside their final name, synced and renamed, so that under it
//! they are complete. Rollouts are synced with the next checkpoint: a resumed run removes later ones
//! anyway. Lines of `metrics.jsonl` and `log.txt` and records of event files are appended; a killed
//! process may leave a torn last one, which [`RunFolder::cut_back_to`] removes. What a checkpoint
//! contains is the business of `train`.

mod alerts;
mod checkpoint;
mod cut_back;
mod disk;
mod environment;
mod error;
mod events;
mod files;
mod lock;
mod old;
mod pending;
mod result_folder;
mod rollouts;
mod stop;
mod sums;
mod trainer_state;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::console::Log;

pub use checkpoint::{checkpoints_in, step_of_checkpoint};
pub use disk::{DiskTrial, free_bytes};
pub use environment::{commit, declare_commit, environment, utc_now};
pub use error::{RunError, hint};
pub use events::{EventFile, Scalar, read_scalars};
pub use pending::PendingFolder;
pub use result_folder::{LineFile, ResultFolder};
pub use rollouts::LoggedGroup;
pub use stop::StopFlag;
pub use sums::{FileSum, SUMS, Sums, verify_file, verify_model, verify_sums, write_sums};

use files::{
    append_to, clear_away, io, make_folder, read_if_there, set_aside, step_of_name, write_whole,
};
use lock::{Lock, lock};
use rollouts::{INDEX, Rollouts};

const CONFIG: &str = "config.yaml";
const ENVIRONMENT: &str = "env.json";
const LOG: &str = "log.txt";
const METRICS: &str = "metrics.jsonl";
const ALERTS: &str = "alerts.jsonl";
const ROLLOUTS: &str = "rollouts";
const BAD_STEPS: &str = "bad_steps";
const EVALUATIONS: &str = "eval";
const TENSORBOARD: &str = "tensorboard";
/// In a checkpoint: what resuming needs beside the weights.
pub const TRAINER_STATE: &str = "trainer_state";
/// Starts the name of what is not finished yet, or no longer wanted.
const UNFINISHED: &str = ".tmp-";

/// A folder that one process at a time writes a run to.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    _lock: Lock,
    log: Log,
    /// Bytes of earlier processes in the log.
    log_start: u64,
    metrics: Option<File>,
    events: Option<EventFile>,
    rollouts: Rollouts,
}

impl RunFolder {
    /// Creates the folder where it is missing, locks it, and removes what a killed process left
    /// unfinished. What is in the place of by-products and cannot be used is set aside.
    ///
    /// # Errors
    /// Where another process holds the folder, and where it cannot be written.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, RunError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let lock = lock(&dir)?;
        files::remove_unfinished(&dir, is_unfinished)?;
        for name in [ROLLOUTS, TENSORBOARD, BAD_STEPS, EVALUATIONS] {
            let (folder, always) = (dir.join(name), [ROLLOUTS, TENSORBOARD].contains(&name));
            if always || folder.symlink_metadata().is_ok() {
                make_folder(&folder)?;
                files::remove_unfinished(&folder, is_unfinished)?;
            }
        }
        let (log, log_start) = open_log(&dir.join(LOG))?;
        let run = Self {
            dir,
            _lock: lock,
            log,
            log_start,
            metrics: None,
            events: None,
            rollouts: Rollouts::default(),
        };
        run.tell_of_false_checkpoints()?;
        Ok(run)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The text of `config.yaml`, if the folder holds one.
    ///
    /// # Errors
    /// Where it is there and cannot be read.
    pub fn config(&self) -> Result<Option<String>, RunError> {
        read_if_there(&self.dir.join(CONFIG))
    }

    /// Where [`Self::write_config`] writes.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// Writes the resolved configuration. One that no run wrote, as in a user's working folder, is set aside.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_config(&self, yaml: &str) -> Result<(), RunError> {
        let path = self.config_path();
        let is_of_a_run = self.dir.join(ENVIRONMENT).exists();
        let is_other = |path: &Path| path.is_file() && fs::read(path).ok() != Some(yaml.into());
        if !is_of_a_run && is_other(&path) {
            let aside = set_aside(&path, "old")?;
            crate::say!(
                "note: {}: settings that no run here wrote are `{}` now",
                path.display(),
                aside.display()
            );
        }
        write_whole(&path, yaml.as_bytes())
    }

    /// Writes what the run runs on, see [`environment`].
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_env(&self, environment: &Value) -> Result<(), RunError> {
        let text = format!("{environment:#}\n");
        write_whole(&self.dir.join(ENVIRONMENT), text.as_bytes())
    }

    /// `log.txt`, for what is to be written there after the folder is closed.
    pub fn log(&self) -> Log {
        self.log.clone()
    }

    /// Appends a line to `log.txt`, with the time. Lines of [`crate::console::say`] are in it already.
    pub fn log_line(&self, line: &str) {
        self.log.line(line);
    }

    /// Appends the metrics of a step to `metrics.jsonl` and, numbers only, to the event file, tagged with
    /// their [names](crate::metrics::flat).
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn log_step(&mut self, step: u64, metrics: &Map<String, Value>) -> Result<(), RunError> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.extend(
            metrics
                .iter()
                .filter(|(name, _)| *name != "step")
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        let scalars = events::scalars(step, metrics);
        let path = self.dir.join(METRICS);
        let file = match &mut self.metrics {
            Some(file) => file,
            closed => closed.insert(append_to(&path)?),
        };
        let text = format!("{}\n", Value::Object(line));
        file.write_all(text.as_bytes()).map_err(io(&path))?;
        let events = match &mut self.events {
            Some(events) => events,
            closed => closed.insert(EventFile::create(&self.dir.join(TENSORBOARD))?),
        };
        events.write(&scalars)
    }

    /// Writes why a step was refused, then its batch, to `bad_steps/step_000001.jsonl`; returns the file.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn log_bad_step(&self, step: u64, batch: &[Value]) -> Result<PathBuf, RunError> {
        let folder = self.dir.join(BAD_STEPS);
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        let path = step_file(&folder, step);
        write_whole(&path, lines(batch).as_bytes())?;
        Ok(path)
    }

    /// Puts an empty file into the folder that others can look for, and returns its path; who puts it takes it away. It is
    /// removed like other unfinished files where that does not happen.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn put_sign(&self) -> Result<PathBuf, RunError> {
        let dir = self.dir.canonicalize().map_err(io(&self.dir))?;
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{UNFINISHED}{ENVIRONMENT}-{}-{}", std::process::id(), since.as_nanos());
        let path = dir.join(name);
        File::create(&path).map_err(io(&path))?;
        Ok(path)
    }

    /// Makes sure that what was logged is on the disk.
    fn sync_logs(&mut self) -> Result<(), RunError> {
        if let Some(file) = &self.metrics {
            match file.sync_all() {
                // A device, as where a user wants no metrics: it has no disk.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                synced => synced.map_err(io(&self.dir.join(METRICS)))?,
            }
        }
        if let Some(events) = &self.events {
            events.sync()?;
        }
        self.sync_rollouts()
    }
}

/// The file of a step.
fn step_file(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{}.jsonl", files::step_name(step)))
}

/// One object a line.
fn lines(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

/// The log, and the bytes that are in it already.
fn open_log(path: &Path) -> Result<(Log, u64), RunError> {
    // Opening a pipe blocks until it has a reader.
    if fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo()) {
        clear_away(path, "a pipe, not a file")?;
    }
    let file = match append_to(path) {
        Err(RunError::Io { source, .. }) if path.symlink_metadata().is_ok() => {
            clear_away(path, &source.to_string())?;
            append_to(path)?
        }
        file => file?,
    };
    let length = file.metadata().map_err(io(path))?.len();
    Ok((Log::open(path, file), length))
}

/// Whether a name is one that a run writes beside it.
fn is_unfinished(name: &str) -> bool {
    let files = [CONFIG, ENVIRONMENT, METRICS, ALERTS, LOG, INDEX];
    files.iter().any(|file| name.starts_with(file))
        || checkpoint::is_name_of_checkpoint(name)
        || step_of_name(name.trim_end_matches(".jsonl")).is_some()
        || name.contains(".vlm-r1.")
}
