//! `--eval_steps` and `--eval_config`: a run evaluates its policy as `eval` would its checkpoint.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{golden, read, read_json};

use crate::program::{call, call_result};
use crate::training::{checkpoints, done, line, metrics, signal, spawn};

/// Questions about the images of the parity tests, one of which is not there.
fn questions(dir: &Path) -> String {
    let path = dir.join("val.json");
    let names = ["scene.png", "small.png", "gone.png", "grey.png"];
    let row = |index: usize| {
        json!({
            "image": names[index % 4],
            "problem": format!("Where is thing {index}?"),
            "solution": [1, 2, 30, 4 + index],
        })
    };
    let rows: Vec<Value> = (0..16).map(row).collect();
    fs::write(&path, json!(rows).to_string()).unwrap();
    path.display().to_string()
}

/// A file with one evaluation, `val`.
pub fn evaluation_file(dir: &Path, more: &str) -> String {
    let path = dir.join("evals.yaml");
    let text = format!(
        "val:\n  task: rec\n  data_file_paths: {}\n  image_folders: {}\n  {more}",
        questions(dir),
        golden("parity/images").display()
    );
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_policy_is_evaluated_as_eval_would_its_checkpoint() {
    let dir = TempDir::new().unwrap();
    let second = format!(
        "limit: 6\n  max_new_tokens: 6\n\nwords:\n  task: reward\n  reward_funcs: [accuracy, format]\n  \
         data_file_paths: {}\n  image_folders: {}\n  num_samples: 2\n  temperature: 1\n  max_new_tokens: 6\n",
        dir.path().join("train.jsonl").display(),
        golden("parity/images").display()
    );
    let file = evaluation_file(dir.path(), &second);
    for (name, method, more) in [
        ("whole", "grpo", "--reward_method default"),
        ("adapter", "grpo", "--reward_method default --use_peft true"),
        ("sft", "sft", ""),
    ] {
        let more = format!(
            "--max_steps 3 --learning_rate 1e-2 --eval_steps 2 --eval_on_start true --eval_config {file} {more}"
        );
        let result = done(&line(method, dir.path(), name, &more));
        for part in [
            "evaluation `val`: 6 questions",
            "evaluation `words`: 5 questions",
            "bad row: ",
            "evaluated after step 0: val/accuracy 0.0000, ",
        ] {
            assert!(result.stderr.contains(part), "{part}: {}", result.stderr);
        }
        let run = dir.path().join(name);
        let lines = metrics(&run);
        let steps: Vec<&Value> = lines.iter().map(|line| &line["step"]).collect();
        assert_eq!(steps, [0, 1, 2, 3]);
        for step in [0, 2, 3] {
            for evaluation in ["val", "words"] {
                let folder = run.join(format!("eval/step_{step:06}/{evaluation}"));
                let summary = read_json::<Value>(folder.join("summary.json"));
                let line = &lines[step];
                for (metric, interval) in summary["metrics"].as_object().unwrap() {
                    let key = format!("eval/{evaluation}/{metric}");
                    assert_eq!(line[&key], interval["mean"], "{key}");
                }
                let bad = &line[&format!("eval/{evaluation}/bad_rows")];
                assert_eq!(bad.as_f64(), summary["num_bad"].as_f64());
                assert_eq!(bad == &json!(1.0), evaluation == "val", "{line}");
                assert!(folder.join("report.html").exists());
                if step == 0 {
                    continue;
                }
                let again = dir.path().join(format!("{name}-{step}-{evaluation}"));
                done(&format!(
                    "eval --config {} --model {} --output_dir {}",
                    folder.join("config.yaml").display(),
                    run.join(format!("checkpoint-{step}")).display(),
                    again.display()
                ));
                let completions = |folder: &Path| read(folder.join("answers.jsonl"));
                assert_eq!(completions(&folder), completions(&again), "{name} {evaluation}");
                let again_summary = read_json::<Value>(again.join("summary.json"));
                assert_eq!(summary["metrics"], again_summary["metrics"]);
            }
        }
        let completions =
            |step| read(run.join(format!("eval/step_00000{step}/words/answers.jsonl")));
        assert_ne!(completions(0), completions(3), "{name} learnt nothing");
    }
}

#[test]
fn what_cannot_be_evaluated_stops_a_run_before_it_begins() {
    let dir = TempDir::new().unwrap();
    let refuse = |code: i32, more: &str, flags: &str, expected: &[&str]| {
        let file = evaluation_file(dir.path(), more);
        let flags = flags.replace("FILE", &file);
        for method in ["grpo", "sft"] {
            let result = call(&line(method, dir.path(), "run", &flags));
            assert_eq!(result.code, Some(code), "{flags}\n{}", result.stderr);
            for text in expected {
                assert!(result.stderr.contains(text), "{flags}: {}", result.stderr);
            }
        }
        assert!(!dir.path().join("run").exists(), "{flags}");
    };
    let with = "--max_steps 1 --eval_steps 1 --eval_config FILE";
    refuse(2, "max_new_token: 6\n", with, &["evals.yaml:5: unknown key", "`max_new_tokens`"]);
    refuse(2, "model: other\n", with, &["evals.yaml:5: `model`"]);
    // A dry run reads it too.
    refuse(
        2,
        "limit: 0\n",
        &format!("{with} --dry_run"),
        &["evals.yaml:1: evaluation `val`: `limit`"],
    );
    refuse(
        1,
        "labels: all\n\nother:\n  task: rec\n  data_file_paths: none.json\n",
        with,
        &["evaluation `other`", "none.json"],
    );
    refuse(1, "", &with.replace("FILE", "none.yaml"), &["none.yaml"]);
    refuse(2, "", "--eval_steps 1", &["`eval_steps`", "`eval_config`"]);
    refuse(2, "", "--eval_config FILE", &["`eval_config`", "`eval_steps`"]);
}

#[test]
fn a_signal_breaks_off_an_evaluation_and_the_same_command_makes_up_for_it() {
    let dir = TempDir::new().unwrap();
    let long = "max_new_tokens: 400\n  max_concurrent_completions: 1\n";
    let file = evaluation_file(dir.path(), long);
    let command = line(
        "grpo",
        dir.path(),
        "run",
        &format!("--max_steps 3 --save_steps 0 --eval_steps 2 --eval_config {file}"),
    );
    let run = dir.path().join("run");
    let child = spawn(&command);
    let completions = run.join("eval/.tmp-step_000002/val/answers.jsonl");
    let start = Instant::now();
    while fs::read_to_string(&completions).map_or(0, |text| text.lines().count()) < 1 {
        assert!(start.elapsed() < Duration::from_secs(120), "no completion");
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "-TERM");
    let ended = call_result(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nstopped after step 2, saved in "), "{}", ended.stderr);
    assert_eq!(checkpoints(&run), ["checkpoint-2"]);
    assert_eq!(fs::read_dir(run.join("eval")).unwrap().count(), 0);
    assert_eq!(metrics(&run).len(), 1);
    // What is evaluated may change; the run may not.
    evaluation_file(dir.path(), "max_new_tokens: 6\n  limit: 3\n");
    done(&command);
    let lines = metrics(&run);
    let evaluated: Vec<bool> =
        lines.iter().map(|line| line["eval/val/accuracy"].is_f64()).collect();
    assert_eq!(evaluated, [false, true, true]);
    assert_eq!(fs::read_dir(run.join("eval")).unwrap().count(), 2);
}
