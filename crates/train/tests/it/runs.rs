//! Whole runs: they learn, they resume bit for bit, their checkpoints are model folders.

use std::fs;
use std::path::{Path, PathBuf};

use base::run_folder::StopFlag;
use config::{ColonList, EvalStrategy, GrpoConfig, OnBadRow, SftConfig};
use rewards::{Reward, RewardError, RewardInput, RewardSet};
use serde_json::{Map, Value, json};
use train::{Observer, Outcome, TrainError, train_grpo, train_grpo_with_rewards, train_sft};

use crate::golden;

/// Collects metrics; raises the flag after a step.
pub(crate) struct Watch {
    stop_after: Option<u64>,
    pub(crate) stop: StopFlag,
    pub(crate) rewards: Vec<f64>,
    pub(crate) said: Vec<String>,
}

impl Observer for Watch {
    fn on_step(&mut self, step: u64, _total: u64, metrics: &Map<String, Value>) {
        self.rewards.extend(metrics.get("reward").and_then(Value::as_f64));
        if self.stop_after == Some(step) {
            self.stop.raise();
        }
    }

    fn on_message(&mut self, message: &str) {
        self.said.push(message.to_owned());
    }
}

pub(crate) fn watch(stop_after: Option<u64>) -> Watch {
    Watch { stop_after, stop: StopFlag::new(), rewards: Vec::new(), said: Vec::new() }
}

/// The share of characters of a kind: a reward that even a random model earns now and then.
struct Share(fn(&char) -> bool);

impl Reward for Share {
    fn name(&self) -> &str {
        "share"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let share = |text: &str| {
            let found = text.chars().filter(self.0).count();
            found as f64 / text.chars().count().max(1) as f64
        };
        Ok(rows.iter().map(|row| Some(share(row.completion))).collect())
    }
}

pub(crate) fn share(of: fn(&char) -> bool) -> RewardSet {
    RewardSet::new(vec![Box::new(Share(of))], None).unwrap()
}

fn rows(folder: &Path) -> ColonList {
    let row = |image: Value, question: &str, answer: &str| {
        let mut row = json!({"conversations": [
            {"from": "human", "value": question}, {"from": "gpt", "value": answer}]});
        if !image.is_null() {
            row["image"] = image;
        }
        row.to_string()
    };
    let rows = [
        row(json!("scene.png"), "<image>Where is the circle?", "[1, 2, 30, 40]"),
        row(Value::Null, "How many shapes are there?", "three"),
        row(json!(["small.png", "grey.png"]), "<image><image>Which is larger?", "the second"),
        row(json!("small.png"), "<image>What colour?", "red"),
        row(json!("grey.png"), "What is it?", "a circle"),
    ];
    let path = folder.join("rows.jsonl");
    fs::write(&path, rows.join("\n")).unwrap();
    ColonList(path.display().to_string())
}

pub(crate) fn grpo(folder: &Path, out: &str) -> GrpoConfig {
    GrpoConfig::default().with(|c| {
        c.model.model_name_or_path = golden::checkpoint("nested").display().to_string();
        c.data.data_file_paths = rows(folder);
        c.data.image_folders =
            Some(ColonList(golden::folder("parity/images").display().to_string()));
        c.run.output_dir = folder.join(out).display().to_string();
        c.algorithm.num_generations = 4;
        c.optimizer.per_device_train_batch_size = 8;
        c.sampling.max_completion_length = 12;
        c.optimizer.learning_rate = 3e-3;
        c.optimizer.max_steps = 6;
        c.save.save_steps = 0;
        // Checkpoints are compared with one another.
        c.save.save_optimizer_limit = 99;
        c.data.min_pixels = 3136;
        c.data.max_pixels = 31360;
        c.machine.device = torch::name_of_test_device();
        c.machine.num_threads = Some(1);
    })
}

fn run(config: &GrpoConfig, watch: &mut Watch) -> Result<Outcome, TrainError> {
    run_for(config, watch, char::is_ascii_lowercase)
}

fn run_for(
    config: &GrpoConfig,
    watch: &mut Watch,
    of: fn(&char) -> bool,
) -> Result<Outcome, TrainError> {
    let stop = watch.stop.clone();
    train_grpo_with_rewards(config, &golden::checkpoint("nested"), share(of), watch, &stop)
}

