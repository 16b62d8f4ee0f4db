//! Atomic folders: checkpoints and results of evaluations are complete or absent.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{io, remove, rename, set_aside, step_name, sync_tree, unfinished};
use super::{EVALUATIONS, RunError, RunFolder};

/// A folder that is being written; dropping it removes it.
#[derive(Debug)]
#[must_use = "a folder that is not committed is removed"]
pub struct PendingFolder {
    beside: PathBuf,
    name: PathBuf,
}

impl PendingFolder {
    /// Starts the folder of a final name.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn begin(name: PathBuf) -> Result<Self, RunError> {
        let beside = unfinished(&name);
        remove(&beside)?;
        fs::create_dir(&beside).map_err(io(&beside))?;
        Ok(Self { beside, name })
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        &self.beside
    }

    /// The name that it will have.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Syncs all files and renames the folder; returns its final path. Whatever has that name is set aside.
    ///
    /// # Errors
    /// Where a file cannot be synced or the folder not renamed.
    pub fn commit(self) -> Result<PathBuf, RunError> {
        sync_tree(&self.beside)?;
        make_way(&self.name)?;
        rename(&self.beside, &self.name)?;
        Ok(self.name.clone())
    }
}

impl Drop for PendingFolder {
    fn drop(&mut self) {
        // After a commit nothing is there; what cannot be removed now goes when the run is opened.
        let _ = fs::remove_dir_all(&self.beside);
    }
}

/// Renames what has the name of something to come, and says so.
pub(super) fn make_way(name: &Path) -> Result<(), RunError> {
    // A link that leads nowhere takes the name too.
    if name.symlink_metadata().is_ok() {
        let aside = set_aside(name, "old")?;
        crate::say!(
            "warning: {}: was in the way, and is `{}` now",
            name.display(),
            aside.display()
        );
    }
    Ok(())
}

/// Removes a folder that must be complete as long as it has its name: it is renamed first.
pub(super) fn take_down(path: &Path) -> Result<(), RunError> {
    let beside = unfinished(path);
    remove(&beside)?;
    rename(path, &beside)?;
    remove(&beside)
}

impl RunFolder {
    /// Starts the results of the evaluation after `step`, `eval/step_000100`.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn begin_evaluation(&self, step: u64) -> Result<PendingFolder, RunError> {
        let folder = self.dir.join(EVALUATIONS);
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        PendingFolder::begin(folder.join(step_name(step)))
    }
}
