//! What `eval` takes from the run that trained its model, and what is said where metrics mean little:
//! by `eval`, by its comparison, during training and before it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::golden;

use crate::program::{CallResult, call};
use crate::training::{done, line};

/// Four questions about one image.
fn rows(dir: &Path) -> String {
    let path = dir.join("val.json");
    let row = |index: usize| json!({"image": "small.png", "problem": format!("Where is thing {index}?"), "solution": [1, 2, 30, 4 + index]});
    let rows: Vec<Value> = (0..4).map(row).collect();
    fs::write(&path, json!(rows).to_string()).unwrap();
    path.display().to_string()
}

/// A checkpoint in the folder of a run with these flags, as `--dry_run` resolves them; the weights are random.
fn trained(dir: &Path, run: &str, flags: &str) -> PathBuf {
    let folder = dir.join(run);
    let checkpoint = folder.join("checkpoint-2");
    fs::create_dir_all(&checkpoint).unwrap();
    for file in fs::read_dir(testing::checkpoint("nested")).unwrap() {
        let file = file.unwrap();
        let target = file.path().canonicalize().unwrap();
        symlink(target, checkpoint.join(file.file_name())).unwrap();
    }
    let (method, flags) = flags.split_once(' ').unwrap();
    // Neither model nor data are there.
    let result = call(&format!(
        "{method} --model_name_or_path m --data_file_paths d --output_dir {} {flags} --dry_run",
        folder.display()
    ));
    assert!(result.stdout.contains("output_dir: "), "{}", result.stderr);
    fs::write(folder.join("config.yaml"), result.stdout).unwrap();
    checkpoint
}

struct Evaluated {
    result: CallResult,
    summary: Value,
    config: String,
    folder: PathBuf,
}

fn evaluated(dir: &Path, name: &str, model: &Path, flags: &str) -> Evaluated {
    let folder = dir.join(name);
    let result = done(&format!(
        "eval --model {} --data_file_paths {} --image_folders {} --output_dir {} --device cpu --num_threads 1 {flags}",
        model.display(),
        rows(dir),
        golden("parity/images").display(),
        folder.display(),
    ));
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    Evaluated {
        summary: serde_json::from_str(&text("summary.json")).unwrap(),
        config: text("config.yaml"),
        result,
        folder,
    }
}

fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_model_is_asked_as_it_was_trained() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let rl = trained(
        dir,
        "rl",
        "grpo --task_type rec --max_completion_length 7 --max_pixels 12544 --image_processor pillow",
    );
    let followed = evaluated(dir, "rl-eval", &rl, "--task rec");
    let config =
        ["question_template: rec", "extractor: thinking", "max_new_tokens: 7", "max_pixels: 12544"];
    holds(&followed.config, &config);
    let source = dir.join("rl/config.yaml").display().to_string();
    let result = [
        "as the model was trained",
        &source,
        "extractor thinking",
        "max_new_tokens 7",
        "image_processor pillow",
        "4 of 4 completions (100 %) cut off at `--max_new_tokens 7`",
        "no `<answer>` tag in 4 of 4 completions",
        "\nhint: --max_new_tokens 2048 --allow_changed true asks those again",
    ];
    holds(&followed.result.stderr, &result);
    assert!(!followed.result.stderr.contains("otherwise than"), "{}", followed.result.stderr);
    assert_eq!(followed.summary["trained_as"]["taken"]["max_pixels"], 12544);
    assert_eq!(followed.summary["answers"]["cut_off"], 4);
    let page = fs::read_to_string(followed.folder.join("report.html")).unwrap();
    holds(&page, &["cut off", "4 of 4", "not read", "no `&lt;answer&gt;` tag: 4", "Warning: "]);

    let sft = trained(dir, "sft", "sft --task_type rec");
    let plain = evaluated(dir, "sft-eval", &sft, "--task rec --max_new_tokens 5");
    holds(
        &plain.config,
        &["question_template: sft_rec", "extractor: baseline", "box_format: absolute"],
    );
    let against =
        evaluated(dir, "against", &sft, "--task rec --max_new_tokens 5 --extractor thinking");
    holds(&against.config, &["question_template: rec", "extractor: thinking"]);
    let result = [
        "warning: otherwise than the model was trained",
        "--extractor thinking, not baseline",
        "--question_template rec, not sft_rec",
    ];
    holds(&against.result.stderr, &result);
    let thinking = trained(dir, "cold", "sft --task_type rec --with_thinking true");
    let cold = evaluated(dir, "cold-eval", &thinking, "--task rec --max_new_tokens 5");
    holds(&cold.config, &["question_template: rec", "extractor: thinking"]);

    // Another task than that of the training: its own template, but the images of the training.
    let other = evaluated(dir, "other", &rl, "--task gui --max_new_tokens 5");
    holds(&other.config, &["question_template: default", "max_pixels: 12544"]);
    holds(&other.result.stderr, &["the model was trained for `rec`"]);
    // A copy elsewhere knows of no run, and no other folder's settings are taken for one.
    let copy = dir.join("checkpoint-9");
    fs::rename(&rl, &copy).unwrap();
    fs::write(dir.join("config.yaml"), "task: rec\n").unwrap();
    let alone = evaluated(dir, "alone", &copy, "--task rec --max_new_tokens 5");
    assert!(!alone.result.stderr.contains("was trained"), "{}", alone.result.stderr);
    assert_eq!(alone.summary["trained_as"], Value::Null);

    comparison_names_what_differs(dir, &followed.folder, &plain.folder);
}

