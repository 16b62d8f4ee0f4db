//! Tells the programs which commit they are of.
#![allow(clippy::print_stdout, reason = "cargo listens to it")]

use std::path::Path;
use std::process::Command;

/// Grows with every commit; not there where the source is no clone.
const HEAD_LOG: &str = "../../.git/logs/HEAD";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if Path::new(HEAD_LOG).exists() {
        println!("cargo:rerun-if-changed={HEAD_LOG}");
    }
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).output();
    if let Ok(commit) = commit
        && commit.status.success()
    {
        println!(
            "cargo:rustc-env=VLM_R1_COMMIT={}",
            String::from_utf8_lossy(&commit.stdout).trim()
        );
    }
}
