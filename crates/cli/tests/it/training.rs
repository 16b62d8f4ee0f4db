//! `grpo` and `sft` on a tiny checkpoint: the run folder, signals, kills, and going on after them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{checkpoint, golden, read_jsonl};

use crate::program::{CallResult, call, call_result, command};
use crate::training_evaluations::evaluation_file;

/// Rows about the images of the parity tests.
fn data(dir: &Path) -> String {
    let path = dir.join("train.jsonl");
    let row = |(index, image): (usize, &str)| {
        let question = format!("<image>Where is thing {index}?");
        let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": format!("[1, 2, 3, {}]", 4 + index)}]);
        format!("{}\n", json!({"image": image, "conversations": turns}))
    };
    let images = ["scene.png", "small.png", "grey.png", "rgba.png", "small.png"];
    let rows: Vec<String> = images.into_iter().enumerate().map(row).collect();
    fs::write(&path, rows.concat()).unwrap();
    path.display().to_string()
}

/// A short run that can be told from every other.
pub fn line(method: &str, dir: &Path, run: &str, more: &str) -> String {
    let own = match method {
        "grpo" => {
            "--num_generations 3 --per_device_train_batch_size 6 --max_completion_length 6 --reward_method all_match"
        }
        _ => "--per_device_train_batch_size 2 --lr_scheduler_type constant",
    };
    format!(
        "{method} --model_name_or_path {model} --data_file_paths {data} --image_folders {images} --output_dir {output} \
         --learning_rate 1e-3 --save_steps 2 --device cpu --num_threads 1 {own} {more}",
        model = checkpoint("nested").display(),
        images = golden("parity/images").display(),
        data = data(dir),
        output = dir.join(run).display(),
    )
}

pub fn done(line: &str) -> CallResult {
    let result = call(line);
    assert_eq!(result.code, Some(0), "{line}\n{}", result.stderr);
    result
}

pub fn spawn(line: &str) -> Child {
    command()
        .args(line.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub fn checkpoints(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("checkpoint-")).collect();
    names.sort();
    names
}

pub fn metrics(folder: &Path) -> Vec<Value> {
    let lines: Vec<Value> = read_jsonl(folder.join("metrics.jsonl"));
    for line in &lines {
        let undeclared = base::metrics::undeclared_by_any(line.as_object().unwrap());
        assert!(undeclared.is_empty(), "not in base::metrics: {undeclared:?}");
    }
    lines
}

/// Metrics that do not measure the machine.
fn computed(folder: &Path) -> Vec<Value> {
    let mut rows = metrics(folder);
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        base::metrics::remove_measured(row);
    }
    rows
}

