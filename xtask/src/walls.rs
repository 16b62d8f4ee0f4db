//! `cargo xtask walls`: holds the dependencies between our crates to the table of the architecture.
//!
//! Three walls: a crate uses only the crates listed for it (tests and build scripts included;
//! `testing` is for tests alone); the crates marked so never reach libtorch, not even through
//! others; only `torch` and `gpu` may say `unsafe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Each crate and the crates of ours that it may use.
const MAY_USE: [(&str, &[&str]); 25] = [
    ("base", &[]),
    ("gpu", &[]),
    ("config", &[]),
    ("torch", &["gpu"]),
    ("python", &[]),
    ("testing", &[]),
    ("mathverify", &["python"]),
    ("data", &["base", "config", "python"]),
    ("rewards", &["base", "config", "python", "mathverify"]),
    ("report", &["base"]),
    ("tiny", &[]),
    ("web", &["base"]),
    ("reward-server", &["base", "python", "web"]),
    ("pages", &["base", "config", "data", "rewards", "report", "eval"]),
    ("dashboard", &["base", "report", "pages", "web"]),
    ("ranks", &["base", "torch"]),
    ("models", &["base", "torch"]),
    ("engine", &["base", "torch", "models"]),
    ("train", &["base", "config", "data", "rewards", "torch", "ranks", "models", "engine"]),
    ("eval", &["base", "config", "python", "data", "rewards", "report"]),
    ("eval-runner", &["base", "config", "data", "rewards", "torch", "models", "engine", "eval"]),
    (
        "cli",
        &[
            "base",
            "gpu",
            "config",
            "python",
            "data",
            "rewards",
            "report",
            "pages",
            "dashboard",
            "eval",
            "web",
            "reward-server",
        ],
    ),
    (
        "cli-engine",
        &[
            "base",
            "config",
            "python",
            "data",
            "rewards",
            "report",
            "pages",
            "torch",
            "ranks",
            "models",
            "engine",
            "train",
            "eval",
            "eval-runner",
            "tiny",
            "cli",
        ],
    ),
    ("experiments", &["data", "report", "tiny"]),
    ("xtask", &["gpu"]),
];

/// Build and test on a machine without libtorch.
const NO_LIBTORCH: [&str; 18] = [
    "base",
    "gpu",
    "config",
    "python",
    "mathverify",
    "testing",
    "data",
    "rewards",
    "report",
    "pages",
    "dashboard",
    "tiny",
    "web",
    "reward-server",
    "eval",
    "cli",
    "experiments",
    "xtask",
];

/// Reaching any of these is reaching libtorch.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];

/// Supports of tests: every crate may use it, as a dev-dependency only.
const FOR_TESTS: &str = "testing";

/// The crates that may switch off the lint.
const MAY_BE_UNSAFE: [&str; 2] = ["torch", "gpu"];

// In two halves, so that this file does not break its own wall.
const UNSAFE_LINT: &str = concat!("unsafe", "_code");

/// Checks the workspace at `root`; the error lists every breach.
pub fn run(root: &Path) -> Result<()> {
    let metadata = Metadata::read(root)?;
    let mut breaches = metadata.forbidden_edges();
    breaches.extend(metadata.ways_to_libtorch()?);
    breaches.extend(unsafe_outside_its_crate(root, &metadata)?);
    if breaches.is_empty() {
        return Ok(());
    }
    let list = breaches.join("\n  ");
    bail!("{} breach(es) of the walls between crates\n  {list}", breaches.len())
}

/// What `cargo metadata` says of one workspace.
struct Metadata {
    /// Package id -> package.
    packages: BTreeMap<String, Package>,
    /// Package id -> ids of all that it is built, run or tested with.
    resolved: BTreeMap<String, Vec<String>>,
    members: BTreeSet<String>,
}

struct Package {
    name: String,
    manifest: PathBuf,
    /// Name and kind (`normal`, `dev` or `build`) of each dependency that the manifest names.
    dependencies: Vec<(String, String)>,
}

impl Metadata {
    fn read(root: &Path) -> Result<Self> {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            // The host's packages alone: others would be downloaded for nothing.
            .args(["metadata", "--format-version", "1", "--filter-platform", &host()?])
            .current_dir(root)
            .output()
            .context("cannot run `cargo metadata`")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Self::parse(&serde_json::from_slice(&output.stdout)?)
            .context("`cargo metadata` is not as expected")
    }

