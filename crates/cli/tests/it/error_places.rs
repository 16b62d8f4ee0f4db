//! What is said: once, of one thing or of several, and of what is at fault.

use std::fs;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::program::{CallResult, call};

/// Scores two rows by a function of this text.
fn scored(dir: &Path, python: &str) -> CallResult {
    let rows = dir.join("rows.jsonl");
    let row = json!({"completion": "<answer>a</answer>", "solution": "a"});
    fs::write(&rows, format!("{row}\n{row}\n")).unwrap();
    let file = dir.join("mine.py");
    fs::write(&file, python).unwrap();
    call(&format!("reward --input {} --reward_funcs {}:score", rows.display(), file.display()))
}

#[test]
fn the_place_of_a_reward_that_fails_is_said_once() {
    let dir = TempDir::new().unwrap();
    let places = |result: &CallResult| result.stderr.matches("rows.jsonl:1").count();
    let whole =
        scored(dir.path(), "def score(completions, **rest):\n    raise ValueError('why')\n");
    assert_eq!((whole.code, places(&whole)), (Some(1), 1), "{}", whole.stderr);
    assert!(whole.stderr.contains("rows.jsonl:2"), "{}", whole.stderr);
    let one = scored(dir.path(), "def score(completions, **rest):\n    return ['a', 1]\n");
    assert_eq!((one.code, places(&one)), (Some(1), 1), "{}", one.stderr);
    assert!(!one.stderr.contains("rows.jsonl:2"), "{}", one.stderr);
    let missing = scored(dir.path(), "def other(completions):\n    pass\n");
    assert!(
        missing.stderr.starts_with(
            "error: reward `score` cannot be loaded: no function `score`; defined: other"
        ),
        "{}",
        missing.stderr
    );
}
