//! Lets this crate's binaries and tests find libtorch without any environment variable, and tells
//! the binary which commit it is of.
#![allow(clippy::print_stdout, reason = "cargo listens to it")]

use std::path::Path;
use std::process::Command;

/// Grows with every commit; not there where the source is no clone.
const HEAD_LOG: &str = "../../.git/logs/HEAD";

fn main() {
    if let Ok(lib) = std::env::var("DEP_VLM_R1_TORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,-rpath-link,{lib}");
    }
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
