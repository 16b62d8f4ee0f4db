//! Where libtorch is taken from, and whether it is the version that the bindings need.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{VERSION, own_place};

/// Prints the folder of the package `torch` without importing it (an import takes seconds).
const FIND_TORCH: &str = r#"
import importlib.util
spec = importlib.util.find_spec("torch")
if spec and spec.submodule_search_locations:
    print(list(spec.submodule_search_locations)[0])
"#;

/// A place that holds libtorch, in order of precedence.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// The folder that the user's `LIBTORCH` names.
    Environment(PathBuf),
    /// The package `torch` of the active Python.
    Python(PathBuf),
    /// Wheels from the package index.
    Wheels,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Environment(folder) => write!(f, "LIBTORCH {}", folder.display()),
            Source::Python(folder) => write!(f, "python {}", folder.display()),
            Source::Wheels => write!(f, "wheels"),
        }
    }
}

/// The user's `LIBTORCH`; `None` where it is unset or only this workspace's own `.libtorch`.
pub fn from_environment(place: &Path) -> Result<Option<Source>> {
    let Some(value) = std::env::var_os("LIBTORCH").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    named_by_user(Path::new(&value), place)
}

fn named_by_user(value: &Path, place: &Path) -> Result<Option<Source>> {
    // `.cargo/config.toml` sets the variable for every command that cargo runs, this one too.
    if own_place(place).iter().any(|own| is_same(own, value)) {
        return Ok(None);
    }
    let Ok(folder) = value.canonicalize() else {
        bail!(
            "`LIBTORCH` is `{}`: no such folder\nhint: unset `LIBTORCH` to have it fetched",
            value.display()
        );
    };
    match version(&folder) {
        Some(found) if found == VERSION => Ok(Some(Source::Environment(folder))),
        found => bail!(
            "`LIBTORCH` is `{}`: {}, expected libtorch {VERSION}\nhint: unset `LIBTORCH` to have it fetched",
            value.display(),
            found.map_or("no libtorch there".to_owned(), |found| format!("got libtorch {found}"))
        ),
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The active Python's torch where it has the right version; says so where it has another one.
pub fn from_python(root: &Path) -> Result<Option<Source>> {
    let Some(folder) = torch_package(root)? else {
        return Ok(None);
    };
    match version(&folder) {
        Some(found) if found == VERSION => Ok(Some(Source::Python(folder))),
        Some(found) => {
            eprintln!("python's torch is {found}, not {VERSION}: fetching wheels instead");
            Ok(None)
        }
        None => Ok(None),
    }
}

fn torch_package(root: &Path) -> Result<Option<PathBuf>> {
    let output = Command::new("python3").args(["-c", FIND_TORCH]).current_dir(root).output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "no `python3` on the path, needed to provide libtorch\nhint: install Python 3 with pip, or set `LIBTORCH` to a libtorch {VERSION}"
        ),
        Err(error) => return Err(error).context("cannot run `python3`"),
    };
    if !output.status.success() {
        bail!("`python3` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let folder = printed.trim();
    Ok((!folder.is_empty()).then(|| PathBuf::from(folder)))
}

/// The version in libtorch's own header, without a suffix such as `+cu130`.
pub fn version(folder: &Path) -> Option<String> {
    let header = fs::read_to_string(folder.join("include/torch/headeronly/version.h")).ok()?;
    let part = |name: &str| {
        let define = format!("#define TORCH_VERSION_{name} ");
        let line = header.lines().find_map(|line| line.strip_prefix(&define))?;
        line.trim().parse::<u32>().ok()
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libtorch(folder: &Path, minor: u32) {
        let header = folder.join("include/torch/headeronly");
        fs::create_dir_all(&header).expect("folder");
        let text = format!(
            "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n#define TORCH_VERSION_PATCH 0\n"
        );
        fs::write(header.join("version.h"), text).expect("header");
    }

    #[test]
    fn own_view_is_not_the_users_choice() {
        let root = tempfile::tempdir().expect("folder");
        let place = root.path().join(".libtorch");
        assert_eq!(named_by_user(&place, &place).expect("no error"), None);
        let workspace = crate::workspace_root().join(".libtorch");
        assert_eq!(named_by_user(&workspace, &place).expect("no error"), None);
    }

    #[test]
    fn users_folder_must_hold_the_right_version() {
        let root = tempfile::tempdir().expect("folder");
        let place = root.path().join(".libtorch");
        let user = root.path().join("mine");
        let missing = named_by_user(&user, &place).expect_err("missing").to_string();
        assert!(missing.contains("no such folder"), "{missing}");
        libtorch(&user, 10);
        let old = named_by_user(&user, &place).expect_err("old").to_string();
        assert!(old.contains("got libtorch 2.10.0, expected libtorch 2.11.0"), "{old}");
        libtorch(&user, 11);
        let right = named_by_user(&user, &place).expect("right");
        assert_eq!(right, Some(Source::Environment(user.canonicalize().expect("path"))));
    }
}
