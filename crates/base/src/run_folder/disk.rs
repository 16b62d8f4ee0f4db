//! A disk: its free space, and whether it locks and writes as runs need it.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that [`DiskTrial`] writes at most.
const TRIAL_BYTES: usize = 64 << 20;
const TRIAL_CHUNK: usize = 4 << 20;
/// After so long it writes no more.
const TRIAL_TIME: Duration = Duration::from_secs(1);

/// Free bytes of the file system that holds `path`, or will; `None` where it does not say.
///
/// A quota may leave less.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What a disk did.
#[derive(Clone, Copy, Debug)]
pub struct DiskTrial {
    /// Whether the system's locks keep a second holder out; without them a run names its holder in a file.
    pub has_locks: bool,
    /// Bytes that were written and reached the disk.
    pub bytes: usize,
    /// Time that this took.
    pub secs: f64,
}

impl DiskTrial {
    /// Tries the disk of folder `dir`: up to 64 MiB within a second, each 4 MiB brought to the disk, in a file that is
    /// gone at the end, also after a kill.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(dir)?;
        // Compression by the file system would take zeros for nothing.
        let mixed = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8;
        let chunk: Vec<u8> = (0..TRIAL_CHUNK as u64).map(mixed).collect();
        let start = Instant::now();
        let mut bytes = 0;
        while bytes < TRIAL_BYTES && start.elapsed() < TRIAL_TIME {
            file.write_all(&chunk)?;
            file.sync_data()?;
            bytes += chunk.len();
        }
        let secs = start.elapsed().as_secs_f64();
        Ok(Self { has_locks: has_locks(dir)?, bytes, secs })
    }
}

/// Whether a second holder of a lock is kept out.
fn has_locks(dir: &Path) -> io::Result<bool> {
    let file = tempfile::NamedTempFile::new_in(dir)?;
    let second = File::options().write(true).open(file.path())?;
    let first = file.as_file().try_lock();
    Ok(first.is_ok() && matches!(second.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_told_for_what_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let here = free_bytes(dir.path()).unwrap();
        assert!(here > 0);
        assert!(free_bytes(&dir.path().join("a/b/c")).is_some());
        assert!(free_bytes(Path::new("not/there")).is_some());
        assert!(free_bytes(Path::new("")).is_none());
    }

    #[test]
    fn a_disk_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let trial = DiskTrial::of(dir.path()).unwrap();
        assert!(trial.has_locks, "{trial:?}");
        assert!(trial.bytes >= TRIAL_CHUNK && trial.bytes <= TRIAL_BYTES, "{trial:?}");
        assert!(trial.secs > 0.0, "{trial:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(DiskTrial::of(&dir.path().join("absent")).is_err());
        assert!(DiskTrial::of(Path::new("/proc")).is_err());
    }
}
