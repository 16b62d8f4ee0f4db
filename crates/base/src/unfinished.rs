//! Atomic files: written beside their final name and renamed, so that under it they are complete or absent.
//!
//! Until then a file is called `.tmp-NAME-PROCESS-NUMBER` and is locked by its writer. It is removed when the writer gives up, or
//! by [`remove_all`] on a signal. Files of killed processes hold no lock; the next [`sweep`] removes them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PREFIX: &str = ".tmp-";
/// Of a long name so much stands in the other, bytes: names of files end at 255.
const MAX_NAME_BYTES: usize = 200;

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn known() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file without its final name; dropping it removes it.
#[derive(Debug)]
pub struct Unfinished {
    target: PathBuf,
    path: PathBuf,
    file: File,
    is_finished: bool,
}

impl Unfinished {
    /// A new file beside `target`, for all to read whom the user's mask lets.
    ///
    /// # Errors
    /// The folder is not there, or nothing can be made in it.
    pub fn create(target: &Path) -> io::Result<Self> {
        let name = name_of(target);
        for number in 0u64.. {
            let own = format!("{PREFIX}{name}-{}-{number}", std::process::id());
            let path = target.with_file_name(own);
            // Before it is there, so that a signal in between finds it.
            known().insert(path.clone());
            let opened = OpenOptions::new().write(true).create_new(true).open(&path);
            match opened.map(|file| locked(file, &path)) {
                Ok(Some(file)) => {
                    return Ok(Self { target: target.to_owned(), path, file, is_finished: false });
                }
                // Taken for left behind in the moment before it was locked.
                Ok(None) => drop(known().remove(&path)),
                Err(error) => {
                    known().remove(&path);
                    if error.kind() != ErrorKind::AlreadyExists {
                        return Err(error);
                    }
                }
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Syncs the file and renames it.
    ///
    /// # Errors
    /// What was written does not fit, or the name cannot be taken; the file is then gone.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        self.name()
    }

    /// Renames the file without syncing it.
    ///
    /// # Errors
    /// The name cannot be taken; the file is then gone.
    pub fn name(mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // The writer that gave up has reported why.
            let _ = fs::remove_file(&self.path);
        }
        known().remove(&self.path);
    }
}

/// Writes `bytes` to `path` atomically, and removes what killed processes left beside it.
///
/// # Errors
/// They cannot be written; what stood under the name then stands as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(device) = device(path) {
        return device?.write_all(bytes);
    }
    sweep(path);
    let mut file = Unfinished::create(path)?;
    file.write_all(bytes)?;
    file.finish()
}

/// What is at `path`, opened to be written, where that is a device or a pipe, whose place no file may take.
pub fn device(path: &Path) -> Option<io::Result<File>> {
    let kind = fs::metadata(path).ok()?.file_type();
    let is_named = kind.is_file() || kind.is_dir();
    (!is_named).then(|| OpenOptions::new().write(true).open(path))
}

/// Removes what killed processes left beside `target`.
pub fn sweep(target: &Path) {
    let wanted = name_of(target);
    let folder = target.parent().filter(|folder| *folder != Path::new(""));
    sweep_folder(folder.unwrap_or(Path::new(".")), |name| name == wanted);
}

/// Removes what killed processes left in a folder of files whose names `is_wanted` knows. What cannot be removed stays.
pub fn sweep_folder(folder: &Path, is_wanted: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let target = name.to_str().and_then(target_of);
        if target.is_some_and(&is_wanted) && is_left_behind(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes all unfinished files of this process, when a signal ends it at once.
pub fn remove_all() {
    for path in known().iter() {
        let _ = fs::remove_file(path);
    }
}

/// What of a file's name stands in that of its unfinished one.
fn name_of(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_NAME_BYTES).last();
    name[..end.unwrap_or(0)].to_owned()
}

/// The name that an unfinished file's own holds; none where it is no such file.
fn target_of(name: &str) -> Option<&str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (rest, number) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    let (target, process) = rest.rsplit_once('-')?;
    (is_number(number) && is_number(process)).then_some(target)
}

/// The file, locked where the file system can; none where it was removed before.
fn locked(file: File, path: &Path) -> Option<File> {
    let _ = file.lock();
    let inode = |found: io::Result<fs::Metadata>| found.ok().map(|found| found.ino());
    (inode(fs::metadata(path)) == inode(file.metadata())).then_some(file)
}

/// Whether a file is unlocked; false where the file system has no locks.
fn is_left_behind(path: &Path) -> bool {
    match File::open(path).map(|file| file.try_lock()) {
        Ok(Ok(())) => true,
        Ok(Err(TryLockError::WouldBlock | TryLockError::Error(_))) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("rows.jsonl");
        write_whole(&target, b"old").unwrap();
        let mut given_up = Unfinished::create(&target).unwrap();
        given_up.write_all(b"half").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(given_up);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        let mut file = Unfinished::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["rows.jsonl"]);
        let nowhere = Unfinished::create(&dir.path().join("no/rows.jsonl"));
        assert_eq!(nowhere.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("rows.jsonl");
        for name in [
            ".tmp-rows.jsonl-4194999-0",
            ".tmp-other.jsonl-4194999-0",
            ".tmp-rows.jsonl",
            ".tmp-rows.jsonl-x-0",
        ] {
            fs::write(dir.path().join(name), "half").unwrap();
        }
        let alive = Unfinished::create(&target).unwrap();
        sweep(&target);
        let others = [".tmp-other.jsonl-4194999-0", ".tmp-rows.jsonl", ".tmp-rows.jsonl-x-0"];
        let own = alive.path.file_name().unwrap().to_str().unwrap();
        let mut left = vec![own];
        left.extend(others);
        left.sort_unstable();
        assert_eq!(names(dir.path()), left);
        alive.finish().unwrap();
        sweep_folder(dir.path(), |name| name.starts_with("other"));
        assert_eq!(names(dir.path()), [".tmp-rows.jsonl", ".tmp-rows.jsonl-x-0", "rows.jsonl"]);
    }

    #[test]
    fn long_names_fit() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("\u{e9}".repeat(127));
        write_whole(&target, b"x").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
    }
}
