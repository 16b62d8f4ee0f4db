//! `rollouts/`: a file of completions per step, and `index.jsonl` with a line per group, which stays when the files are pruned.

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{
    append_to, clear_away, entries, io, remove, step_of_name, sync_file, sync_folder, write_soon,
};
use super::{ROLLOUTS, RunError, RunFolder, step_file};

/// In [`ROLLOUTS`]: a line for each group.
pub(super) const INDEX: &str = "index.jsonl";

/// A group of completions as it is logged.
#[derive(Clone, Debug)]
pub struct LoggedGroup {
    /// One object a completion.
    pub completions: Vec<Value>,
    /// What the index says of it.
    pub summary: Map<String, Value>,
}

/// What this process knows of the rollouts.
#[derive(Debug, Default)]
pub(super) struct Rollouts {
    index: Option<File>,
    /// Steps whose files may not be on the disk.
    unsynced: Vec<u64>,
    /// The newest step whose file was removed to keep few.
    removed: Option<u64>,
    is_stuck: bool,
}

impl RunFolder {
    /// Writes the completions of a step, one object a line, to `rollouts/step_000001.jsonl`, and a line for each group to
    /// `rollouts/index.jsonl`. They are on the disk with the next checkpoint. Of the files the newest `keep` stay; without
    /// a number, all.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn log_rollouts(
        &mut self,
        step: u64,
        groups: &[LoggedGroup],
        keep: Option<u64>,
    ) -> Result<(), RunError> {
        let (mut lines, mut index) = (String::new(), String::new());
        for (number, group) in groups.iter().enumerate() {
            let mut line = Map::new();
            line.insert("step".into(), step.into());
            line.insert("group".into(), number.into());
            // Of its first completion in the file of the step, bytes.
            line.insert("offset".into(), lines.len().into());
            line.extend(group.summary.clone());
            index.push_str(&format!("{}\n", Value::Object(line)));
            for completion in &group.completions {
                lines.push_str(&format!("{completion}\n"));
            }
        }
        let folder = self.dir.join(ROLLOUTS);
        write_soon(&step_file(&folder, step), lines.as_bytes())?;
        self.rollouts.unsynced.push(step);
        self.append_to_index(&folder.join(INDEX), &index)?;
        if let Some(last) = keep.and_then(|keep| step.checked_sub(keep)) {
            self.keep_newer_than(last, &folder)?;
        }
        Ok(())
    }

    fn append_to_index(&mut self, path: &Path, lines: &str) -> Result<(), RunError> {
        let file = match &mut self.rollouts.index {
            Some(file) => file,
            closed => {
                // No line can be added to a folder, and the reader of a pipe would be waited for.
                let is_other = |file: Metadata| file.is_dir() || file.file_type().is_fifo();
                if fs::metadata(path).is_ok_and(is_other) {
                    clear_away(path, "not a file")?;
                }
                closed.insert(append_to(path)?)
            }
        };
        file.write_all(lines.as_bytes()).map_err(io(path))
    }

    /// Removes the files of steps up to `last`: at first all that are there, then those of each step.
    fn keep_newer_than(&mut self, last: u64, folder: &Path) -> Result<(), RunError> {
        let old: Vec<PathBuf> = match self.rollouts.removed {
            Some(removed) => (removed + 1..=last).map(|step| step_file(folder, step)).collect(),
            None => entries(folder)?
                .into_iter()
                .filter(|(name, _)| step_of_file(name).is_some_and(|step| step <= last))
                .map(|(_, path)| path)
                .collect(),
        };
        for path in old {
            match remove(&path) {
                Err(error) if !self.rollouts.is_stuck => {
                    self.rollouts.is_stuck = true;
                    crate::say!("warning: rollouts of old steps stay: {error}");
                }
                _ => {}
            }
        }
        self.rollouts.removed = Some(last.max(self.rollouts.removed.unwrap_or_default()));
        Ok(())
    }

    /// Makes sure that rollouts are on the disk.
    pub(super) fn sync_rollouts(&mut self) -> Result<(), RunError> {
        let folder = self.dir.join(ROLLOUTS);
        for step in &self.rollouts.unsynced {
            sync_file(&step_file(&folder, *step))?;
        }
        if let Some(index) = &self.rollouts.index {
            match index.sync_all() {
                // A device has no disk.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                synced => synced.map_err(io(&folder.join(INDEX)))?,
            }
        }
        sync_folder(&folder)?;
        self.rollouts.unsynced.clear();
        Ok(())
    }
}

/// The step of a file of completions.
pub(super) fn step_of_file(name: &str) -> Option<u64> {
    name.strip_suffix(".jsonl").and_then(step_of_name)
}
