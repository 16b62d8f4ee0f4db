//! Which model a name means: a folder, a run, a step of it, the best of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use testing::golden;

use crate::program::{CallResult, call};

fn nested() -> PathBuf {
    testing::checkpoint("nested").canonicalize().unwrap()
}

/// A run with checkpoints of these steps, all of one tiny model.
fn run(dir: &Path, name: &str, steps: &[u64]) -> PathBuf {
    let run = dir.join(name);
    for step in steps {
        let checkpoint = run.join(format!("checkpoint-{step}"));
        fs::create_dir_all(&checkpoint).unwrap();
        for file in fs::read_dir(nested()).unwrap() {
            let file = file.unwrap();
            symlink(file.path(), checkpoint.join(file.file_name())).unwrap();
        }
    }
    run
}

/// Asks for one token of a completion.
fn ask(model: &str) -> CallResult {
    call(&format!(
        "generate --model {model} --prompt x --max_new_tokens 1 --temperature 0 --device cpu --num_threads 1"
    ))
}

fn finds(model: &str, step: u64, words: &[&str]) {
    let result = ask(model);
    assert_eq!(result.code, Some(0), "{model}: {}", result.stderr);
    for word in words {
        assert!(result.stderr.contains(word), "{model}: {word}: {}", result.stderr);
    }
    let chosen = format!("checkpoint-{step}");
    assert!(words.is_empty() || result.stderr.contains(&chosen), "{model}: {}", result.stderr);
}

fn refused(model: &str, words: &[&str]) {
    let result = ask(model);
    assert_eq!(result.code, Some(1), "{model}: {}", result.stderr);
    for word in words {
        assert!(result.stderr.contains(word), "{model}: {word}: {}", result.stderr);
    }
}

