//! Removes what was logged after the checkpoint that a run resumes from. Damaged files are reported and kept
//! aside; they never keep a run from resuming.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::events::{encode, first_message, is_first, records};
use super::files::{entries, free_name, read_by_product, remove, step_of_name, write_whole};
use super::pending::take_down;
use super::rollouts::{INDEX, Rollouts, step_of_file};
use super::{ALERTS, BAD_STEPS, EVALUATIONS, METRICS, ROLLOUTS, RunError, RunFolder, TENSORBOARD};

impl RunFolder {
    /// Removes metrics, alerts, rollouts, bad steps, evaluations and events of later steps than `step`, and a torn last
    /// line. Of a damaged file what is whole is kept, and the file as it was as `metrics.jsonl.damaged-1`.
    ///
    /// # Errors
    /// Where files cannot be written.
    pub fn cut_back_to(&mut self, step: u64) -> Result<(), RunError> {
        self.cut_back(step, Some(step))
    }

    /// As [`Self::cut_back_to`], for a step that is done, but not evaluated and logged: metrics, events and evaluations
    /// of that step go too.
    ///
    /// # Errors
    /// As [`Self::cut_back_to`].
    pub fn cut_back_to_unlogged(&mut self, step: u64) -> Result<(), RunError> {
        self.cut_back(step, step.checked_sub(1))
    }

    /// Whether `metrics.jsonl` has a whole line of `step`.
    ///
    /// # Errors
    /// Where it cannot be read, and not be set aside either.
    pub fn is_logged(&self, step: u64) -> Result<bool, RunError> {
        let bytes = read_by_product(&self.dir.join(METRICS))?.unwrap_or_default();
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        Ok(lines.any(|line| line.ends_with(b"\n") && step_of_metrics(line) == Ok(step)))
    }

    /// Keeps what was done up to `done`, and what was logged up to `logged`.
    fn cut_back(&mut self, done: u64, logged: Option<u64>) -> Result<(), RunError> {
        self.metrics = None;
        self.events = None;
        self.rollouts = Rollouts::default();
        let was_done = |step: u64| step <= done;
        let keeps = |step: u64| logged.is_some_and(|last| step <= last);
        let of_metrics = |line: &[u8]| step_of_metrics(line).map(keeps);
        cut_lines(&self.dir.join(METRICS), "metrics", of_metrics)?;
        let of_alerts = |line: &[u8]| step_of(line).map(|step| step.is_none_or(keeps));
        cut_lines(&self.dir.join(ALERTS), "alerts", of_alerts)?;
        for folder in [ROLLOUTS, BAD_STEPS].map(|name| self.dir.join(name)) {
            if folder.exists() {
                cut_steps(&folder, was_done)?;
            }
        }
        let of_rollouts = |line: &[u8]| step_of_metrics(line).map(was_done);
        let index = self.dir.join(ROLLOUTS).join(INDEX);
        cut_lines(&index, "rollouts", of_rollouts)?;
        let evaluations = self.dir.join(EVALUATIONS);
        if evaluations.exists() {
            cut_evaluations(&evaluations, keeps)?;
        }
        for (name, path) in entries(&self.dir.join(TENSORBOARD))? {
            if name.contains(".tfevents.") && !path.is_dir() {
                cut_events(&path, keeps)?;
            }
        }
        Ok(())
    }
}

fn cut_steps(folder: &Path, keeps: impl Fn(u64) -> bool) -> Result<(), RunError> {
    for (name, path) in entries(folder)? {
        if step_of_file(&name).is_some_and(|step| !keeps(step)) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn cut_evaluations(folder: &Path, keeps: impl Fn(u64) -> bool) -> Result<(), RunError> {
    for (name, path) in entries(folder)? {
        if step_of_name(&name).is_some_and(|step| !keeps(step)) {
            take_down(&path)?;
        }
    }
    Ok(())
}

/// Keeps the whole lines of which `keeps` says so; it fails on those that are not `what`.
fn cut_lines(
    path: &Path,
    what: &str,
    keeps: impl Fn(&[u8]) -> Result<bool, String>,
) -> Result<(), RunError> {
    let Some(bytes) = read_by_product(path)? else {
        return Ok(());
    };
    let mut kept = Vec::with_capacity(bytes.len());
    let mut damaged = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        // A last line without its end was being written when the process was killed.
        if line.ends_with(b"\n") {
            match keeps(line) {
                Ok(true) => kept.extend_from_slice(line),
                Ok(false) => {}
                Err(cause) => damaged.push((index + 1, cause)),
            }
        }
    }
    if let Some((line, cause)) = damaged.first() {
        let file = path.display();
        let more = match damaged.len() {
            1 => String::new(),
            n => format!(" (and {} more lines)", n - 1),
        };
        let aside = keep_as_it_was(path, &bytes)?;
        crate::say!(
            "warning: {file}:{line}: not a line of {what}: {cause}{more}; the other lines are kept, the file as it was is `{}`",
            aside.display()
        );
    }
    if kept.len() == bytes.len() {
        return Ok(());
    }
    write_whole(path, &kept)
}

/// Writes a damaged file beside itself; returns where.
fn keep_as_it_was(path: &Path, bytes: &[u8]) -> Result<PathBuf, RunError> {
    let aside = free_name(path, "damaged");
    write_whole(&aside, bytes)?;
    Ok(aside)
}

fn step_of(line: &[u8]) -> Result<Option<u64>, String> {
    let line: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    Ok(line["step"].as_u64())
}

fn step_of_metrics(line: &[u8]) -> Result<u64, String> {
    step_of(line)?.ok_or_else(|| "no `step`".to_owned())
}

fn cut_events(path: &Path, keeps: impl Fn(u64) -> bool) -> Result<(), RunError> {
    let Some(bytes) = read_by_product(path)? else {
        return Ok(());
    };
    let (records, broken) = records(&bytes);
    if let Some(offset) = broken.first() {
        let aside = keep_as_it_was(path, &bytes)?;
        crate::say!(
            "warning: {}: broken at byte {offset}; the records that are whole are kept, the file as it was is `{}`",
            path.display(),
            aside.display()
        );
    }
    let first = records.iter().find(|record| is_first(record.payload));
    let mut kept = match first {
        Some(first) => encode(first.payload),
        None => encode(&first_message()),
    };
    let empty = kept.len();
    for record in records.iter().filter(|record| !is_first(record.payload)) {
        if keeps(record.step) {
            kept.extend(encode(record.payload));
        }
    }
    if kept.len() == empty {
        remove(path)
    } else if kept == bytes {
        Ok(())
    } else {
        write_whole(path, &kept)
    }
}
