//! Checkpoints: made beside their name, synced, renamed.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{entries, io, remove, rename, sync_tree, unfinished};
use super::{RunError, RunFolder};

const CHECKPOINT: &str = "checkpoint-";

/// A checkpoint that is being written. Dropped, it is gone.
#[derive(Debug)]
#[must_use = "a checkpoint that is not committed is removed"]
pub struct PendingCheckpoint {
    beside: PathBuf,
    name: PathBuf,
}

impl PendingCheckpoint {
    /// The folder to write into.
    pub fn path(&self) -> &Path {
        &self.beside
    }

    /// Syncs all files and gives the folder its name, which is returned.
    ///
    /// # Errors
    /// Where a file cannot be synced or the folder not renamed.
    pub fn commit(self) -> Result<PathBuf, RunError> {
        sync_tree(&self.beside)?;
        rename(&self.beside, &self.name)?;
        Ok(self.name.clone())
    }
}

impl Drop for PendingCheckpoint {
    fn drop(&mut self) {
        // After a commit nothing is there; what cannot be removed now goes when the run is opened.
        let _ = fs::remove_dir_all(&self.beside);
    }
}

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
    pub fn begin_checkpoint(&mut self, step: u64) -> Result<PendingCheckpoint, RunError> {
        let name = self.dir.join(format!("{CHECKPOINT}{step}"));
        if name.exists() {
            return Err(RunError::CheckpointExists { path: name });
        }
        self.sync_logs()?;
        let beside = unfinished(&name);
        remove(&beside)?;
        fs::create_dir(&beside).map_err(io(&beside))?;
        Ok(PendingCheckpoint { beside, name })
    }

    /// Removes all but the `keep` newest checkpoints.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), RunError> {
        let checkpoints = self.checkpoints()?;
        let num_old = checkpoints.len().saturating_sub(keep);
        for (_, path) in &checkpoints[..num_old] {
            // Under its name a checkpoint must be whole, also while it is taken down.
            let beside = unfinished(path);
            remove(&beside)?;
            rename(path, &beside)?;
            remove(&beside)?;
        }
        Ok(())
    }
}