    fn parse(json: &Value) -> Result<Self> {
        let mut packages = BTreeMap::new();
        for package in list(&json["packages"])? {
            let mut dependencies = Vec::new();
            for dependency in list(&package["dependencies"])? {
                let kind = dependency["kind"].as_str().unwrap_or("normal").to_owned();
                dependencies.push((text(&dependency["name"])?, kind));
            }
            let name = text(&package["name"])?;
            let manifest = PathBuf::from(text(&package["manifest_path"])?);
            packages.insert(text(&package["id"])?, Package { name, manifest, dependencies });
        }
        let mut resolved = BTreeMap::new();
        for node in list(&json["resolve"]["nodes"])? {
            let uses = list(&node["dependencies"])?.iter().map(text).collect::<Result<_>>()?;
            resolved.insert(text(&node["id"])?, uses);
        }
        let members = list(&json["workspace_members"])?.iter().map(text).collect::<Result<_>>()?;
        Ok(Self { packages, resolved, members })
    }

    /// Our packages, by name.
    fn ours(&self) -> impl Iterator<Item = (&String, &Package)> {
        self.packages.iter().filter(|(id, _)| self.members.contains(*id))
    }

    fn forbidden_edges(&self) -> Vec<String> {
        let names: BTreeSet<&str> = self.ours().map(|(_, package)| &*package.name).collect();
        let mut breaches = Vec::new();
        for (_, package) in self.ours() {
            let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
                breaches.push(format!("`{}` is not in the table of crates", package.name));
                continue;
            };
            for (name, kind) in &package.dependencies {
                let is_allowed = match &**name {
                    FOR_TESTS => kind == "dev",
                    name => allowed.contains(&name),
                };
                if names.contains(&**name) && !is_allowed {
                    let from = &package.name;
                    breaches.push(format!("`{from}` uses `{name}` ({kind} dependency)"));
                }
            }
        }
        breaches
    }

    fn ways_to_libtorch(&self) -> Result<Vec<String>> {
        let mut breaches = Vec::new();
        for (id, package) in self.ours() {
            if !NO_LIBTORCH.contains(&&*package.name) {
                continue;
            }
            if let Some(way) = self.way_to_libtorch(id)? {
                breaches.push(format!("`{}` must not need libtorch: {way}", package.name));
            }
        }
        Ok(breaches)
    }

    /// The shortest chain of packages from `start` to libtorch.
    fn way_to_libtorch(&self, start: &str) -> Result<Option<String>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut row = vec![start];
        while !row.is_empty() {
            let mut next = Vec::new();
            for id in row {
                if LIBTORCH.contains(&&*self.package(id)?.name) {
                    return self.chain(id, &came_from).map(Some);
                }
                for used in self.resolved.get(id).into_iter().flatten() {
                    if used != start && !came_from.contains_key(&**used) {
                        came_from.insert(used, id);
                        next.push(&**used);
                    }
                }
            }
            row = next;
        }
        Ok(None)
    }

    fn chain(&self, end: &str, came_from: &BTreeMap<&str, &str>) -> Result<String> {
        let mut names = vec![&*self.package(end)?.name];
        let mut id = end;
        while let Some(before) = came_from.get(id) {
            names.push(&self.package(before)?.name);
            id = before;
        }
        names.reverse();
        Ok(names.join(" -> "))
    }

    fn package(&self, id: &str) -> Result<&Package> {
        self.packages.get(id).with_context(|| format!("no package `{id}`"))
    }
}

/// Crates that do not take the workspace's lints, and files that mention the lint on `unsafe`.
fn unsafe_outside_its_crate(root: &Path, metadata: &Metadata) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    let lint = format!("{UNSAFE_LINT} = \"deny\"");
    if !has_line(&root.join("Cargo.toml"), "[workspace.lints.rust]", &lint)? {
        breaches.push(format!("`Cargo.toml`: expected `{lint}` in `[workspace.lints.rust]`"));
    }
    for (_, package) in
        metadata.ours().filter(|(_, package)| !MAY_BE_UNSAFE.contains(&&*package.name))
    {
        if !has_line(&package.manifest, "[lints]", "workspace = true")? {
            breaches.push(format!("`{}` lacks `workspace = true` in `[lints]`", package.name));
        }
        let folder = package.manifest.parent().unwrap_or(root);
        for file in rust_files(folder)? {
            let source = fs::read_to_string(&file)
                .with_context(|| format!("cannot read `{}`", file.display()))?;
            if source.contains(UNSAFE_LINT) {
                let shown = file.strip_prefix(root).unwrap_or(&file).display();
                breaches.push(format!("`{shown}` touches the lint `{UNSAFE_LINT}`"));
            }
        }
    }
    Ok(breaches)
}

