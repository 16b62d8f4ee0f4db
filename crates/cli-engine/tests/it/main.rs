//! The engine, called as the front calls it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output};

fn engine(front: Option<&str>, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm-r1-engine"));
    match front {
        Some(build) => command.env("VLM_R1_FRONT_BUILD", build),
        None => command.env_remove("VLM_R1_FRONT_BUILD"),
    };
    command.env_remove("WORLD_SIZE").args(line.split_whitespace()).output().unwrap()
}

#[test]
fn a_front_of_another_build_is_refused() {
    let said = engine(Some("0.0.1 (abc)"), "demo --dry_run");
    assert_eq!((said.status.code(), said.stdout.len()), (Some(1), 0));
    let error = String::from_utf8(said.stderr).unwrap();
    for part in ["of build 0.0.1 (abc)", env!("CARGO_PKG_VERSION"), "vlm-r1-engine", "make build"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn it_runs_without_a_front_and_leaves_it_its_commands() {
    let said = engine(None, "demo --dry_run --seed 5");
    assert_eq!(said.status.code(), Some(0));
    assert!(String::from_utf8(said.stdout).unwrap().contains("seed: 5"));
    let said = engine(None, "reward --input rows.jsonl --reward_funcs format");
    assert_eq!(said.status.code(), Some(1));
    let error = String::from_utf8(said.stderr).unwrap();
    assert!(error.contains("`reward` is a command of `vlm-r1`"), "{error}");
}