#[test]
fn a_run_is_its_newest_whole_checkpoint_and_a_step_is_behind_an_at() {
    let dir = TempDir::new().unwrap();
    let run = run(dir.path(), "run", &[5, 10, 100]);
    let shown = run.display().to_string();
    finds(&shown, 100, &[&format!("model `{shown}`: its newest checkpoint, ")]);
    finds(&format!("{shown}@10"), 10, &[]);
    finds(&format!("{shown}/@checkpoint-5"), 5, &[]);
    refused(&format!("{shown}@7"), &["no checkpoint of step 7", "5, 10, 100"]);
    refused(&format!("{shown}@bets"), &["expected a step behind `@`, `best`"]);
    refused(&format!("{shown}@best"), &["was not evaluated", "hint: ", "--eval_steps"]);
    refused(&format!("{}@best", dir.path().join("none").display()), &["no run folder"]);

    // What is not whole is passed over, and said; a name that holds an `@` is a name.
    let newest = run.join("checkpoint-100");
    fs::create_dir(newest.join("trainer_state")).unwrap();
    let sums = json!({"config.json": {"bytes": 1, "crc32c": 7}});
    fs::write(newest.join("trainer_state/sums.json"), sums.to_string()).unwrap();
    finds(&shown, 10, &["checkpoint-100 is passed over: ", "config.json"]);
    refused(&format!("{shown}@100"), &["config.json"]);
    let odd = dir.path().join("odd@best");
    fs::rename(run.join("checkpoint-5"), &odd).unwrap();
    finds(&odd.display().to_string(), 0, &[]);
    let named = self::run(dir.path(), "mine@2024", &[3]);
    finds(&named.display().to_string(), 3, &["its newest checkpoint"]);
    finds(&format!("{}@3", named.display()), 3, &[]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    refused(&empty.display().to_string(), &["config.json"]);
    refused(
        &run.join("checkpoint-10/config.json").display().to_string(),
        &["a file, expected a folder"],
    );
}

#[test]
fn the_best_is_that_of_an_evaluation_which_is_named() {
    let dir = TempDir::new().unwrap();
    let run = run(dir.path(), "run", &[10, 20, 40]);
    let shown = run.display();
    let metrics = |lines: &[serde_json::Value]| {
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(run.join("metrics.jsonl"), lines.concat() + "{\"step\": 50, \"eval").unwrap();
    };
    metrics(&[
        json!({"step": 0, "eval/val/accuracy": 0.9, "eval/val/iou": 0.1, "eval/loss": 3.0, "eval/other/accuracy": 0.1}),
        json!({"step": 10, "eval/val/accuracy": 0.5, "eval/val/iou": 0.2, "eval/loss": 2.0, "eval/other/accuracy": 0.3}),
        json!({"step": 20, "eval/val/accuracy": 0.75, "eval/val/iou": 0.1, "eval/loss": 2.5, "eval/other/accuracy": 0.2}),
        json!({"step": 30, "eval/val/accuracy": 0.8, "eval/val/iou": 0.1, "eval/loss": 1.0, "eval/other/accuracy": 0.2}),
        json!({"step": 40, "eval/val/accuracy": 0.75, "eval/val/iou": 0.1, "eval/loss": 2.6, "eval/other/accuracy": 0.1}),
    ]);
    finds(
        &format!("{shown}@best"),
        20,
        &[
            "by `val/accuracy` 0.7500, the highest of 5 evaluations",
            "`@best:other`",
            "note: step 0 was better (0.9000) and has no checkpoint",
        ],
    );
    finds(&format!("{shown}@best:other"), 10, &["by `other/accuracy` 0.3000"]);
    finds(&format!("{shown}@best:val/iou"), 10, &["by `val/iou` 0.2000"]);
    finds(&format!("{shown}@best:loss"), 10, &["by `loss` 2.0000, the least of"]);
    refused(&format!("{shown}@best:none"), &["no evaluation or metric `none`", "`val/accuracy`"]);
    metrics(&[json!({"step": 10, "eval/rewards/format": 0.1, "eval/reward": 0.5})]);
    finds(&format!("{shown}@best"), 10, &["by `reward` 0.5000, the highest of 1 evaluation\n"]);
    metrics(&[json!({"step": 30, "eval/reward": 0.5})]);
    refused(&format!("{shown}@best"), &["has a checkpoint", "--save_steps equal to --eval_steps"]);
}

#[test]
fn training_and_others_read_runs_too() {
    let dir = TempDir::new().unwrap();
    let run = run(dir.path(), "run", &[5, 10]);
    let rows = dir.path().join("rows.jsonl");
    let row = json!({"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "two"}]});
    fs::write(&rows, row.to_string()).unwrap();
    let out = dir.path().join("out");
    let line = format!(
        "sft --model_name_or_path {}@5 --data_file_paths {} --output_dir {} --max_steps 1 --device cpu --num_threads 1",
        run.display(),
        rows.display(),
        out.display()
    );
    let dry = call(&format!("{line} --dry_run"));
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    let result = call(&line);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    // The folder that was meant is written down.
    let config = fs::read_to_string(out.join("config.yaml")).unwrap();
    let meant = format!("model_name_or_path: {}", run.join("checkpoint-5").display());
    assert!(config.contains(&meant), "{config}");
    let again = call(&line);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let plan = call(&format!(
        "plan --model_name_or_path {} --data_file_paths {} --output_dir o --memory 1GB --device cpu \
         --max_completion_length 4 --num_generations 2 --per_device_train_batch_size 2",
        run.display(),
        rows.display()
    ));
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stderr.contains("its newest checkpoint"), "{}", plan.stderr);
    let evaluated = call(&format!(
        "eval --model {} --task match --data_file_paths {} --output_dir {} --max_new_tokens 1 --device cpu",
        run.display(),
        rows.display(),
        dir.path().join("eval").display()
    ));
    assert!(evaluated.stderr.contains("its newest checkpoint"), "{}", evaluated.stderr);
    // The model under an adapter may be one of a run too.
    let adapter = golden("lora/language").display().to_string();
    let over = |base: &str| ask(&format!("{adapter} --base_model {base}"));
    let result = over(&run.display().to_string());
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert!(result.stderr.contains("its newest checkpoint"), "{}", result.stderr);
    assert_eq!(result.stdout, over(&format!("{}@5", run.display())).stdout);
    assert_eq!(result.stdout, ask(&adapter).stdout);
    assert_eq!(over("nowhere").code, Some(1));
    // A whole model has no model under it, and a folder no revision.
    let result = ask(&format!("{}@5 --base_model x --model_revision v1", run.display()));
    for flag in ["`--base_model x`", "`--model_revision v1`"] {
        assert!(result.stderr.contains(&format!("no effect here: {flag}")), "{}", result.stderr);
    }
}