/// Whether `line` stands in section `header` of the TOML file, spaces aside.
fn has_line(manifest: &Path, header: &str, line: &str) -> Result<bool> {
    let toml = fs::read_to_string(manifest)
        .with_context(|| format!("cannot read `{}`", manifest.display()))?;
    let mut section = toml.lines().skip_while(|found| found.trim() != header).skip(1);
    let squeeze = |text: &str| text.replace(' ', "");
    Ok(section
        .by_ref()
        .take_while(|found| !found.trim_start().starts_with('['))
        .any(|found| squeeze(found) == squeeze(line)))
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run `rustc`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(String::from).context("`rustc -vV` names no host")
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("expected a list")
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(String::from).context("expected a string")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str =
        "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n\n[workspace.lints.rust]\n";

    /// A workspace on disk; `crates` are name, dependency sections and source.
    fn workspace(crates: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("folder");
        let lints = format!("{ROOT}{UNSAFE_LINT} = \"deny\"\n");
        fs::write(root.path().join("Cargo.toml"), lints).expect("write");
        for (name, sections, source) in crates {
            let folder = root.path().join("crates").join(name);
            fs::create_dir_all(folder.join("src")).expect("folder");
            let manifest = format!(
                "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n{sections}"
            );
            fs::write(folder.join("Cargo.toml"), manifest).expect("write");
            fs::write(folder.join("src/lib.rs"), source).expect("write");
        }
        root
    }

    fn breaches(crates: &[(&str, &str, &str)]) -> String {
        run(workspace(crates).path()).expect_err("a breach").to_string()
    }

    const LINTS: &str = "[lints]\nworkspace = true\n";

    #[test]
    fn this_workspace_keeps_its_walls() {
        run(&crate::workspace_root()).expect("no breach");
    }

    #[test]
    fn every_dependency_has_its_reason_written_down() {
        let root = crate::workspace_root();
        let page = fs::read_to_string(root.join("docs/dependencies.md")).expect("page");
        let metadata = Metadata::read(&root).expect("metadata");
        let names: BTreeSet<&str> = metadata.ours().map(|(_, package)| &*package.name).collect();
        let used = metadata.ours().flat_map(|(_, package)| &package.dependencies);
        let missing: BTreeSet<&str> = used
            .map(|(name, _)| &**name)
            .filter(|name| !names.contains(name) && !page.contains(&format!("`{name}`")))
            .collect();
        assert!(missing.is_empty(), "not in docs/dependencies.md: {missing:?}");
    }

    #[test]
    fn allowed_edges_pass() {
        let uses_base = format!("[dependencies]\nbase = {{ path = \"../base\" }}\n{LINTS}");
        run(workspace(&[("base", LINTS, ""), ("data", &uses_base, "")]).path()).expect("no breach");
    }

    #[test]
    fn every_kind_of_forbidden_edge_is_named() {
        for (section, kind) in [
            ("dependencies", "normal"),
            ("dev-dependencies", "dev"),
            ("build-dependencies", "build"),
        ] {
            let uses_data =
                format!("[{section}]\nd = {{ path = \"../data\", package = \"data\" }}\n{LINTS}");
            let said = breaches(&[("data", LINTS, ""), ("rewards", &uses_data, "")]);
            let expected = format!(
                "1 breach(es) of the walls between crates\n  `rewards` uses `data` ({kind} dependency)"
            );
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn supports_of_tests_are_for_tests() {
        let uses =
            |section: &str| format!("[{section}]\ntesting = {{ path = \"../testing\" }}\n{LINTS}");
        let testing = ("testing", LINTS, "");
        run(workspace(&[testing, ("data", &uses("dev-dependencies"), "")]).path())
            .expect("no breach");
        let said = breaches(&[testing, ("data", &uses("dependencies"), "")]);
        assert!(said.contains("`data` uses `testing` (normal dependency)"), "{said}");
    }

    #[test]
    fn unlisted_crate_is_a_breach() {
        assert!(breaches(&[("extra", LINTS, "")]).contains("`extra` is not in the table"));
    }

    #[test]
    fn libtorch_is_found_through_others() {
        let said = {
            let root = workspace(&[(
                "data",
                &format!(
                    "[dev-dependencies]\nhelper = {{ path = \"../../other/helper\" }}\n{LINTS}"
                ),
                "",
            )]);
            for (name, uses) in [("helper", "tch = { path = \"../tch\" }"), ("tch", "")] {
                let folder = root.path().join("other").join(name);
                fs::create_dir_all(folder.join("src")).expect("folder");
                let manifest = format!(
                    "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nworkspace = \"../..\"\n[dependencies]\n{uses}\n[lints]\nworkspace = true\n"
                );
                fs::write(folder.join("Cargo.toml"), manifest).expect("write");
                fs::write(folder.join("src/lib.rs"), "").expect("write");
            }
            run(root.path()).expect_err("a breach").to_string()
        };
        assert!(said.contains("`data` must not need libtorch: data -> helper -> tch"), "{said}");
    }

    #[test]
    fn unsafe_is_kept_in_its_crate() {
        let allow = format!("#![allow({UNSAFE_LINT})]\n");
        assert!(breaches(&[("base", LINTS, &allow)]).contains("`crates/base/src/lib.rs` touches"));
        assert!(breaches(&[("base", "", "")]).contains("`base` lacks `workspace = true`"));
        for name in MAY_BE_UNSAFE {
            run(workspace(&[(name, "", &allow)]).path()).expect("it may");
        }
    }
}
