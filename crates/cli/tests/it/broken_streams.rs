//! Streams that cannot be written: a reader that has gone, a full disk, a closed descriptor.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use testing::golden;

use crate::program::{CallResult, call_result};
use crate::training::{checkpoints, line};

/// The binary with `line`, its streams as `rest` says; the exit code is the binary's.
fn shell(line: &str, rest: &str) -> CallResult {
    let script = format!("\"$0\" {line} {rest}; exit ${{PIPESTATUS[0]}}");
    let mut command = Command::new("bash");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_vlm-r1")]);
    command.env_remove("WORLD_SIZE");
    call_result(command.output().unwrap())
}

/// Commands that print data and keep nothing else.
fn printing(dir: &Path) -> Vec<String> {
    let rows = dir.join("rows.jsonl");
    let row = "{\"completion\": \"<think>a</think><answer>a</answer>\", \"solution\": \"a\"}\n";
    fs::write(&rows, row.repeat(3_000)).unwrap();
    let training = line("grpo", dir, "never", "--dry_run");
    let data = format!(
        "data check --data_file_paths {} --image_folders {}",
        dir.join("train.jsonl").display(),
        golden("parity/images").display()
    );
    vec![
        "--help".into(),
        "grpo --help".into(),
        "--version".into(),
        training,
        format!("reward --input {} --reward_method all_match", rows.display()),
        data,
    ]
}

#[test]
fn data_that_could_not_be_written_is_a_failure_and_a_reader_that_goes_is_none() {
    let dir = TempDir::new().unwrap();
    for line in printing(dir.path()) {
        let full = shell(&line, "> /dev/full");
        assert_eq!(full.code, Some(1), "{line}: {}", full.stderr);
        assert!(full.stderr.contains("No space left"), "{line}: {}", full.stderr);
        for rest in [
            "2> /dev/null | head -c 1",
            "2> /dev/full > /dev/null",
            "2>&- > /dev/null",
            ">&- 2> /dev/null",
            "2>&1 | head -c 1",
        ] {
            let ended = shell(&line, rest);
            assert_eq!(ended.code, Some(0), "{line} {rest}: {}", ended.stderr);
            assert!(!ended.stderr.contains("panicked"), "{line} {rest}: {}", ended.stderr);
        }
    }
}

#[test]
fn a_run_is_whole_whatever_becomes_of_its_streams() {
    let dir = TempDir::new().unwrap();
    for (run, rest, code) in [
        ("gone", "2>&1 | head -c 1", 0),
        ("full", "> /dev/full", 0),
        ("errors", "2> /dev/full", 0),
        ("closed", "2>&- >&-", 0),
    ] {
        let ended = shell(&line("sft", dir.path(), run, "--max_steps 2"), rest);
        assert_eq!(ended.code, Some(code), "{rest}: {}", ended.stderr);
        let folder = dir.path().join(run);
        assert_eq!(checkpoints(&folder), ["checkpoint-2"], "{rest}");
        let log = fs::read_to_string(folder.join("log.txt")).unwrap();
        assert!(log.contains(" step 2/2 ") && !log.contains("panicked"), "{log}");
    }
}
