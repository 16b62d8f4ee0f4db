//! The folder `.libtorch` itself: what it shows, its marker, and whether it is whole.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gpu::{elf, library_folders};

use super::VERSION;
use super::source::{self, Source};

/// Written last: `version`, `source` and one line for each file that the view shows.
const MARKER: &str = "complete";

/// The libraries that a CPU build links; what these need in turn is looked up.
const LINKED: [&str; 2] = ["libtorch_cpu.so", "libc10.so"];

/// What lies at the place of the view.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// Made by this program, nothing missing.
    Whole {
        /// As `Source` prints itself.
        source: String,
    },
    /// Usable, without our marker.
    HandMade {
        /// From its header.
        version: String,
    },
    /// Absent, of another version, or with a file or link target gone.
    Broken,
}

/// Looks at `place` without changing it.
pub fn state(place: &Path) -> State {
    let Ok(marker) = fs::read_to_string(place.join(MARKER)) else {
        let linkable = LINKED.iter().all(|name| place.join("lib").join(name).exists());
        return match source::version(place) {
            Some(version) if linkable => State::HandMade { version },
            _ => State::Broken,
        };
    };
    let field = |name: &str| marker.lines().find_map(|line| line.strip_prefix(name));
    let mut files = marker.lines().filter_map(|line| line.strip_prefix("file "));
    match field("source ") {
        Some(source)
            if field("version ") == Some(VERSION) && files.all(|f| place.join(f).exists()) =>
        {
            State::Whole { source: source.to_owned() }
        }
        _ => State::Broken,
    }
}

/// Fills `staging` with links into an installed libtorch or Python package at `folder`.
pub fn link(folder: &Path, staging: &Path) -> Result<()> {
    let folder =
        folder.canonicalize().with_context(|| format!("no folder `{}`", folder.display()))?;
    let lib = staging.join("lib");
    fs::create_dir(&lib).with_context(|| format!("cannot create `{}`", lib.display()))?;
    make_link(&folder.join("include"), &staging.join("include"))?;
    let from = library_folders(&folder.join("lib"));
    let mut waiting: Vec<String> = LINKED.map(String::from).to_vec();
    while let Some(name) = waiting.pop() {
        if lib.join(&name).symlink_metadata().is_ok() {
            continue;
        }
        // Not beside libtorch: one of the system's own. `finish` refuses what is really missing.
        let Some(target) = from.iter().map(|dir| dir.join(&name)).find(|path| path.exists()) else {
            continue;
        };
        waiting.extend(elf::needed(&target)?);
        make_link(&target, &lib.join(&name))?;
    }
    Ok(())
}

/// Completes a filled `staging`: the name that the linker asks for, the version, the marker.
pub fn finish(staging: &Path, source: &Source) -> Result<()> {
    match source::version(staging) {
        Some(version) if version == VERSION => {}
        version => bail!("got libtorch {version:?} from {source}, expected {VERSION}"),
    }
    let lib = staging.join("lib");
    for name in LINKED {
        refuse_missing(&lib, name, source)?;
    }
    make_link(Path::new("libtorch_cpu.so"), &lib.join("libtorch.so"))?;
    // `torch-sys` compares this file with the version that it was made for.
    fs::write(staging.join("build-version"), VERSION).context("cannot write `build-version`")?;
    let mut names: Vec<String> = fs::read_dir(&lib)?
        .map(|entry| Ok(format!("lib/{}", entry?.file_name().to_string_lossy())))
        .collect::<Result<_>>()?;
    names.push("include/torch/headeronly/version.h".to_owned());
    names.sort();
    let files: String = names.iter().map(|name| format!("file {name}\n")).collect();
    let marker = format!("version {VERSION}\nsource {source}\n{files}");
    fs::write(staging.join(MARKER), marker).context("cannot write the marker")
}

/// Fails where `name` or a CUDA library that it needs is not in `lib`.
fn refuse_missing(lib: &Path, name: &str, source: &Source) -> Result<()> {
    let path = lib.join(name);
    if !path.exists() {
        bail!("no `{name}` in libtorch from {source}");
    }
    for needed in elf::needed(&path)? {
        // Even for the CPU, a CUDA build of libtorch does not start without these two or so.
        if needed.starts_with("libcu") && !lib.join(&needed).exists() {
            bail!(
                "`{name}` needs `{needed}`, which is not beside it ({source})\n\
                 hint: reinstall that torch with its dependencies, or leave it (unset `LIBTORCH`, deactivate the environment) to have libtorch fetched"
            );
        }
    }
    Ok(())
}

fn make_link(target: &Path, link: &Path) -> Result<()> {
    symlink(target, link)
        .with_context(|| format!("cannot link `{}` to `{}`", link.display(), target.display()))
}
