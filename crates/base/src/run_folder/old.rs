//! Moves an earlier run that cannot be resumed out of the way of a new one: it is kept as `OUT.old-1`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::{holds_checkpoint, is_name_of_checkpoint};
use super::files::{
    append_to, entries, io, read_by_product, rename, step_of_name, sync_folder, write_whole,
};
use super::rollouts::{INDEX, Rollouts};
use super::{
    ALERTS, BAD_STEPS, CONFIG, ENVIRONMENT, EVALUATIONS, LOG, METRICS, ROLLOUTS, RunError,
    RunFolder, TENSORBOARD,
};
use crate::console::Log;

/// What a run wrote into a folder: names in the folder itself (the first), or in one of its folders.
type Written = Vec<(&'static str, Vec<String>)>;

impl RunFolder {
    /// Starts a new run. Where an earlier run did any step, all that it wrote is moved to `OUT.old-1` (or the first
    /// free number), or, where nothing can be put beside the folder, to `OUT/old-1`. Files that no run writes stay.
    ///
    /// # Errors
    /// Where something cannot be moved.
    pub fn start_over(&mut self) -> Result<(), RunError> {
        self.metrics = None;
        self.events = None;
        self.rollouts = Rollouts::default();
        let written = self.written()?;
        if written.iter().all(|(_, names)| names.is_empty()) {
            // Settings alone: overwriting them loses nothing.
            return Ok(());
        }
        let mut old = OldFolder::of(&self.dir)?;
        for (folder, names) in &written {
            for name in names {
                old.take(folder, name)?;
            }
        }
        for name in [CONFIG, ENVIRONMENT] {
            if self.dir.join(name).is_file() {
                old.take("", name)?;
            }
        }
        fs::create_dir_all(&old.path).map_err(io(&old.path))?;
        self.begin_log(&old.path.join(LOG))?;
        sync_folder(&old.path)?;
        sync_folder(&self.dir)?;
        crate::say!(
            "warning: {}: no checkpoint to go on from; what an earlier run wrote is in {} now",
            self.dir.display(),
            old.names()
        );
        Ok(())
    }

    /// What an earlier run left, its settings and its log aside.
    fn written(&self) -> Result<Written, RunError> {
        let names = |folder: &str, ours: &dyn Fn(&str) -> bool| -> Result<Vec<String>, RunError> {
            let names = entries(&self.dir.join(folder))?.into_iter();
            Ok(names.map(|(name, _)| name).filter(|n| ours(n)).collect())
        };
        let is_checkpoint =
            |name: &str| is_name_of_checkpoint(name) && holds_checkpoint(&self.dir.join(name));
        let is_lines = |folder: &str, files: &[&str], name: &str| {
            let ours = |file: &&str| {
                let more = name.strip_prefix(*file);
                more.is_some_and(|more| more.is_empty() || more.starts_with(".damaged-"))
            };
            let path = self.dir.join(folder).join(name);
            files.iter().any(ours) && fs::metadata(path).is_ok_and(|file| file.len() > 0)
        };
        let mut written = vec![(
            "",
            names("", &|name| is_lines("", &[METRICS, ALERTS], name) || is_checkpoint(name))?,
        )];
        let is_of_step = |name: &str| step_of_name(name.trim_end_matches(".jsonl")).is_some();
        for folder in [ROLLOUTS, BAD_STEPS, EVALUATIONS] {
            if self.dir.join(folder).is_dir() {
                let ours = |name: &str| {
                    is_of_step(name) || (folder == ROLLOUTS && is_lines(folder, &[INDEX], name))
                };
                written.push((folder, names(folder, &ours)?));
            }
        }
        let is_events = |name: &str| name.contains(".vlm-r1.");
        written.push((TENSORBOARD, names(TENSORBOARD, &is_events)?));
        Ok(written)
    }

    /// Moves the log of earlier processes to `old` and keeps the lines of this one.
    fn begin_log(&mut self, old: &Path) -> Result<(), RunError> {
        let path = self.dir.join(LOG);
        let Ok(Some(bytes)) = read_by_product(&path) else {
            return Ok(());
        };
        let earlier = usize::try_from(self.log_start).unwrap_or(usize::MAX);
        let Some((earlier, own)) = bytes.split_at_checked(earlier) else {
            return Ok(());
        };
        write_whole(old, earlier)?;
        write_whole(&path, own)?;
        self.log = Log::open(&path, append_to(&path)?);
        self.log_start = 0;
        Ok(())
    }
}

/// Where an earlier run is moved to.
struct OldFolder {
    dir: PathBuf,
    number: u64,
    path: PathBuf,
    /// Where the disk of a folder in it is another one.
    others: BTreeSet<PathBuf>,
}

impl OldFolder {
    /// The first free one, not made yet.
    fn of(dir: &Path) -> Result<Self, RunError> {
        // `.` and links have no name to put a number to.
        let dir = fs::canonicalize(dir).map_err(io(dir))?;
        let is_free = |number: &u64| {
            let folders = ["", ROLLOUTS, BAD_STEPS, EVALUATIONS, TENSORBOARD];
            let mut names = folders
                .map(|folder| inside(&dir.join(folder), *number))
                .into_iter()
                .chain([beside(&dir, *number)]);
            names.all(|name| name.symlink_metadata().is_err())
        };
        let number = (1..).find(is_free).unwrap_or(u64::MAX);
        let (path, others) = (beside(&dir, number), BTreeSet::new());
        Ok(Self { dir, number, path, others })
    }

    /// Moves `folder/name` of the run.
    fn take(&mut self, folder: &str, name: &str) -> Result<(), RunError> {
        let from = self.dir.join(folder).join(name);
        let moved = move_into(&from, &self.path, folder);
        if moved.is_ok() {
            return Ok(());
        }
        // No folder can be made beside, or it is on another disk: where the run's folder is mounted.
        let own = inside(&self.dir, self.number);
        if !self.path.exists() && move_into(&from, &own, folder).is_ok() {
            self.path = own;
            return Ok(());
        }
        // Or a folder in it is.
        let last = inside(&self.dir.join(folder), self.number);
        if folder.is_empty() || move_into(&from, &last, "").is_err() {
            return moved;
        }
        self.others.insert(last);
        Ok(())
    }

    /// All folders that hold something of it.
    fn names(&self) -> String {
        let all = [&self.path].into_iter().chain(&self.others);
        let names: Vec<String> = all.map(|path| format!("`{}`", path.display())).collect();
        names.join(", ")
    }
}

fn beside(dir: &Path, number: u64) -> PathBuf {
    match dir.file_name() {
        Some(name) => dir.with_file_name(format!("{}.old-{number}", name.to_string_lossy())),
        None => inside(dir, number),
    }
}

fn inside(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("old-{number}"))
}

/// Moves a file or folder to `root/folder`; where that fails, neither is left behind empty.
fn move_into(from: &Path, root: &Path, folder: &str) -> Result<(), RunError> {
    let to = root.join(folder);
    let moved = fs::create_dir_all(&to)
        .map_err(io(&to))
        .and_then(|()| rename(from, &to.join(from.file_name().unwrap_or_default())));
    if moved.is_err() {
        // Those that hold something stay.
        let _ = fs::remove_dir(&to);
        let _ = fs::remove_dir(root);
    }
    moved
}
