//! Forgetting what was logged after the checkpoint that a run continues from.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::alerts::ALERTS;
use super::events::{Record, encode, records};
use super::files::{entries, io, remove, step_of_name, write_whole};
use super::pending::take_down;
use super::{BAD_STEPS, EVALUATIONS, METRICS, ROLLOUTS, RunError, RunFolder, TENSORBOARD};

impl RunFolder {
    /// Removes metrics, alerts, rollouts, bad steps, evaluations and events of later steps than `step`, and a torn last line.
    ///
    /// # Errors
    /// On a broken line or record that is not the last one, and where files cannot be written.
    pub fn cut_back_to(&mut self, step: u64) -> Result<(), RunError> {
        self.cut_back(Some(step), Some(step))
    }

    /// As [`Self::cut_back_to`], for a step that is done, but not evaluated and logged: metrics, events and evaluations
    /// of that step go too.
    ///
    /// # Errors
    /// As [`Self::cut_back_to`].
    pub fn cut_back_to_unlogged(&mut self, step: u64) -> Result<(), RunError> {
        self.cut_back(Some(step), step.checked_sub(1))
    }

    /// Whether `metrics.jsonl` has a whole line of `step`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn is_logged(&self, step: u64) -> Result<bool, RunError> {
        let path = self.dir.join(METRICS);
        if !path.exists() {
            return Ok(false);
        }
        let bytes = fs::read(&path).map_err(io(&path))?;
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        Ok(lines.any(|line| line.ends_with(b"\n") && step_of(line) == Ok(step)))
    }

    /// Removes all metrics, rollouts, bad steps, evaluations and events: the run starts from nothing.
    ///
    /// # Errors
    /// As [`Self::cut_back_to`].
    pub fn start_over(&mut self) -> Result<(), RunError> {
        self.cut_back(None, None)
    }

    /// Keeps what was done up to `done`, and what was logged up to `logged`.
    fn cut_back(&mut self, done: Option<u64>, logged: Option<u64>) -> Result<(), RunError> {
        self.metrics = None;
        self.events = None;
        let was_done = |step: u64| done.is_some_and(|last| step <= last);
        let keeps = |step: u64| logged.is_some_and(|last| step <= last);
        cut_metrics(&self.dir.join(METRICS), keeps)?;
        cut_metrics(&self.dir.join(ALERTS), keeps)?;
        for folder in [ROLLOUTS, BAD_STEPS].map(|name| self.dir.join(name)) {
            if folder.exists() {
                cut_steps(&folder, was_done)?;
            }
        }
        let evaluations = self.dir.join(EVALUATIONS);
        if evaluations.exists() {
            cut_evaluations(&evaluations, keeps)?;
        }
        for (name, path) in entries(&self.dir.join(TENSORBOARD))? {
            if name.contains(".tfevents.") {
                cut_events(&path, keeps)?;
            }
        }
        Ok(())
    }
}

fn cut_steps(folder: &Path, keeps: impl Fn(u64) -> bool) -> Result<(), RunError> {
    for (name, path) in entries(folder)? {
        let step = name.strip_suffix(".jsonl").and_then(step_of_name);
        if step.is_some_and(|step| !keeps(step)) {
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

fn cut_metrics(path: &Path, keeps: impl Fn(u64) -> bool) -> Result<(), RunError> {
    if !path.exists() {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(io(path))?;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let mut kept = Vec::with_capacity(bytes.len());
    for (index, line) in lines.iter().enumerate() {
        match step_of(line) {
            Ok(step) if line.ends_with(b"\n") => {
                if keeps(step) {
                    kept.extend_from_slice(line);
                }
            }
            // A last line without its end was being written when the process was killed.
            _ if index + 1 == lines.len() => {}
            Ok(_) => {}
            Err(cause) => {
                let (path, line) = (path.to_owned(), index + 1);
                return Err(RunError::Metrics { path, line, cause });
            }
        }
    }
    if kept.len() == bytes.len() {
        Ok(())
    } else {
        write_whole(path, &kept)
    }
}

fn step_of(line: &[u8]) -> Result<u64, String> {
    let line: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    line["step"].as_u64().ok_or_else(|| "no `step`".to_owned())
}

fn cut_events(path: &Path, keeps: impl Fn(u64) -> bool) -> Result<(), RunError> {
    let bytes = fs::read(path).map_err(io(path))?;
    let records = records(path, &bytes)?;
    let (first, rest) = match records.split_first() {
        Some((Record { payload, .. }, rest)) => (*payload, rest),
        None => return remove(path),
    };
    let mut kept = encode(first);
    let mut num_kept = 0;
    for Record { payload, step } in rest {
        if keeps(*step) {
            kept.extend(encode(payload));
            num_kept += 1;
        }
    }
    match num_kept {
        0 => remove(path),
        _ if kept.len() == bytes.len() => Ok(()),
        _ => write_whole(path, &kept),
    }
}
