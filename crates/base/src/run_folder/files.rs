//! Atomic writes: a file is complete or absent.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::{RunError, UNFINISHED};

/// The name of what belongs to a step.
pub(super) fn step_name(step: u64) -> String {
    format!("step_{step:06}")
}

/// The step that [`step_name`] names.
pub(super) fn step_of_name(name: &str) -> Option<u64> {
    name.strip_prefix("step_")?.parse().ok()
}

/// Says which path an error is about.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let path = path.to_owned();
    move |source| RunError::Io { path, source }
}

/// The temporary name beside `path`.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{name}"))
}

/// Removes what a killed process left half made or half removed in `folder`, of the names that `is_ours` knows. What cannot be
/// removed, such as a file that another process reads on a network disk, does no harm.
pub(super) fn remove_unfinished(
    folder: &Path,
    is_ours: impl Fn(&str) -> bool,
) -> Result<(), RunError> {
    for (name, path) in entries(folder)? {
        if name.strip_prefix(UNFINISHED).is_some_and(&is_ours)
            && let Err(error) = remove(&path)
        {
            crate::say!("warning: an unfinished file stays: {error}");
        }
    }
    Ok(())
}

/// Removes a file or a folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), RunError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}

/// Names and paths in `folder`, sorted.
pub(super) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, RunError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// Writes a file beside its name and renames it without a sync: complete for every reader, and if this process dies, but not
/// after a power cut.
pub(super) fn write_soon(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    let beside = unfinished(path);
    fs::write(&beside, bytes).map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))
}

/// Syncs a file, if it is there.
pub(super) fn sync_file(path: &Path) -> Result<(), RunError> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file beside its name, syncs it and renames it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    if path.is_dir() {
        clear_away(path, "a folder, not a file")?;
    }
    let beside = unfinished(path);
    let mut file = File::create(&beside).map_err(io(&beside))?;
    file.write_all(bytes).map_err(io(&beside))?;
    file.sync_all().map_err(io(&beside))?;
    rename(&beside, path)
}

/// Renames a file or folder to the first free name of `NAME.word-1`, `NAME.word-2`, ...; returns that.
pub(super) fn set_aside(path: &Path, word: &str) -> Result<PathBuf, RunError> {
    let aside = free_name(path, word);
    rename(path, &aside)?;
    Ok(aside)
}

/// The first free name of `NAME.word-1`, `NAME.word-2`, ...
pub(super) fn free_name(path: &Path, word: &str) -> PathBuf {
    // TensorBoard reads every file with this word in its name.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.replace(".tfevents.", ".");
    let mut number = 1;
    loop {
        let free = path.with_file_name(format!("{name}.{word}-{number}"));
        // A link that leads nowhere takes the name too.
        if free.symlink_metadata().is_err() {
            return free;
        }
        number += 1;
    }
}

/// Renames what cannot be used in the place of a file or folder of the run, and warns.
pub(super) fn clear_away(path: &Path, cause: &str) -> Result<(), RunError> {
    let aside = set_aside(path, "damaged")?;
    crate::say!(
        "warning: {}: {cause}; it is `{}` now, and begun anew",
        path.display(),
        aside.display()
    );
    Ok(())
}

/// The bytes of a file that no run depends on. One that cannot be read is set aside; of a device, which may never end,
/// nothing is read.
pub(super) fn read_by_product(path: &Path) -> Result<Option<Vec<u8>>, RunError> {
    let read = fs::metadata(path).and_then(|file| match file.file_type() {
        kind if kind.is_char_device() => Ok(None),
        kind if kind.is_file() => fs::read(path).map(Some),
        _ => Err(Error::other("not a regular file")),
    });
    match read {
        Ok(bytes) => Ok(bytes),
        Err(_) if path.symlink_metadata().is_err() => Ok(None),
        Err(error) => clear_away(path, &error.to_string()).map(|()| None),
    }
}

/// Creates a folder of by-products; what is there and no folder is set aside.
pub(super) fn make_folder(path: &Path) -> Result<(), RunError> {
    if path.symlink_metadata().is_ok() && !path.is_dir() {
        clear_away(path, "not a folder")?;
    }
    fs::create_dir_all(path).map_err(io(path))
}

/// Renames and syncs the folder.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), RunError> {
    fs::rename(from, to).map_err(io(to))?;
    to.parent().map_or(Ok(()), sync_folder)
}

/// The text of a file, if it is there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, RunError> {
    // Of a device or a pipe the reading might never end.
    if fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Err(io(path)(Error::other("not a regular file")));
    }
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path)(error)),
    }
}

/// Opens a file for lines to be added.
pub(super) fn append_to(path: &Path) -> Result<File, RunError> {
    OpenOptions::new().create(true).append(true).open(path).map_err(io(path))
}

/// Syncs a folder's list of names.
pub(super) fn sync_folder(folder: &Path) -> Result<(), RunError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
}

/// Syncs a folder and all that is in it.
pub(super) fn sync_tree(folder: &Path) -> Result<(), RunError> {
    for (_, path) in entries(folder)? {
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(io(&path))?;
        }
    }
    sync_folder(folder)
}
