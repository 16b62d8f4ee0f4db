//! The folder of a file's images, which no name may lead out of.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::RowCause;

/// Names of images that are remembered as found.
pub(crate) const MAX_KNOWN: usize = 1 << 16;

/// The folder that holds a file's images.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    given: Option<PathBuf>,
    /// Absolute, links resolved; `None` where the folder does not exist.
    real: Option<PathBuf>,
    /// Names that were found in it.
    known: Arc<Mutex<HashSet<String>>>,
    /// Whether names were looked at before, all of them.
    is_known: bool,
}

impl ImageFolder {
    /// A folder as the user wrote it. It need not exist as long as no row names an image.
    pub fn new(folder: Option<&Path>) -> Self {
        let real = folder.and_then(|folder| fs::canonicalize(folder).ok());
        Self {
            given: folder.map(Path::to_owned),
            real: real.filter(|real| real.is_dir()),
            known: Arc::default(),
            is_known: false,
        }
    }

    /// The folder of rows that were resolved before: names are not looked at again.
    pub(crate) fn known(mut self) -> Self {
        self.is_known = true;
        self
    }

    /// Path of an existing file in this folder (links resolved, it must still lie in it).
    ///
    /// # Errors
    /// A file that is not there, cannot be read, or lies elsewhere.
    pub fn resolve(&self, image: &str) -> Result<PathBuf, RowCause> {
        let (given, real) = match (&self.given, &self.real) {
            (Some(given), Some(real)) => (given, real),
            (Some(folder), None) => {
                return Err(RowCause::MissingImageFolder {
                    folder: folder.clone(),
                });
            }
            (None, _) => return Err(RowCause::NoImageFolder),
        };
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_known || known().contains(image) {
            return Ok(given.join(image));
        }
        let outside = || RowCause::ImageOutside {
            image: image.to_owned(),
            folder: given.clone(),
        };
        if climbs_out(Path::new(image)) {
            return Err(outside());
        }
        let path = given.join(image);
        let unreadable = |reason: String| RowCause::ImageUnreadable {
            image: image.to_owned(),
            reason,
        };
        match fs::canonicalize(&path) {
            Ok(target) if !target.starts_with(real) => Err(outside()),
            Ok(target) if !target.is_file() => Err(unreadable("not a file".to_owned())),
            Ok(_) => {
                let mut known = known();
                if known.len() < MAX_KNOWN {
                    known.insert(image.to_owned());
                }
                Ok(path)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(RowCause::ImageMissing {
                    image: image.to_owned(),
                    folder: given.clone(),
                })
            }
            Err(error) => Err(unreadable(error.to_string())),
        }
    }
}

/// Whether `..` leads above the start, whatever exists on disk.
pub(crate) fn climbs_out(path: &Path) -> bool {
    let mut depth = 0i64;
    path.components().any(|component| {
        match component {
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
        depth < 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb_are_found_without_a_disk() {
        for bad in ["..", "a/../../b", "./../x", "a/b/../../../c"] {
            assert!(climbs_out(Path::new(bad)), "{bad}");
        }
        for good in ["a", "a/../b", "./a/./b"] {
            assert!(!climbs_out(Path::new(good)), "{good}");
        }
    }
}
