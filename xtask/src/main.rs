//! Chores of this workspace that cargo has no command for: `cargo xtask libtorch | stand-in | test-device | walls | check | torture`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a chore ends where nobody reads it")]

mod check;
mod constants;
mod libtorch;
mod paths;
mod stand_in;
mod test_device;
mod torture;
mod walls;
mod words;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "\
usage: cargo xtask <command> [--root DIR]
       cargo xtask test-device [--long | TEST OPTIONS]
       cargo xtask torture --minutes N [--seed S] [--jobs J] [--part PART [--trial I]]

  libtorch   provide `.libtorch/`: from `LIBTORCH`, else the active Python's torch, else a download
  stand-in   build a `libtorch_cuda.so` that needs no GPU into `target/stand-in/lib`
  test-device
             the tests of the crates that hold tensors, and the commands, on `cuda:0` of the stand-in;
             with `--long` those that are left out without it
  walls      fail on a dependency between our crates that the architecture does not allow
  check      machine paths, words, constants of the docs, format, walls, clippy; warnings are errors
  torture    kill, damage and fuzz the built binary for N minutes, and count what survives; parts:
             kills, faults, oddities, surroundings, data, rewards

  --root DIR   workspace to work on (default: this one)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(asked) = parse(&args) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let done = match &asked {
        Asked::Torture(options) => torture::run(&workspace_root(), options),
        Asked::TestDevice(rest) => test_device::run(&workspace_root(), rest),
        Asked::Chore(command, root) => run(command, root),
    };
    match done {
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
        "stand-in" => {
            let started = std::time::Instant::now();
            let lib = stand_in::build(root)?;
            println!("{} (in {:.0} s)", lib.display(), started.elapsed().as_secs_f64());
            Ok(())
        }
        "walls" => walls::run(root),
        _ => check::run(root),
    }
}

#[derive(Debug, PartialEq)]
enum Asked<'a> {
    Chore(&'a str, PathBuf),
    Torture(torture::Options),
    TestDevice(&'a [String]),
}

fn parse(args: &[String]) -> Option<Asked<'_>> {
    let (command, rest) = args.split_first()?;
    if command == "torture" {
        return torture::Options::parse(rest).map(Asked::Torture);
    }
    if command == "test-device" {
        return Some(Asked::TestDevice(rest));
    }
    if !["libtorch", "stand-in", "walls", "check"].contains(&command.as_str()) {
        return None;
    }
    match rest {
        [] => Some(Asked::Chore(command, workspace_root())),
        [flag, dir] if flag == "--root" => Some(Asked::Chore(command, PathBuf::from(dir))),
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
        let Some(Asked::Chore("walls", root)) = parse(&args) else {
            panic!("expected `walls`");
        };
        assert!(root.join("crates/base/Cargo.toml").exists());
        let args = words("libtorch --root /x");
        let expected = Asked::Chore("libtorch", PathBuf::from("/x"));
        assert_eq!(parse(&args), Some(expected));
    }
}