pub(crate) fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    let path = folder.join(file);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn metrics_lines(folder: &str) -> Vec<Value> {
    let text = fs::read_to_string(PathBuf::from(folder).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let is_declared = |line: &Value| {
        let undeclared = base::metrics::undeclared_by_any(line.as_object().unwrap());
        assert!(undeclared.is_empty(), "not in base::metrics: {undeclared:?}");
    };
    lines.inspect(is_declared).collect()
}

/// Metrics without what depends on the machine and its clock.
pub(crate) fn metrics(folder: &str) -> Vec<Value> {
    let mut lines = metrics_lines(folder);
    for line in &mut lines {
        base::metrics::remove_measured(line.as_object_mut().unwrap());
    }
    lines
}

#[test]
fn resumed_equals_uninterrupted() {
    let folder = tempfile::tempdir().unwrap();
    // With one prompt a step, some steps are text only and leave the tower without a gradient.
    for (name, iterations, beta, batch) in
        [("plain", 1, 0.04, 8), ("twice", 2, 0.0, 8), ("single", 1, 0.0, 4)]
    {
        let settings = |out: &str| {
            grpo(folder.path(), &format!("{name}-{out}")).with(|c| {
                c.algorithm.num_iterations = iterations;
                c.algorithm.beta = beta;
                c.optimizer.per_device_train_batch_size = batch;
            })
        };
        let whole = settings("whole");
        let outcome = run(&whole, &mut watch(None)).unwrap();
        assert!(outcome.finished);
        let parts = settings("parts");
        let first = run(&parts, &mut watch(Some(1))).unwrap();
        assert!(!first.finished && first.steps == 1);
        // Every step is the first after a resume once.
        for stop in 2..6 {
            assert_eq!(run(&parts, &mut watch(Some(stop))).unwrap().steps, stop);
        }
        // A run killed after more steps than its checkpoint leaves lines behind.
        let mut torn =
            fs::read_to_string(folder.path().join(format!("{name}-parts/metrics.jsonl"))).unwrap();
        torn.push_str("{\"step\":6,\"reward\":9}\n{\"step\":7,\"rew");
        fs::write(folder.path().join(format!("{name}-parts/metrics.jsonl")), torn).unwrap();
        let second = run(&parts, &mut watch(None)).unwrap();
        assert!(second.finished);
        let (a, b) = (outcome.checkpoint.unwrap(), second.checkpoint.unwrap());
        for file in ["model.safetensors", "trainer_state/optimizer.safetensors"] {
            assert!(bytes(&a, file) == bytes(&b, file), "{name}: {file} differs");
        }
        assert_ne!(
            bytes(&a, "model.safetensors"),
            bytes(&golden::checkpoint("nested"), "model.safetensors")
        );
        assert_eq!(metrics(&whole.run.output_dir), metrics(&parts.run.output_dir), "{name}");
        for step in 1..=6 {
            let rollouts = format!("rollouts/step_{step:06}.jsonl");
            assert_eq!(
                bytes(Path::new(&whole.run.output_dir), &rollouts),
                bytes(Path::new(&parts.run.output_dir), &rollouts)
            );
        }
    }
}

#[test]
fn the_reward_rises() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "learn").with(|c| {
        c.optimizer.max_steps = 30;
        c.optimizer.per_device_train_batch_size = 20;
        c.algorithm.num_generations = 8;
        c.machine.num_threads = None;
    });
    let mut watch = watch(None);
    run_for(&config, &mut watch, char::is_ascii_digit).unwrap();
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    let (start, end) = (mean(&watch.rewards[..4]), mean(&watch.rewards[26..]));
    assert!(end > start + 0.2 && end > 0.4, "reward went from {start} to {end}");
}

#[test]
fn micro_batches_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    for (out, batch, accumulation, tokens) in
        [("one", 16, 1, None), ("many", 3, 5, None), ("few", 16, 1, Some(100))]
    {
        let config = grpo(folder.path(), out).with(|c| {
            c.optimizer.per_device_train_batch_size = batch;
            c.optimizer.gradient_accumulation_steps = accumulation;
            c.machine.max_tokens_per_microbatch = tokens;
            c.optimizer.max_steps = 2;
        });
        run(&config, &mut watch(None)).unwrap();
        let lines = metrics(&config.run.output_dir);
        losses.push(
            lines
                .iter()
                .map(|m| (m["grad_norm"].as_f64().unwrap(), m["reward"].as_f64().unwrap()))
                .collect::<Vec<_>>(),
        );
    }
    // 16 and 15 completions are both four groups of four.
    for other in &losses[1..] {
        for (a, b) in losses[0].iter().zip(other) {
            assert!(
                (a.0 - b.0).abs() < 1e-4 * a.0.max(1.0) && (a.1 - b.1).abs() < 1e-9,
                "{losses:?}"
            );
        }
    }
}

#[test]
fn sampled_and_trained_logprobs_agree() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "agree").with(|c| {
        c.sampling.temperature = 0.8;
        c.optimizer.max_steps = 3;
    });
    run(&config, &mut watch(None)).unwrap();
    for line in metrics(&config.run.output_dir) {
        let difference = line["sampled_vs_trained_max"].as_f64().unwrap();
        assert!(difference < 1e-4, "{difference}");
    }
}

#[test]
fn bf16_keeps_exact_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "bf16").with(|c| {
        c.model.bf16 = true;
        c.optimizer.max_steps = 3;
        c.optimizer.learning_rate = 1e-5;
    });
    let outcome = run(&config, &mut watch(None)).unwrap();
    let before =
        torch::read_tensors(&golden::checkpoint("nested").join("model.safetensors")).unwrap();
    let after =
        torch::read_tensors(&outcome.checkpoint.unwrap().join("model.safetensors")).unwrap();
    // Steps of 1e-5 vanish in bf16; the f32 masters hold them.
    let moved = before.iter().filter(|(name, weight)| !weight.equal(&after[*name])).count();
    assert!(moved * 10 > before.len() * 9, "{moved} of {}", before.len());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
}

