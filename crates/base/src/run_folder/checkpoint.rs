//! Checkpoints: written beside their name, synced, renamed.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{entries, set_aside};
use super::pending::{PendingFolder, make_way, take_down};
use super::{RunError, RunFolder, TRAINER_STATE};

const CHECKPOINT: &str = "checkpoint-";

impl RunFolder {
    /// The newest checkpoint: its step and folder. All checkpoints written under their final name are whole.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn latest_checkpoint(&self) -> Result<Option<(u64, PathBuf)>, RunError> {
        Ok(self.checkpoints()?.pop())
    }

    /// All checkpoints, oldest first: folders, or links to some, that hold weights or a trainer's state.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>, RunError> {
        checkpoints_in(&self.dir)
    }

    /// Sets aside whatever has the name of a future checkpoint, of the steps after `done` up to `last`: it would
    /// be in the way when that checkpoint is written.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn make_way(&self, done: u64, last: u64) -> Result<(), RunError> {
        for (step, path) in named_checkpoints(&self.dir)? {
            if done < step && step <= last {
                make_way(&path)?;
            }
        }
        Ok(())
    }

    /// Warns of folders that look like a checkpoint and are none.
    pub(super) fn tell_of_false_checkpoints(&self) -> Result<(), RunError> {
        for (name, path) in entries(&self.dir)? {
            let looks_so =
                name.strip_prefix(CHECKPOINT).is_some_and(|step| step.parse::<f64>().is_ok());
            let is_one = step_of_checkpoint(&name).is_some() && holds_checkpoint(&path);
            if looks_so && !is_one {
                let why = why_not(&name, &path);
                crate::say!("note: {}: no checkpoint: {why}", path.display());
            }
        }
        Ok(())
    }

    /// Starts the checkpoint of `step`; what was logged before is on the disk first.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn begin_checkpoint(&mut self, step: u64) -> Result<PendingFolder, RunError> {
        let pending = PendingFolder::begin(self.dir.join(format!("{CHECKPOINT}{step}")))?;
        self.sync_logs()?;
        Ok(pending)
    }

    /// Renames an unusable checkpoint to `checkpoint-100.damaged-1`, so that it is not found again; returns the
    /// new name.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn set_aside(&self, checkpoint: &Path) -> Result<PathBuf, RunError> {
        set_aside(checkpoint, "damaged")
    }

    /// Removes all but the `keep` newest checkpoints; of one that is a link, the link alone. What cannot be removed is
    /// said: the new checkpoint is there.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), RunError> {
        let checkpoints = self.checkpoints()?;
        let num_old = checkpoints.len().saturating_sub(keep);
        for (_, path) in &checkpoints[..num_old] {
            let leads_to = fs::read_link(path);
            match (take_down(path), leads_to) {
                (Err(error), _) => crate::say!("warning: an old checkpoint stays: {error}"),
                (Ok(()), Ok(target)) => crate::say!(
                    "note: {}: the link is removed; what it led to stays, `{}`",
                    path.display(),
                    target.display()
                ),
                (Ok(()), Err(_)) => {}
            }
        }
        Ok(())
    }
}

/// The checkpoints in the folder of a run, oldest first. The folder is not locked.
///
/// # Errors
/// Where the folder cannot be read.
pub fn checkpoints_in(run: &Path) -> Result<Vec<(u64, PathBuf)>, RunError> {
    let mut checkpoints = named_checkpoints(run)?;
    checkpoints.retain(|(_, path)| holds_checkpoint(path));
    Ok(checkpoints)
}

/// All that has the name of a checkpoint, whatever it is.
fn named_checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>, RunError> {
    let mut named: Vec<(u64, PathBuf)> = entries(run)?
        .into_iter()
        .filter_map(|(name, path)| Some((step_of_checkpoint(&name)?, path)))
        .collect();
    named.sort();
    Ok(named)
}

/// The step of `checkpoint-7`; none of `checkpoint-007`, which no run writes.
pub fn step_of_checkpoint(name: &str) -> Option<u64> {
    let step = name.strip_prefix(CHECKPOINT)?.parse().ok()?;
    (name == format!("{CHECKPOINT}{step}")).then_some(step)
}

/// Whether a name is that of a checkpoint, or of one that was set aside.
pub(super) fn is_name_of_checkpoint(name: &str) -> bool {
    let aside = [".damaged-", ".old-"].iter().find_map(|word| {
        let (name, number) = name.split_once(word)?;
        number.parse::<u64>().ok().map(|_| name)
    });
    step_of_checkpoint(aside.unwrap_or(name)).is_some()
}

/// Whether a folder holds weights or a trainer's state.
pub(super) fn holds_checkpoint(path: &Path) -> bool {
    let weights = |(name, _): &(String, PathBuf)| {
        name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
    };
    path.join(TRAINER_STATE).is_dir()
        || (path.is_dir() && entries(path).is_ok_and(|files| files.iter().any(weights)))
}

fn why_not(name: &str, path: &Path) -> String {
    if holds_checkpoint(path) {
        return format!(
            "the name of one would be `{CHECKPOINT}` and the step, without more digits, got `{name}`"
        );
    }
    match fs::metadata(path) {
        Err(error) => format!("cannot be read: {error}"),
        Ok(file) if !file.is_dir() => "not a folder".to_owned(),
        Ok(_) => match entries(path) {
            Err(error) => error.to_string(),
            Ok(files) if files.is_empty() => "an empty folder".to_owned(),
            Ok(_) => "neither weights nor `trainer_state` are in it".to_owned(),
        },
    }
}
