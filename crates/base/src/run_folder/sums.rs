//! Checksums of a checkpoint's files: a flipped bit is found before a run resumes from it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{entries, io, write_whole};
use super::{RunError, TRAINER_STATE};

/// In `trainer_state/`: by path in the checkpoint, [`FileSum`]s of all its files but this.
pub const SUMS: &str = "sums.json";
const BUFFER: usize = 1 << 20;

/// Size and sum of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Its size.
    pub bytes: u64,
    /// CRC-32C of all its bytes.
    pub crc32c: u32,
}

/// Sums by path in the checkpoint.
pub type Sums = BTreeMap<String, FileSum>;

/// Adds the sums of all files of `folder` that `sums` lacks, and writes them into it; returns the size of all files.
///
/// # Errors
/// A file that cannot be read, or sums that cannot be written.
pub fn write_sums(folder: &Path, mut sums: Sums) -> Result<u64, RunError> {
    let own = format!("{TRAINER_STATE}/{SUMS}");
    add(folder, "", &own, &mut sums)?;
    let text = serde_json::to_string_pretty(&sums)
        .map_err(|error| RunError::Io { path: folder.join(&own), source: error.into() })?;
    write_whole(&folder.join(&own), format!("{text}\n").as_bytes())?;
    Ok(sums.values().map(|sum| sum.bytes).sum())
}

/// Whether the checkpoint has checksums; if so, all its files are read and compared.
///
/// # Errors
/// [`RunError::Damaged`] at the first file that is missing or another one; sums that cannot be read.
pub fn verify_sums(folder: &Path) -> Result<bool, RunError> {
    verify(folder, |_| true)
}

/// As [`verify_sums`], for the files of the model alone: what going on needs may be large, and is not read by others.
///
/// # Errors
/// As [`verify_sums`].
pub fn verify_model(folder: &Path) -> Result<bool, RunError> {
    verify(folder, |name| !name.starts_with(TRAINER_STATE))
}

/// As [`verify_sums`], for the file `name` alone.
///
/// # Errors
/// As [`verify_sums`].
pub fn verify_file(folder: &Path, name: &str) -> Result<bool, RunError> {
    verify(folder, |other| other == name)
}

fn verify(folder: &Path, counts: impl Fn(&str) -> bool) -> Result<bool, RunError> {
    let path = folder.join(TRAINER_STATE).join(SUMS);
    let text = match only_files(&path).and_then(|()| fs::read(&path)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io(&path)(error)),
    };
    let damaged = |path: &Path, cause: String| RunError::Damaged { path: path.to_owned(), cause };
    let sums: Sums = serde_json::from_slice(&text)
        .map_err(|error| damaged(&path, format!("not a list of sums: {error}")))?;
    for (name, expected) in sums.iter().filter(|(name, _)| counts(name)) {
        let file = folder.join(name);
        let got = match sum_of(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged(&file, "the file is missing".to_owned()));
            }
            got => got.map_err(io(&file))?,
        };
        if got != *expected {
            let told = |sum: &FileSum| format!("{} bytes, crc32c {:08x}", sum.bytes, sum.crc32c);
            let cause = format!("expected {}, got {}", told(expected), told(&got));
            return Err(damaged(&file, cause));
        }
    }
    Ok(true)
}

/// Sums of the files of `folder` and of those below it, but `own`.
fn add(folder: &Path, prefix: &str, own: &str, sums: &mut Sums) -> Result<(), RunError> {
    for (name, path) in entries(folder)? {
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            add(&path, &format!("{name}/"), own, sums)?;
        } else if name != own && !sums.contains_key(&name) {
            let sum = sum_of(&path).map_err(io(&path))?;
            sums.insert(name, sum);
        }
    }
    Ok(())
}

/// Refuses a pipe or a device, of which the reading might never end.
fn only_files(path: &Path) -> std::io::Result<()> {
    match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(std::io::Error::other("not a regular file")),
    }
}

fn sum_of(path: &Path) -> std::io::Result<FileSum> {
    only_files(path)?;
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER];
    let mut sum = FileSum { bytes: 0, crc32c: 0 };
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(sum),
            Ok(len) => {
                sum.bytes += len as u64;
                sum.crc32c = crc32c::crc32c_append(sum.crc32c, &buffer[..len]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join(TRAINER_STATE);
        fs::create_dir(&state).unwrap();
        fs::write(dir.path().join("model.safetensors"), b"weights").unwrap();
        fs::write(state.join("state.json"), b"{\"step\": 3}").unwrap();
        fs::write(state.join("optimizer.safetensors"), vec![7; BUFFER + 3]).unwrap();
        dir
    }

    #[test]
    fn one_bit_of_any_file_is_seen() {
        let dir = checkpoint();
        assert!(!verify_sums(dir.path()).unwrap());
        let known = sum_of(&dir.path().join("model.safetensors")).unwrap();
        let sums = Sums::from([("model.safetensors".to_owned(), known)]);
        let bytes = write_sums(dir.path(), sums).unwrap();
        assert_eq!(bytes, 7 + 11 + BUFFER as u64 + 3);
        assert!(verify_sums(dir.path()).unwrap());
        for name in
            ["model.safetensors", "trainer_state/state.json", "trainer_state/optimizer.safetensors"]
        {
            let path = dir.path().join(name);
            let whole = fs::read(&path).unwrap();
            for damage in ["flipped", "cut off", "longer", "missing"] {
                let mut bytes = whole.clone();
                match damage {
                    "flipped" => bytes[whole.len() / 2] ^= 4,
                    "cut off" => bytes.truncate(whole.len() - 1),
                    _ => bytes.push(0),
                }
                fs::write(&path, bytes).unwrap();
                if damage == "missing" {
                    fs::remove_file(&path).unwrap();
                }
                let error = verify_sums(dir.path()).unwrap_err();
                let said = error.to_string();
                assert!(matches!(error, RunError::Damaged { .. }), "{said}");
                assert!(said.contains(name), "{damage}: {said}");
            }
            fs::write(&path, whole).unwrap();
        }
        let path = dir.path().join(TRAINER_STATE).join(SUMS);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert!(verify_sums(dir.path()).is_err());
        // Of what going on needs, those who read the model need nothing.
        let state = dir.path().join(TRAINER_STATE).join("state.json");
        let whole = fs::read(&state).unwrap();
        fs::write(&state, "{}").unwrap();
        fs::write(&path, &text).unwrap();
        assert!(verify_sums(dir.path()).is_err() && verify_model(dir.path()).unwrap());
        fs::write(&state, whole).unwrap();
        // What somebody laid beside them is not ours.
        fs::write(&path, text).unwrap();
        fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        assert!(verify_sums(dir.path()).unwrap());
    }
}
