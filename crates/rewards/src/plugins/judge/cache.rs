//! Replies on disk, keyed by the content of the request.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A folder with one file for each reply, named by the SHA-256 of what was asked.
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The folder is made with the first reply.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The reply to the question that `parts` make up.
    pub(super) fn get(&self, parts: &[&str]) -> Option<String> {
        let path = self.path(parts);
        match fs::read_to_string(&path) {
            Ok(reply) => Some(reply),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                base::say!("{}: {error}; asked again", path.display());
                None
            }
        }
    }

    /// Keeps a reply; a full disk costs time later, no score now.
    pub(super) fn put(&self, parts: &[&str], reply: &str) {
        let path = self.path(parts);
        if let Err(error) = self.write(&path, reply) {
            base::say!("{}: {error}; the reply is not kept", path.display());
        }
    }

    /// Atomic, also with other processes at the same folder.
    fn write(&self, path: &Path, reply: &str) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file = base::temporary_file(&self.folder)?;
        file.write_all(reply.as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    fn path(&self, parts: &[&str]) -> PathBuf {
        let mut hash = Sha256::new();
        for part in parts {
            // Lengths keep `ab`, `c` and `a`, `bc` apart.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name)
    }
}
