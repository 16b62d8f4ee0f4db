//! Saved checkpoints load in transformers with equal log-probabilities. Needs the Python reference:
//! the interpreter in `VLM_R1_REFERENCE_PYTHON`, else `python3`, where it can import transformers.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use testing::{golden, read_jsonl, repository};

use crate::program::call;

/// The interpreter that has the reference, if there is one.
fn reference() -> Option<String> {
    let python = std::env::var("VLM_R1_REFERENCE_PYTHON").unwrap_or_else(|_| "python3".into());
    let probe =
        "import torch, torchvision, transformers; assert transformers.__version__ == '5.17.0'";
    let output = Command::new(&python).args(["-c", probe]).output().ok()?;
    output.status.success().then_some(python)
}

#[test]
fn a_checkpoint_loads_in_transformers() {
    let Some(python) = reference() else {
        eprintln!("skipped: no Python with transformers 5.17.0 (set VLM_R1_REFERENCE_PYTHON)");
        return;
    };
    for checkpoint in testing::all_checkpoints() {
        compare(&python, checkpoint);
    }
}

/// Trains a few steps, then asks both sides for the log-probabilities of the same rows.
fn compare(python: &str, checkpoint: &str) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let images = golden("parity/images").display().to_string();
    let row = |image: &str, answer: &str| {
        json!({"image": image, "conversations": [
            {"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": answer}]})
        .to_string()
    };
    let data = [row("scene.png", "[1, 2, 3, 4]"), row("small.png", "[5, 6, 7, 8]")].join("\n");
    fs::write(at("train.jsonl"), data).unwrap();
    let model = testing::checkpoint(checkpoint).display().to_string();
    let result = call(&format!(
        "sft --model_name_or_path {model} --data_file_paths {} --image_folders {images} --output_dir {} \
         --per_device_train_batch_size 2 --max_steps 3 --learning_rate 1e-3 --lr_scheduler_type constant --device cpu",
        at("train.jsonl"),
        at("run"),
    ));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let saved = at("run/checkpoint-3");

    let asked = [
        json!({"images": ["scene.png"], "prompt": "Where is the circle?", "completion": "left [1, 2]"}),
        json!({"images": ["wide.png", "grey.png"], "prompt": "Compare.", "completion": "the first"}),
        json!({"prompt": "How many?", "completion": "three"}),
    ];
    fs::write(at("rows.jsonl"), asked.map(|row| row.to_string()).join("\n")).unwrap();
    let ours = call(&format!(
        "logprobs --model {saved} --input {} --image_folder {images} --output {} --device cpu",
        at("rows.jsonl"),
        at("ours.jsonl")
    ));
    assert_eq!(ours.code, Some(0), "{}", ours.stderr);
    let script = repository("tools/golden/load_checkpoint.py");
    let output = Command::new(python)
        .arg(script)
        .args([
            "--model",
            &saved,
            "--rows",
            &at("rows.jsonl"),
            "--image_folder",
            &images,
            "--out",
            &at("theirs.jsonl"),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let [ours, theirs]: [Vec<Value>; 2] =
        ["ours.jsonl", "theirs.jsonl"].map(|name| read_jsonl(at(name)));
    assert_eq!((ours.len(), theirs.len()), (3, 3));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a["prompt_ids"], b["prompt_ids"]);
        assert_eq!(a["completion_ids"], b["completion_ids"]);
        let list =
            |row: &Value| -> Vec<f64> { serde_json::from_value(row["logprobs"].clone()).unwrap() };
        for (x, y) in list(a).iter().zip(list(b)) {
            assert!((x - y).abs() < 1e-4, "{checkpoint}: {x} {y}");
        }
    }
}
