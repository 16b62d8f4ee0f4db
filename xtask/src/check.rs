//! `cargo xtask check`: every check that needs no test to run, cheapest first.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{constants, paths, walls, words};

const FORMAT: &[&str] = &["fmt", "--all", "--check"];
// In the profile of the tests, so that what its build scripts compile serves them too.
const CLIPPY: &[&str] =
    &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];

/// Stops at the first check that fails.
pub fn run(root: &Path) -> Result<()> {
    step("machine paths", || paths::run(root))?;
    step("words", || words::run(root))?;
    step("constants of the docs", || constants::run(root))?;
    step("format", || cargo(root, FORMAT))?;
    step("walls", || walls::run(root))?;
    step("clippy", || cargo(root, CLIPPY))
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("check: {name}");
    let start = Instant::now();
    check()?;
    eprintln!("check: {name} passed in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .current_dir(root)
        // Set by the cargo that runs this program; inherited, it would count as changed and
        // have the C++ bindings compiled again.
        .env_remove("LIBTORCH")
        .status()
        .context("cannot run `cargo`")?;
    if !status.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    Ok(())
}
