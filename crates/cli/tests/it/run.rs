//! Calls the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a call said.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary, with no setting of this machine.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm-r1"));
    for variable in
        ["WORLD_SIZE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"]
    {
        command.env_remove(variable);
    }
    command
}

/// Calls it with words split at white space.
pub fn say(line: &str) -> Said {
    said(command().args(line.split_whitespace()).output().unwrap())
}

pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The repository's golden files.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}
