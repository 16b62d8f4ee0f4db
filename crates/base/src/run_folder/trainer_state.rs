//! Checkpoints that a run can resume from: those with a `trainer_state/`.

use std::path::PathBuf;

use super::files::remove_unfinished;
use super::pending::take_down;
use super::{RunError, RunFolder, TRAINER_STATE};

impl RunFolder {
    /// All checkpoints that a run can resume from, oldest first; the others hold only a model.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn resumable_checkpoints(&self) -> Result<Vec<(u64, PathBuf)>, RunError> {
        let mut checkpoints = self.checkpoints()?;
        checkpoints.retain(|(_, path)| path.join(TRAINER_STATE).is_dir());
        Ok(checkpoints)
    }

    /// Keeps `trainer_state/` in the `keep` newest checkpoints and removes it from the others.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub fn keep_trainer_states(&self, keep: usize) -> Result<(), RunError> {
        let checkpoints = self.resumable_checkpoints()?;
        let num_old = checkpoints.len().saturating_sub(keep);
        for (_, path) in &checkpoints[..num_old] {
            take_down(&path.join(TRAINER_STATE))?;
        }
        // Left half removed by a killed process.
        for (_, path) in self.checkpoints()? {
            remove_unfinished(&path, |name| name == TRAINER_STATE)?;
        }
        Ok(())
    }
}
