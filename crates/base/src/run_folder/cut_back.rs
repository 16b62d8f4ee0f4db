//! Forgetting what was logged after the checkpoint that a run continues from.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::events::{Record, encode, records};
use super::files::{entries, io, remove, write_whole};
use super::{BAD_STEPS, METRICS, ROLLOUTS, RunError, RunFolder, TENSORBOARD};

impl RunFolder {
    /// Removes metrics, rollouts, bad steps and events of later steps than `step`, and a torn last line.
    ///
    /// # Errors
    /// On a broken line or record that is not the last one, and where files cannot be written.
    pub fn cut_back_to(&mut self, step: u64) -> Result<(), RunError> {
        self.cut_back(Some(step))
    }

    /// Removes all metrics, rollouts, bad steps and events: the run starts from nothing.
    ///
    /// # Errors
    /// As [`Self::cut_back_to`].
    pub fn start_over(&mut self) -> Result<(), RunError> {
        self.cut_back(None)
    }

    fn cut_back(&mut self, last: Option<u64>) -> Result<(), RunError> {
        self.metrics = None;
        self.events = None;
        let keeps = |step: u64| last.is_some_and(|last| step <= last);
        cut_metrics(&self.dir.join(METRICS), keeps)?;
        cut_steps(&self.dir.join(ROLLOUTS), keeps)?;
        let bad_steps = self.dir.join(BAD_STEPS);
        if bad_steps.exists() {
            cut_steps(&bad_steps, keeps)?;
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
        let step = name
            .strip_prefix("step_")
            .and_then(|name| name.strip_suffix(".jsonl"));
        if step
            .and_then(|step| step.parse().ok())
            .is_some_and(|step| !keeps(step))
        {
            remove(&path)?;
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
