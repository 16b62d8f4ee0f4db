//! Free space of a disk.

use std::path::Path;

/// Free bytes of the file system that holds `path`, or will; `None` where it does not say.
///
/// A quota may leave less.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
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
}
