//! The folder of a file's images: the only check of the paths in rows.
//!
//! Rows are not trusted: a path must lead to a regular file inside the image folder, links resolved.
//! With `--follow_links true` the links of the folder are trusted and may lead elsewhere.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::RowCause;

/// Names of images that are remembered as found.
pub(crate) const MAX_KNOWN: usize = 1 << 16;
/// Folders of the system whose files are no files: they tell of processes and devices.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The folder that holds a file's images.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    given: Option<PathBuf>,
    /// Absolute, links resolved; `None` where the folder does not exist.
    real: Option<PathBuf>,
    /// Links right in the folder that lead to folders elsewhere.
    links: OnceLock<Vec<Link>>,
    /// Names that were found in it.
    known: Arc<Mutex<HashSet<String>>>,
    /// Whether names were looked at before, all of them.
    is_known: bool,
}

/// A link and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The link.
    pub path: PathBuf,
    /// Its end, absolute, all links resolved.
    pub target: PathBuf,
}

impl ImageFolder {
    /// A folder as the user wrote it. It need not exist as long as no row names an image.
    pub fn new(folder: Option<&Path>) -> Self {
        let real = folder.and_then(|folder| fs::canonicalize(folder).ok());
        Self {
            given: folder.map(Path::to_owned),
            real: real.filter(|real| real.is_dir()),
            links: OnceLock::new(),
            known: Arc::default(),
            is_known: false,
        }
    }

    /// The folder of rows that were resolved before: names are not looked at again.
    pub(crate) fn known(mut self) -> Self {
        self.is_known = true;
        self
    }

    /// Path of an existing file in this folder. Links resolved, it must still lie in it; with `follow_links` it may
    /// instead be reached by a name without `..` through a link in the folder, or lie, by its absolute name, in what a
    /// link right in the folder leads to.
    ///
    /// # Errors
    /// A file that is not there, cannot be read, or lies elsewhere.
    pub fn resolve(&self, image: &str, follow_links: bool) -> Result<PathBuf, RowCause> {
        let (given, real) = match (&self.given, &self.real) {
            (Some(given), Some(real)) => (given, real),
            (Some(folder), None) => {
                return Err(RowCause::MissingImageFolder { folder: folder.clone() });
            }
            (None, _) => return Err(RowCause::NoImageFolder),
        };
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_known || known().contains(image) {
            return Ok(given.join(image));
        }
        let name = Path::new(image);
        let outside =
            |link| RowCause::ImageOutside { image: image.to_owned(), folder: given.clone(), link };
        if climbs_out(name) {
            return Err(outside(None));
        }
        let path = given.join(name);
        let unreadable =
            |reason: String| RowCause::ImageUnreadable { image: image.to_owned(), reason };
        let target = match fs::canonicalize(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(RowCause::ImageMissing {
                    image: image.to_owned(),
                    folder: given.clone(),
                    link: dangling(&path),
                });
            }
            Err(error) => return Err(unreadable(error.to_string())),
        };
        if !target.starts_with(real) {
            let link = self.link_of(name, &target);
            let may_follow = follow_links && !climbs(name) && !is_of_system(&target);
            if link.is_none() || !may_follow {
                return Err(outside(link.filter(|_| !climbs(name) && !is_of_system(&target))));
            }
        }
        if !target.is_file() {
            return Err(unreadable("not a regular file".to_owned()));
        }
        let mut known = known();
        if known.len() < MAX_KNOWN {
            known.insert(image.to_owned());
        }
        Ok(path)
    }

    /// The link of this folder by which a name leads out of it to `target`.
    fn link_of(&self, name: &Path, target: &Path) -> Option<Link> {
        let (given, real) = (self.given.as_ref()?, self.real.as_ref()?);
        let inner = [given, real].map(|folder| name.strip_prefix(folder).ok());
        let inner = match name.is_absolute() {
            true => inner.into_iter().flatten().next(),
            false => Some(name),
        };
        let Some(inner) = inner else {
            // By its absolute name: in what a link leads to.
            let links = self.links.get_or_init(|| links_in(given, real));
            let holds =
                |link: &&Link| [name, target].iter().any(|path| path.starts_with(&link.target));
            return links.iter().find(holds).cloned();
        };
        let mut path = given.clone();
        inner.components().find_map(|component| {
            path.push(component);
            leading_out(&path, real)
        })
    }
}

/// Links right in a folder to folders that lie elsewhere.
fn links_in(given: &Path, real: &Path) -> Vec<Link> {
    let entries = fs::read_dir(given).into_iter().flatten().flatten();
    let mut links: Vec<Link> = entries
        .filter_map(|entry| leading_out(&entry.path(), real))
        .filter(|link| link.target.is_dir())
        .collect();
    links.sort_by(|a, b| a.path.cmp(&b.path));
    links
}

/// The path as a link that leads out of a folder.
fn leading_out(path: &Path, real: &Path) -> Option<Link> {
    if !path.is_symlink() {
        return None;
    }
    let target = fs::canonicalize(path).ok()?;
    (!target.starts_with(real)).then(|| Link { path: path.to_owned(), target })
}

/// The link in a path whose target is missing.
fn dangling(path: &Path) -> Option<Link> {
    let link = path.ancestors().find(|part| part.is_symlink())?;
    let target = fs::read_link(link).ok()?;
    Some(Link { path: link.to_owned(), target: link.parent()?.join(target) })
}

fn is_of_system(target: &Path) -> bool {
    SYSTEM.iter().any(|folder| target.starts_with(folder))
}

fn climbs(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
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
