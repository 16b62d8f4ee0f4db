//! Calls the program, as a user does.

use std::path::Path;
use std::process::{Command, Output};

/// What a call wrote, and its exit code.
pub struct CallResult {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary, with no setting of this machine. Its engine is another package's: a test of the whole workspace builds it.
pub fn command() -> Command {
    let front = Path::new(env!("CARGO_BIN_EXE_vlm-r1"));
    let engine = front.with_file_name("vlm-r1-engine");
    assert!(
        engine.exists(),
        "{}: build it first, `cargo build --release --bin vlm-r1-engine`",
        engine.display()
    );
    let mut command = Command::new(front);
    for variable in [
        "WORLD_SIZE",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "TRANSFORMERS_OFFLINE",
        "VLM_R1_ENGINE",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Calls it with words split at white space.
pub fn call(line: &str) -> CallResult {
    call_result(command().args(line.split_whitespace()).output().unwrap())
}

pub fn call_result(output: Output) -> CallResult {
    CallResult {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