#[test]
fn a_frozen_tower_stays() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "frozen").with(|c| {
        c.model.freeze_vision_modules = true;
        c.optimizer.max_steps = 2;
    });
    let outcome = run(&config, &mut watch(None)).unwrap();
    let before =
        torch::read_tensors(&golden::checkpoint("nested").join("model.safetensors")).unwrap();
    let after =
        torch::read_tensors(&outcome.checkpoint.unwrap().join("model.safetensors")).unwrap();
    for (name, weight) in &before {
        assert_eq!(weight.equal(&after[name]), name.contains("visual"), "{name}");
    }
}

#[test]
fn changed_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "changed");
    run(&config, &mut watch(Some(1))).unwrap();
    let other = config.clone().with(|c| c.optimizer.learning_rate = 1e-2);
    let error = run(&other, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("learning_rate") && error.contains("--allow_changed"), "{error}");
    let allowed = other.with(|c| {
        c.start.allow_changed = true;
        c.optimizer.max_steps = 2;
    });
    assert!(run(&allowed, &mut watch(None)).unwrap().finished);
}

#[test]
fn a_solution_without_a_box_stops_rec() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "rec").with(|c| {
        c.data.task_type = Some("rec".into());
        c.rewards.is_reward_customized_from_vlm_module = true;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let error = train_grpo(&config, &golden::checkpoint("nested"), &mut watch, &stop).unwrap_err();
    assert!(error.to_string().contains("rows.jsonl:2"), "{error}");
    assert!(!Path::new(&config.run.output_dir).join("metrics.jsonl").exists());
}

#[test]
fn rows_that_no_reward_can_score_are_skipped_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "skip").with(|c| {
        c.data.task_type = Some("rec".into());
        c.rewards.is_reward_customized_from_vlm_module = true;
        c.data.on_bad_row = OnBadRow::Skip;
        c.optimizer.max_steps = 1;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let outcome = train_grpo(&config, &golden::checkpoint("nested"), &mut watch, &stop).unwrap();
    assert!(outcome.finished);
    let log = fs::read_to_string(Path::new(&config.run.output_dir).join("log.txt")).unwrap();
    assert!(log.contains("4 bad rows skipped") && log.contains("rows.jsonl:3"), "{log}");
}

pub(crate) fn sft(folder: &Path, out: &str) -> SftConfig {
    let from = grpo(folder, out);
    SftConfig::default().with(|c| {
        c.model.model_name_or_path = from.model.model_name_or_path;
        c.data.data_file_paths = from.data.data_file_paths;
        c.data.image_folders = from.data.image_folders;
        c.run.output_dir = from.run.output_dir;
        c.optimizer.per_device_train_batch_size = 2;
        c.optimizer.learning_rate = 1e-2;
        c.optimizer.max_steps = 40;
        c.save.save_steps = 0;
        c.save.save_optimizer_limit = 99;
        c.data.min_pixels = 3136;
        c.data.max_pixels = 31360;
        c.machine.device = torch::name_of_test_device();
        c.machine.num_threads = Some(1);
    })
}

fn run_sft(config: &SftConfig, stop_after: Option<u64>) -> Outcome {
    let mut watch = watch(stop_after);
    let stop = watch.stop.clone();
    train_sft(config, &golden::checkpoint("nested"), &mut watch, &stop).unwrap()
}

#[test]
fn sft_learns_its_rows_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = sft(folder.path(), "whole").with(|c| c.model.gradient_checkpointing = true);
    let outcome = run_sft(&whole, None);
    let lines = metrics(&whole.run.output_dir);
    let loss = |i: usize| lines[i]["loss"].as_f64().unwrap();
    assert!(loss(0) > 4.0 && loss(39) < 1.0, "{} -> {}", loss(0), loss(39));
    let parts = whole
        .clone()
        .with(|c| c.run.output_dir = folder.path().join("parts").display().to_string());
    run_sft(&parts, Some(17));
    let resumed = run_sft(&parts, None);
    let file = "trainer_state/optimizer.safetensors";
    assert!(bytes(&outcome.checkpoint.unwrap(), file) == bytes(&resumed.checkpoint.unwrap(), file));
    assert_eq!(lines, metrics(&parts.run.output_dir));
}

#[test]
fn validation_rows_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "held").with(|c| {
        c.data.val_split_ratio = 0.4;
        c.eval.eval_strategy = Some(EvalStrategy::Steps);
        c.eval.eval_steps = Some(2);
        c.optimizer.max_steps = 3;
    });
    run(&config, &mut watch(None)).unwrap();
    let lines = metrics(&config.run.output_dir);
    let scored: Vec<bool> = lines.iter().map(|m| m["eval/reward"].is_f64()).collect();
    assert_eq!(scored, [false, true, true]);
}
