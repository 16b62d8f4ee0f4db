//! Checkpoints: made beside their name, synced, renamed.

use std::path::{Path, PathBuf};

use super::files::{entries, set_aside};
use super::pending::{PendingFolder, take_down};
use super::{RunError, RunFolder};

const CHECKPOINT: &str = "checkpoint-";

impl RunFolder {
    /// The newest checkpoint: its step and folder. All checkpoints under their final name are whole.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn latest_checkpoint(&self) -> Result<Option<(u64, PathBuf)>, RunError> {
        Ok(self.checkpoints()?.pop())
    }

    /// All checkpoints, oldest first.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>, RunError> {
        let mut checkpoints: Vec<(u64, PathBuf)> = entries(&self.dir)?
            .into_iter()
            .filter(|(_, path)| path.is_dir())
            .filter_map(|(name, path)| Some((name.strip_prefix(CHECKPOINT)?.parse().ok()?, path)))
            .collect();
        checkpoints.sort();
        Ok(checkpoints)
    }

    /// Starts the checkpoint of `step`; what was logged before is on the disk first.
    ///
    /// # Errors
    /// Where the step has one already, and where it cannot be written.
    pub fn begin_checkpoint(&mut self, step: u64) -> Result<PendingFolder, RunError> {
        let pending = PendingFolder::begin(self.dir.join(format!("{CHECKPOINT}{step}")))?;
        self.sync_logs()?;
        Ok(pending)
    }

    /// Renames a checkpoint that cannot be used to `checkpoint-100.damaged-1`, where none looks for one; returns the
    /// new name.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn set_aside(&self, checkpoint: &Path) -> Result<PathBuf, RunError> {
        set_aside(checkpoint, "damaged")
    }

    /// Removes all but the `keep` newest checkpoints.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), RunError> {
        let checkpoints = self.checkpoints()?;
        let num_old = checkpoints.len().saturating_sub(keep);
        for (_, path) in &checkpoints[..num_old] {
            take_down(path)?;
        }
        Ok(())
    }
}