/// Files of a folder and below, with their bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let below = self::files(&path);
            let name = PathBuf::from(path.file_name().unwrap());
            files.extend(below.into_iter().map(|(file, bytes)| (name.join(file), bytes)));
        } else {
            files.push((path.file_name().unwrap().into(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

/// A trainer's state without the metrics that wait for an evaluation: they measure the machine.
fn state(bytes: &[u8]) -> Value {
    let mut state: Value = serde_json::from_slice(bytes).unwrap();
    let waiting = state.as_object_mut().unwrap().remove("waiting");
    state["is_waiting"] = json!(waiting.is_some_and(|waiting| waiting.is_object()));
    state
}

/// The completions of all evaluations of a run.
fn completions(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder.join("eval");
    if !folder.exists() {
        return Vec::new();
    }
    let mut files = files(&folder);
    files.retain(|(name, _)| name.ends_with("answers.jsonl"));
    files
}

fn assert_same_run(folder: &Path, whole: &Path) {
    assert_eq!(computed(folder), computed(whole));
    assert_eq!(files(&folder.join("rollouts")), files(&whole.join("rollouts")));
    assert_eq!(completions(folder), completions(whole));
    assert_eq!(checkpoints(folder), checkpoints(whole));
    for name in checkpoints(whole) {
        let (found, expected) = (files(&folder.join(&name)), files(&whole.join(&name)));
        let names = |files: &[(PathBuf, Vec<u8>)]| {
            files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&found), names(&expected));
        for ((file, found), (_, expected)) in found.iter().zip(&expected) {
            // The settings name the folder, and the sums are of them too.
            if file.ends_with("trainer_state/config.yaml") || file.ends_with("sums.json") {
                continue;
            }
            if file.ends_with("state.json") {
                assert_eq!(state(found), state(expected), "{name}");
            } else {
                assert!(found == expected, "{name}/{} differs", file.display());
            }
        }
    }
}

#[test]
fn a_run_leaves_what_the_contract_says() {
    let dir = TempDir::new().unwrap();
    for method in ["grpo", "sft"] {
        let line = line(method, dir.path(), method, "--max_steps 3 --run_name mine");
        let folder = dir.path().join(method);
        let result = done(&line);
        assert_eq!(result.stdout, format!("{}\n", folder.join("checkpoint-3").display()));
        assert!(result.stderr.contains("\nstep 3/3 "), "{}", result.stderr);
        assert!(result.stderr.starts_with("run `mine`\n"), "{}", result.stderr);
        assert_eq!(checkpoints(&folder), ["checkpoint-2", "checkpoint-3"]);
        let steps: Vec<u64> =
            metrics(&folder).iter().map(|row| row["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert_eq!(fs::read_dir(folder.join("tensorboard")).unwrap().count(), 1);
        let environment: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("env.json")).unwrap()).unwrap();
        assert!(environment["cores"].is_u64() && environment["command"].is_array());
        // Its configuration is the one that a dry run prints, and a finished run has nothing to do.
        let config = fs::read_to_string(folder.join("config.yaml")).unwrap();
        assert_eq!(
            config,
            done(&format!("{line} --dry_run")).stdout.replace("dry_run: true", "dry_run: false")
        );
        let before = files(&folder.join("checkpoint-3"));
        done(&line);
        assert_eq!(files(&folder.join("checkpoint-3")), before);
        assert_eq!(metrics(&folder).len(), 3);
    }
    let rollouts = fs::read_to_string(dir.path().join("grpo/rollouts/step_000001.jsonl")).unwrap();
    assert_eq!(rollouts.lines().count(), 6);
}

#[test]
fn killed_again_and_again_a_run_ends_as_if_it_had_not_been() {
    let dir = TempDir::new().unwrap();
    let evaluations = evaluation_file(dir.path(), "limit: 3\n  max_new_tokens: 6\n");
    let more = format!(
        "--max_steps 12 --save_steps 1 --save_optimizer_limit 99 --eval_steps 5 --eval_config {evaluations}"
    );
    // A reward that a random model earns in parts: with another the weights would stay as they are.
    let line = |run: &str| {
        let line = line("grpo", dir.path(), run, &more);
        line.replace("--reward_method all_match", "--reward_funcs accuracy")
    };
    let whole = dir.path().join("whole");
    done(&line("whole"));
    assert_eq!(completions(&whole).len(), 3);
    let weights = |name: &str| fs::read(whole.join(name).join("model.safetensors")).unwrap();
    assert!(weights("checkpoint-1") != weights("checkpoint-12"));
    let killed = line("killed");
    let folder = dir.path().join("killed");
    let (mut kills, mut wait) = (0, Duration::from_millis(300));
    loop {
        let mut child = spawn(&killed);
        let start = Instant::now();
        while start.elapsed() < wait && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait().unwrap().is_some() {
            let ended = call_result(child.wait_with_output().unwrap());
            assert_eq!(ended.code, Some(0), "after {kills} kills: {}", ended.stderr);
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // Longer each time, so that the end comes; uneven, so that every phase is hit.
        wait += Duration::from_millis(61);
        for name in if folder.exists() { checkpoints(&folder) } else { vec![] } {
            assert!(
                folder.join(&name).join("trainer_state/state.json").exists(),
                "{name} is not whole"
            );
        }
    }
    assert!(kills >= 3, "only {kills} kills");
    assert_same_run(&folder, &dir.path().join("whole"));
}

#[test]
fn a_signal_ends_the_run_with_a_checkpoint_to_go_on_from() {
    let dir = TempDir::new().unwrap();
    let more = "--max_steps 40 --save_steps 0";
    done(&line("sft", dir.path(), "whole", more));
    let stopped = line("sft", dir.path(), "stopped", more);
    let folder = dir.path().join("stopped");
    let child = spawn(&stopped);
    let start = Instant::now();
    while !folder.join("metrics.jsonl").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no step in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "-TERM");
    let ended = call_result(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("SIGTERM: the step under way is finished and saved, then the run ends"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("\nhint: the same command goes on from there"),
        "{}",
        ended.stderr
    );
    let at_stop = checkpoints(&folder);
    assert_eq!(at_stop.len(), 1, "{at_stop:?}");
    done(&stopped);
    fs::remove_dir_all(folder.join(&at_stop[0])).unwrap();
    assert_same_run(&folder, &dir.path().join("whole"));
}

#[test]
fn graphs_without_a_gpu_are_refused_before_anything_is_begun() {
    let dir = TempDir::new().unwrap();
    let result = call(&line("grpo", dir.path(), "run", "--cuda_graphs true"));
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert!(
        result.stderr.contains("CUDA graphs: expected a GPU, got cpu\nhint: --cuda_graphs false"),
        "{}",
        result.stderr
    );
    assert!(!dir.path().join("run/metrics.jsonl").exists());
}

#[test]
fn settings_that_alter_the_run_are_refused_when_it_goes_on() {
    let dir = TempDir::new().unwrap();
    done(&line("sft", dir.path(), "run", "--max_steps 2"));
    let config = fs::read_to_string(dir.path().join("run/config.yaml")).unwrap();
    let changed = "--max_steps 3 --seed 7";
    let refused = call(&line("sft", dir.path(), "run", changed));
    assert_eq!(refused.code, Some(1));
    for part in ["`max_steps`: was 2, is 3", "`seed`: was 42, is 7", "--allow_changed"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    assert_eq!(fs::read_to_string(dir.path().join("run/config.yaml")).unwrap(), config);
    done(&line("sft", dir.path(), "run", &format!("{changed} --allow_changed")));
    assert_eq!(metrics(&dir.path().join("run")).len(), 3);
    let refused =
        call(&line("sft", dir.path(), "run", &format!("{changed} --resume_from_checkpoint false")));
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("resume_from_checkpoint"), "{}", refused.stderr);
}

#[test]
fn bad_data_stops_a_run_before_anything_is_written() {
    let dir = TempDir::new().unwrap();
    let line = line("sft", dir.path(), "run", "--max_steps 1");
    let data = dir.path().join("train.jsonl");
    let good = fs::read_to_string(&data).unwrap();
    fs::write(&data, format!("{good}{{\"image\": \"scene.png\"}}\n")).unwrap();
    let refused = call(&line);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("train.jsonl:6: "), "{}", refused.stderr);
    assert!(!dir.path().join("run").join("metrics.jsonl").exists());
    let skipped = done(&format!("{line} --on_bad_row skip"));
    assert!(skipped.stderr.contains("train.jsonl:6: "), "{}", skipped.stderr);
}

/// What a run wrote can be scored again, and scores the same.
#[test]
fn rollouts_score_again_as_they_did() {
    let dir = TempDir::new().unwrap();
    let reward = dir.path().join("mine.py");
    // Of everything that a reward may look at.
    let text = "import hashlib, json\ndef mine(**kwargs):\n    rows = len(kwargs['completions'])\n    \
                seen = lambda i: json.dumps({k: v[i] if isinstance(v, list) else v for k, v in kwargs.items()}, sort_keys=True)\n    \
                return [int(hashlib.sha256(seen(i).encode()).hexdigest()[:12], 16) / 7.0 for i in range(rows)]\n";
    fs::write(&reward, text).unwrap();
    for (run, rewards) in [
        ("rec", "--reward_funcs accuracy format --task_type rec --is_reward_customized_from_vlm_module true".to_owned()),
        ("own", format!("--reward_funcs accuracy length overlong repetition {}:mine", reward.display())),
    ] {
        done(&line("grpo", dir.path(), run, &format!("--max_steps 2 {rewards}")));
        let more = match run {
            "own" => "--overlong_max_tokens 6",
            _ => "",
        };
        for step in [1, 2] {
            let file = dir.path().join(format!("{run}/rollouts/step_{step:06}.jsonl"));
            let result = done(&format!("reward --input {} {rewards} {more}", file.display()));
            let rows = |text: &str| -> Vec<Value> {
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
            };
            let (was, now) = (rows(&fs::read_to_string(&file).unwrap()), rows(&result.stdout));
            assert_eq!(was.len(), 6);
            for (was, now) in was.iter().zip(&now) {
                assert_eq!(was["rewards"], now["rewards"], "{was}");
                assert_eq!(was["reward"], now["reward"]);
            }
        }
        holds_index(&dir.path().join(run));
    }
}

/// Each line leads to the completions of its group, and says of them what they say.
fn holds_index(run: &Path) {
    let text = fs::read_to_string(run.join("rollouts/index.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2 * 2, "two groups of three a step");
    for (number, line) in lines.iter().enumerate() {
        let (step, group) = (number / 2 + 1, number % 2);
        assert_eq!(line["step"], step, "{line}");
        assert_eq!(line["group"], group, "{line}");
        let file = fs::read_to_string(run.join(format!("rollouts/step_{step:06}.jsonl"))).unwrap();
        let offset = line["offset"].as_u64().unwrap() as usize;
        let rows: Vec<Value> =
            file[offset..].lines().take(3).map(|row| serde_json::from_str(row).unwrap()).collect();
        let of =
            |key: &str| -> Vec<f64> { rows.iter().map(|row| row[key].as_f64().unwrap()).collect() };
        assert!(rows.iter().all(|row| row["group"] == group && row["sample"] == line["sample"]));
        assert_eq!(rows[0]["completion_index"], 0);
        let (rewards, tokens) = (of("reward"), of("tokens"));
        let near = |key: &str, expected: f64| {
            let got = line[key].as_f64().unwrap();
            assert!((got - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{key}: {line}");
        };
        near("n", 3.0);
        near("reward_mean", rewards.iter().sum::<f64>() / 3.0);
        near("min", rewards.iter().copied().fold(f64::INFINITY, f64::min));
        near("max", rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        near("tokens_mean", tokens.iter().sum::<f64>() / 3.0);
        let cut_off = rows.iter().filter(|row| row["finish_reason"] == "length");
        near("cut_off", cut_off.count() as f64);
        assert_eq!(line["zero_spread"], rewards.iter().all(|reward| *reward == rewards[0]));
        assert!(line["reward_std"].as_f64().unwrap() >= 0.0);
    }
}

#[test]
fn a_password_in_an_address_reaches_no_file() {
    let dir = TempDir::new().unwrap();
    let more = "--reward_funcs http://user:hunter2@127.0.0.1:9/score?key=hunter2";
    let result = call(&line("grpo", dir.path(), "run", more));
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    let expected = "reward `http://127.0.0.1:9/score`: passwords in an address are not sent";
    assert!(result.stderr.contains(expected), "{}", result.stderr);
    assert!(!result.stderr.contains("hunter2"), "{}", result.stderr);
    assert!(!dir.path().join("run/config.yaml").exists());
}

/// Neither fails in a step; both would teach nothing.
#[test]
fn rewards_far_too_small_or_too_large_are_said() {
    let dir = TempDir::new().unwrap();
    let python = dir.path().join("mine.py");
    let text = "def small(completions):\n    return [i * 1e-7 for i, _ in enumerate(completions)]\n\
                def large(completions):\n    return [i * 1e308 for i, _ in enumerate(completions)][:1] + [1e308] * (len(completions) - 1)\n";
    fs::write(&python, text).unwrap();
    let run = |name: &str| {
        let more = format!("--max_steps 2 --reward_funcs {}:{name}", python.display());
        call(&line("grpo", dir.path(), name, &more))
    };
    let result = run("small");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let warning = "warning: step 1: the rewards of a group differ by 1.0e-7 (their deviation)";
    assert_eq!(result.stderr.matches(warning).count(), 1, "{}", result.stderr);
    assert_eq!(result.stderr.matches("teach next to nothing").count(), 1);
    let result = run("large");
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert!(
        result.stderr.contains("got 1e308, expected at most 1e50 in size"),
        "{}",
        result.stderr
    );
}

#[test]
fn a_fast_path_that_there_is_not_is_named_before_anything_is_loaded() {
    let dir = TempDir::new().unwrap();
    for (method, more) in [("grpo", "--dry_run"), ("sft", "--dry_run"), ("sft", "--max_steps 1")] {
        let result =
            call(&line(method, dir.path(), "run", &format!("--fast_paths rotations {more}")));
        assert_eq!(result.code, Some(1), "{method} {more}: {}", result.stderr);
        let expected = "fast_paths: got `rotations`, expected `auto`, `all`, `none` or some of";
        assert!(result.stderr.contains(expected), "{method} {more}: {}", result.stderr);
    }
}
