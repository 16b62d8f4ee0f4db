//! `cargo xtask libtorch`: provides `.libtorch/{include,lib}` in the workspace root.
//!
//! The folder is a view that only ever shows the CPU libraries of libtorch, because `torch-sys`
//! links CUDA as soon as `libtorch_cuda.so` lies beside them. It is made beside its final name and
//! renamed, and its file `complete` says where it came from; a whole view is left untouched.

mod fetch;
mod source;
mod view;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use source::Source;

/// The only libtorch that the bindings in use (`tch` 0.24) accept.
pub const VERSION: &str = "2.11.0";

/// Makes `root/.libtorch` usable, doing nothing when it already is.
pub fn provide(root: &Path) -> Result<()> {
    supported_platform()?;
    let root = root.canonicalize().with_context(|| format!("no folder `{}`", root.display()))?;
    let place = root.join(".libtorch");
    let wanted = source::from_environment(&place)?;
    if is_settled(&place, wanted.as_ref())? {
        return Ok(());
    }
    let _lock = lock(&root)?;
    // Another process may have finished the work while this one waited.
    if is_settled(&place, wanted.as_ref())? {
        return Ok(());
    }
    let source = match wanted {
        Some(source) => source,
        None => source::from_python(&root)?.unwrap_or(Source::Wheels),
    };
    make(&root, &place, &source)?;
    eprintln!("libtorch {VERSION} ready in `.libtorch` ({source})");
    if matches!(source, Source::Environment(_)) {
        eprintln!(
            "hint: `unset LIBTORCH` before calling cargo directly (make does so): plain builds then use `.libtorch`, which shows only the CPU libraries"
        );
    }
    Ok(())
}

/// Whether `place` needs no work: whole, and from the source that the user names, if any.
fn is_settled(place: &Path, wanted: Option<&Source>) -> Result<bool> {
    match view::state(place) {
        view::State::Whole { source } => {
            Ok(wanted.is_none_or(|wanted| wanted.to_string() == source))
        }
        view::State::HandMade { version } if version == VERSION => {
            eprintln!("libtorch: `.libtorch` was made by hand, left as it is");
            Ok(true)
        }
        view::State::HandMade { version } => bail!(
            "`{}` holds libtorch {version}, expected {VERSION}\nhint: it was not made by this command; move it away",
            place.display()
        ),
        view::State::Broken => Ok(false),
    }
}

/// Builds the view beside its final name, then puts it there.
fn make(root: &Path, place: &Path, source: &Source) -> Result<()> {
    let staging = root.join(".libtorch.new");
    remove(&staging)?;
    fs::create_dir(&staging).with_context(|| format!("cannot create `{}`", staging.display()))?;
    let made = fill(&staging, source).and_then(|()| view::finish(&staging, source));
    if let Err(error) = made {
        remove(&staging)?;
        return Err(error);
    }
    let old = root.join(".libtorch.old");
    remove(&old)?;
    if place.symlink_metadata().is_ok() {
        fs::rename(place, &old).with_context(|| format!("cannot move `{}`", place.display()))?;
    }
    fs::rename(&staging, place).with_context(|| format!("cannot create `{}`", place.display()))?;
    remove(&old)
}

fn fill(staging: &Path, source: &Source) -> Result<()> {
    match source {
        Source::Environment(folder) | Source::Python(folder) => view::link(folder, staging),
        Source::Wheels => fetch::into(staging),
    }
}

fn remove(path: &Path) -> Result<()> {
    let Ok(kind) = path.symlink_metadata() else {
        return Ok(());
    };
    let removed = if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove `{}`", path.display()))
}

/// Held while `.libtorch` is being made; released when the process ends, however it ends.
fn lock(root: &Path) -> Result<File> {
    let folder = File::open(root).with_context(|| format!("cannot open `{}`", root.display()))?;
    match folder.try_lock() {
        Ok(()) => return Ok(folder),
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another `cargo xtask libtorch` in this folder");
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock `{}`", root.display()));
        }
    }
    folder.lock().with_context(|| format!("cannot lock `{}`", root.display()))?;
    Ok(folder)
}

fn supported_platform() -> Result<()> {
    let here = (std::env::consts::OS, std::env::consts::ARCH);
    if here == ("linux", "x86_64") && cfg!(target_env = "gnu") {
        return Ok(());
    }
    bail!(
        "libtorch for `{}` on `{}` was never tried here, expected `linux` with glibc on `x86_64`\n\
         hint: build in an x86_64 Linux container or virtual machine",
        here.0,
        here.1
    )
}

/// The folder that `LIBTORCH` names when nobody but this workspace's own configuration set it.
fn own_place(place: &Path) -> [PathBuf; 2] {
    [place.to_path_buf(), crate::workspace_root().join(".libtorch")]
}