fn comparison_names_what_differs(dir: &Path, first: &Path, second: &Path) {
    let page = dir.join("compare.html");
    let compare = |second: &Path| {
        let result = done(&format!(
            "eval --compare {} {} --html {}",
            first.display(),
            second.display(),
            page.display()
        ));
        let json: Value = serde_json::from_str(&result.stdout).unwrap();
        (result.stderr, json)
    };
    let (result, json) = compare(second);
    let parts = [
        "warning: settings differ: ",
        "`extractor` `thinking` and `baseline`",
        "`max_new_tokens` 7 and 5",
        "`question_template` `rec` and `sft_rec`",
        "`image_processor` `pillow` and `torchvision`",
    ];
    holds(&result, &parts);
    assert_eq!(json["settings_differ"]["max_new_tokens"], json!({"a": 7, "b": 5}));
    assert_eq!(json["b"]["trained_as"]["taken"]["extractor"], "baseline");
    holds(&fs::read_to_string(&page).unwrap(), &["Warning: settings differ"]);
    // Rows of its own: no winner, whatever the metrics are.
    let results = second.join("results.json");
    let mut all: Value = serde_json::from_str(&fs::read_to_string(&results).unwrap()).unwrap();
    let all_rows = all["results"].as_array_mut().unwrap();
    for row in all_rows.iter_mut() {
        row["correct"] = json!(1);
        row["score"] = json!(0.9);
    }
    all_rows.pop();
    fs::write(&results, all.to_string()).unwrap();
    let (result, json) = compare(second);
    holds(&result, &["the questions differ: 1 are in A alone, 0 in B alone"]);
    assert_eq!(json["verdict"], "not called");
    holds(&fs::read_to_string(&page).unwrap(), &["the questions differ"]);
}

#[test]
fn a_merged_adapter_is_asked_as_it_was_trained() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let more = "--use_peft true --max_steps 1 --question_template none --save_steps 1";
    done(&line("grpo", dir, "lora", more));
    let merged = dir.join("merged");
    done(&format!(
        "merge --adapter {} --output_dir {}",
        dir.join("lora/checkpoint-1").display(),
        merged.display()
    ));
    let followed = evaluated(dir, "eval", &merged, "--task rec");
    holds(
        &followed.config,
        &["question_template: none", "extractor: baseline", "max_new_tokens: 6"],
    );
    holds(&followed.result.stderr, &["as the model was trained", "trained_as.yaml"]);
}

#[test]
fn during_training_a_warning_is_said_once() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let file = dir.join("evals.yaml");
    let text = format!(
        "val:\n  task: rec\n  data_file_paths: {}\n  image_folders: {}\n  max_new_tokens: 4\n",
        rows(dir),
        golden("parity/images").display()
    );
    fs::write(&file, text).unwrap();
    let result = done(&line(
        "grpo",
        dir,
        "run",
        &format!(
            "--max_steps 2 --eval_steps 1 --eval_on_start true --eval_config {} --task_type rec",
            file.display()
        ),
    ));
    let once = |part: &str| {
        assert_eq!(result.stderr.matches(part).count(), 1, "{part}: {}", result.stderr)
    };
    once(
        "warning: evaluation `val`, step 0: 4 of 4 completions (100 %) cut off at `--max_new_tokens 4`",
    );
    once("cut off at `--max_new_tokens");
    once("no `<answer>` tag in 4 of 4");
    once("evaluation `val`: as the model was trained");
    for step in 0..3 {
        let folder = dir.join(format!("run/eval/step_{step:06}/val"));
        let summary = fs::read_to_string(folder.join("summary.json")).unwrap();
        let summary: Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(summary["answers"]["cut_off"], 4);
        assert_eq!(summary["settings"]["question_template"], "rec");
        assert!(summary["warnings"].as_array().unwrap().len() > 1);
    }
    let log = fs::read_to_string(dir.join("run/log.txt")).unwrap();
    holds(&log, &["cut off at `--max_new_tokens 4`"]);
}

#[test]
fn a_search_for_boxes_that_no_reward_looks_at_is_said() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let warning = "warning: `--task_type rec` without a reward of boxes";
    let common = format!(
        "--model_name_or_path {} --data_file_paths {} --image_folders {} --output_dir {} --device cpu --num_threads 1 \
         --max_completion_length 4 --max_steps 1 --num_generations 2 --per_device_train_batch_size 2 --task_type rec",
        testing::checkpoint("nested").display(),
        train_rows(dir),
        golden("parity/images").display(),
        dir.join("run").display()
    );
    for command in ["plan", "grpo"] {
        let result = done(&format!("{command} {common}"));
        holds(&result.stderr, &[warning, "--is_reward_customized_from_vlm_module true"]);
        fs::remove_dir_all(dir.join("run")).unwrap_or_default();
        let customized =
            call(&format!("{command} {common} --is_reward_customized_from_vlm_module true"));
        assert!(!customized.stderr.contains(warning), "{}", customized.stderr);
        fs::remove_dir_all(dir.join("run")).unwrap_or_default();
    }
    let model = testing::checkpoint("nested");
    let flags = "--task reward --task_type rec --max_new_tokens 4";
    let scored = evaluated(dir, "reward", &model, flags);
    holds(&scored.result.stderr, &[warning]);
    let warnings = scored.summary["warnings"].to_string();
    holds(&warnings, &["without a reward of boxes"]);
}

fn train_rows(dir: &Path) -> String {
    let path = dir.join("train.jsonl");
    let turns = json!([{"from": "human", "value": "<image>Where is it?"}, {"from": "gpt", "value": "[1, 2, 3, 4]"}]);
    let row = format!("{}\n", json!({"image": "small.png", "conversations": turns}));
    fs::write(&path, row.repeat(2)).unwrap();
    path.display().to_string()
}
