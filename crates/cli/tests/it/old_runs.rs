//! Runs that an older program began: what its checkpoints hold is read, and the run goes on as it would have.
//!
//! `golden/runs/4c679db` was made by the program of that commit, two of four steps; `*-expected.jsonl` are the metrics of
//! the steps that it then took itself. Formats of checkpoints and run folders are promised to stay readable (CHANGELOG).

use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use testing::{golden, read_jsonl};

use crate::program::{call_result, command};

const FLAGS: &str = "--model_name_or_path model --data_file_paths train.jsonl --image_folders images \
                     --learning_rate 1e-2 --save_steps 2 --max_steps 4 --device cpu --num_threads 1";

/// Metrics that tell one run from another; others measure the machine.
const COMPARED: [&str; 8] = [
    "loss",
    "grad_norm",
    "learning_rate",
    "reward",
    "reward_std",
    "kl",
    "entropy",
    "completion_length",
];

fn goes_on(method: &str, flags: &str) {
    let root = golden("").canonicalize().unwrap();
    let dir = TempDir::new().unwrap();
    let run = root.join("runs/4c679db/.");
    let copied = Command::new("cp").arg("-r").arg(run).arg(dir.path()).status().unwrap();
    assert!(copied.success());
    symlink(root.join("parity/checkpoints/nested"), dir.path().join("model")).unwrap();
    symlink(root.join("parity/images"), dir.path().join("images")).unwrap();
    let mut command = command();
    command.current_dir(dir.path()).arg(method);
    command.args(FLAGS.split_whitespace()).args(flags.split_whitespace());
    let result = call_result(command.args(["--output_dir", method]).output().unwrap());
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let got: Vec<Value> = read_jsonl(dir.path().join(method).join("metrics.jsonl"));
    assert_eq!(got.len(), 4, "{}", result.stderr);
    let expected: Vec<Value> = read_jsonl(dir.path().join(format!("{method}-expected.jsonl")));
    for (expected, got) in expected.iter().zip(&got[2..]) {
        assert_eq!(expected["step"], got["step"]);
        let mut compared = 0;
        for key in COMPARED {
            let (Some(a), Some(b)) = (expected[key].as_f64(), got[key].as_f64()) else { continue };
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-3), "{key}: was {a}, is {b}");
            compared += 1;
        }
        assert!(compared >= 5, "{expected}");
    }
}

#[test]
fn a_run_of_sft_goes_on_from_an_older_checkpoint() {
    goes_on(
        "sft",
        "--per_device_train_batch_size 2 --lr_scheduler_type constant --freeze_vision_tower true \
         --freeze_language_model true",
    );
}

#[test]
fn a_run_of_grpo_with_an_adapter_goes_on_from_an_older_checkpoint() {
    goes_on(
        "grpo",
        "--num_generations 3 --per_device_train_batch_size 6 --max_completion_length 6 --use_peft true --lora_r 2 \
         --reward_funcs letters.py:early",
    );
}
