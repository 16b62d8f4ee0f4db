//! Chores of this workspace that cargo has no command for: `cargo xtask libtorch | walls | check`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore ends where nobody reads it"
)]

mod check;
mod libtorch;
mod paths;
mod walls;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "\
usage: cargo xtask <command> [--root DIR]

  libtorch   provide `.libtorch/`: from `LIBTORCH`, else the active Python's torch, else a download
  walls      fail on a dependency between our crates that the architecture does not allow
  check      machine paths, format, walls, clippy; warnings are errors

  --root DIR   workspace to work on (default: this one)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, root)) = parse(&args) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(command, &root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, root: &Path) -> Result<()> {
    match command {
        "libtorch" => libtorch::provide(root),
        "walls" => walls::run(root),
        _ => check::run(root),
    }
}

fn parse(args: &[String]) -> Option<(&str, PathBuf)> {
    let (command, rest) = args.split_first()?;
    if !["libtorch", "walls", "check"].contains(&command.as_str()) {
        return None;
    }
    match rest {
        [] => Some((command, workspace_root())),
        [flag, dir] if flag == "--root" => Some((command, PathBuf::from(dir))),
        _ => None,
    }
}

/// The folder of the workspace's `Cargo.toml`.
fn workspace_root() -> PathBuf {
    // Asked at run time first: a target folder may be shared by several checkouts.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(String::from).collect()
    }

    #[test]
    fn unknown_words_are_wrong_use() {
        assert!(parse(&[]).is_none());
        assert!(parse(&words("wall")).is_none());
        assert!(parse(&words("walls --rot x")).is_none());
        assert!(parse(&words("walls --root")).is_none());
    }

    #[test]
    fn root_defaults_to_the_workspace() {
        let args = words("walls");
        let (command, root) = parse(&args).expect("valid");
        assert_eq!(command, "walls");
        assert!(root.join("crates/base/Cargo.toml").exists());
        let args = words("libtorch --root /x");
        assert_eq!(parse(&args), Some(("libtorch", PathBuf::from("/x"))));
    }
}
