//! One process at a time writes to a folder: by a system lock, or by a file that names its holder where the file system has
//! no locks.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::RunError;
use super::environment::host;
use super::files::{io, remove};

const LOCK: &str = ".lock";
/// Made where the system cannot lock [`LOCK`].
const HOLDER: &str = ".lock.holder";

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// A folder that this process holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// Locked as long as it is open.
    _file: File,
    /// The file that names this process, where the system has no locks.
    holder: Option<PathBuf>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(path) = &self.holder {
            // A file that stays names a dead process, and is ignored.
            let _ = fs::remove_file(path);
        }
    }
}

/// Takes the folder.
///
/// # Errors
/// [`RunError::Locked`] where another process has it; where it cannot be written.
pub(super) fn lock(dir: &Path) -> Result<Lock, RunError> {
    lock_by(dir, File::try_lock)
}

fn lock_by(
    dir: &Path,
    try_lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<Lock, RunError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io(&path))?;
    let holder = dir.join(HOLDER);
    let holder = match patiently(|| try_lock(&file)) {
        Ok(()) => {
            file.set_len(0).map_err(io(&path))?;
            write!(file, "{}", std::process::id()).map_err(io(&path))?;
            // Left by a process that had no lock: on another host, or before the disk was mounted anew.
            give_way(dir, &holder)?;
            None
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io(&path))?;
            return Err(RunError::Locked {
                dir: dir.into(),
                pid: pid.trim().parse().ok(),
                host: None,
                file: None,
            });
        }
        Err(TryLockError::Error(error)) => {
            take_by_name(dir, &holder)?;
            crate::say!(
                "note: {}: this file system has no locks ({error}); `{HOLDER}` keeps other processes out",
                dir.display()
            );
            Some(holder)
        }
    };
    Ok(Lock { _file: file, holder })
}

/// Tries for half a second: a program that this process has just started holds its locks until it is another.
fn patiently(try_lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    for _ in 0..TRIES {
        match try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    try_lock()
}

/// Creates the file that names this process.
fn take_by_name(dir: &Path, path: &Path) -> Result<(), RunError> {
    give_way(dir, path)?;
    let created = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = match created {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // Another one was quicker.
            let now = fs::read_to_string(path).unwrap_or_default();
            return Err(locked(dir, path, &Holder::parse(&now)));
        }
        created => created.map_err(io(path))?,
    };
    let text = Holder::this_process().text();
    file.write_all(text.as_bytes()).map_err(io(path))?;
    file.sync_all().map_err(io(path))
}

/// Removes the file of a holder that is gone.
fn give_way(dir: &Path, path: &Path) -> Result<(), RunError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(path)(error)),
    };
    let holder = Holder::parse(&text);
    if !holder.is_gone() {
        return Err(locked(dir, path, &holder));
    }
    // Under a name of its own, so that of two processes that find it one takes it away.
    let aside = dir.join(format!("{HOLDER}.{}", std::process::id()));
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        renamed => {
            renamed.map_err(io(path))?;
            remove(&aside)
        }
    }
}

fn locked(dir: &Path, file: &Path, holder: &Holder) -> RunError {
    RunError::Locked {
        dir: dir.into(),
        pid: holder.pid,
        host: Some(holder.host.clone()).filter(|host| *host != Holder::this_process().host),
        file: Some(file.into()),
    }
}

/// A process, told apart from a later one of its number by when it began.
#[derive(Debug, PartialEq)]
struct Holder {
    host: String,
    pid: Option<u32>,
    /// Clock ticks from the start of the system.
    began: Option<u64>,
}

impl Holder {
    fn this_process() -> Self {
        let pid = std::process::id();
        Self { host: host().unwrap_or_default(), pid: Some(pid), began: began(pid) }
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        Self {
            host: lines.next().unwrap_or_default().to_owned(),
            pid: lines.next().and_then(|line| line.parse().ok()),
            began: lines.next().and_then(|line| line.parse().ok()),
        }
    }

    fn text(&self) -> String {
        let number = |n: Option<u64>| n.map_or(String::new(), |n| n.to_string());
        let pid = number(self.pid.map(u64::from));
        format!("{}\n{pid}\n{}\n", self.host, number(self.began))
    }

    /// Whether it is known to run no more.
    fn is_gone(&self) -> bool {
        let (Some(pid), Some(before)) = (self.pid, self.began) else {
            return false;
        };
        // Of another host nothing can be known, and without `/proc` nothing of this one.
        let this = Self::this_process();
        self.host == this.host && this.began.is_some() && began(pid) != Some(before)
    }
}

/// When a process began: field 22 of `/proc/PID/stat`, behind a name that may hold anything.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// NFS without its lock service, some FUSE, kernels without the call.
    fn none(_: &File) -> Result<(), TryLockError> {
        const ENOLCK: i32 = 37;
        Err(TryLockError::Error(io::Error::from_raw_os_error(ENOLCK)))
    }

    fn hold(dir: &Path, host: &str, pid: u32, began: u64) {
        fs::write(dir.join(HOLDER), format!("{host}\n{pid}\n{began}\n")).unwrap();
    }

    #[test]
    fn without_locks_a_file_keeps_others_out() {
        for error in [
            io::Error::from(ErrorKind::Unsupported),
            io::Error::from_raw_os_error(37),
            io::Error::from_raw_os_error(38),
            io::Error::from_raw_os_error(95),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let code = error.raw_os_error();
            let refuse = move |_: &File| {
                let again = code.map(io::Error::from_raw_os_error);
                Err(TryLockError::Error(again.unwrap_or(ErrorKind::Unsupported.into())))
            };
            let lock = lock_by(dir.path(), refuse).unwrap();
            let second = lock_by(dir.path(), refuse).unwrap_err();
            let this = std::process::id();
            assert!(
                matches!(&second, RunError::Locked { pid: Some(pid), host: None, .. } if *pid == this),
                "{second}"
            );
            // A process that has locks sees the other one too.
            assert!(super::lock(dir.path()).is_err());
            drop(lock);
            drop(lock_by(dir.path(), refuse).unwrap());
            drop(super::lock(dir.path()).unwrap());
        }
    }

    #[test]
    fn a_holder_that_is_gone_gives_way_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let this = Holder::this_process();
        let (pid, began) = (this.pid.unwrap(), this.began.unwrap());
        // Killed, and its number taken by a later process; its number free.
        for (pid, began) in [(pid, began - 1), (u32::MAX, began)] {
            hold(dir.path(), &this.host, pid, began);
            drop(lock_by(dir.path(), none).unwrap());
        }
        hold(dir.path(), &this.host, pid, began);
        assert!(lock_by(dir.path(), none).is_err());
        hold(dir.path(), "elsewhere", 7, 1);
        let error = lock_by(dir.path(), none).unwrap_err().to_string();
        for part in ["process 7 on host `elsewhere`", "hint: ", HOLDER] {
            assert!(error.contains(part), "{error}");
        }
        // Killed before it wrote its name: unknown.
        fs::write(dir.path().join(HOLDER), "").unwrap();
        let error = lock_by(dir.path(), none).unwrap_err().to_string();
        assert!(error.contains(HOLDER), "{error}");
    }
}
