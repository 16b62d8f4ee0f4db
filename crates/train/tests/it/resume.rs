//! `--resume_from_checkpoint PATH`, and checkpoints and lines of metrics where the trainers' other flags put them.

use std::fs;
use std::path::{Path, PathBuf};

use config::{GrpoConfig, LrSchedulerType, Resume, SaveStrategy, SchedulerKwargs};
use serde_json::Value;
use train::{Outcome, TrainError, train_grpo_with_rewards};

use crate::golden;
use crate::runs::{bytes, grpo, metrics, metrics_lines, share, watch};

const OPTIMIZER: &str = "trainer_state/optimizer.safetensors";

fn run(config: &GrpoConfig) -> Result<Outcome, TrainError> {
    let mut watch = watch(None);
    let (model, stop) = (golden::checkpoint("nested"), watch.stop.clone());
    let rewards = share(char::is_ascii_lowercase);
    train_grpo_with_rewards(config, &model, rewards, &mut watch, &stop)
}

/// Four steps of two prompts; an epoch of five rows takes three.
fn config(folder: &Path, out: &str) -> GrpoConfig {
    grpo(folder, out).with(|c| {
        c.optimizer.max_steps = 4;
        c.save.save_steps = 1;
        c.algorithm.num_generations = 2;
        c.optimizer.per_device_train_batch_size = 4;
        c.sampling.max_completion_length = 6;
    })
}

fn checkpoint(config: &GrpoConfig, step: u64) -> PathBuf {
    Path::new(&config.run.output_dir).join(format!("checkpoint-{step}"))
}

#[test]
fn a_run_goes_on_from_the_checkpoint_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = config(folder.path(), "whole");
    run(&whole).unwrap();
    let end = bytes(&checkpoint(&whole, 4), OPTIMIZER);
    let lines = metrics(&whole.run.output_dir);

    // In another folder, which has none of its own.
    let from = |from: PathBuf, out: &GrpoConfig| {
        out.clone().with(|c| c.start.resume_from_checkpoint = Resume::From(from))
    };
    let other = config(folder.path(), "other");
    let resumed = from(checkpoint(&whole, 2), &other);
    assert!(run(&resumed).unwrap().finished);
    assert!(bytes(&checkpoint(&other, 4), OPTIMIZER) == end);
    assert_eq!(metrics(&other.run.output_dir), lines[2..]);
    assert!(!checkpoint(&other, 2).exists());
    let error = run(&resumed).unwrap_err().to_string();
    assert!(error.contains("of another run") && error.contains("checkpoint-4"), "{error}");

    // An earlier one of its own: what came after it stands aside.
    let back = from(checkpoint(&whole, 2), &whole);
    assert!(run(&back).unwrap().finished);
    assert!(bytes(&checkpoint(&whole, 4), OPTIMIZER) == end);
    assert_eq!(metrics(&whole.run.output_dir), lines);
    assert!(Path::new(&whole.run.output_dir).join("checkpoint-4.old-1").is_dir());

    // With other settings it is another run, from wherever it goes on.
    let changed = from(checkpoint(&whole, 2), &whole).with(|c| {
        c.algorithm.beta = 0.5;
        c.run.output_dir = folder.path().join("changed").display().to_string();
    });
    let error = run(&changed).unwrap_err().to_string();
    assert!(error.contains("`beta`: was 0.04, is 0.5"), "{error}");
}

#[test]
fn what_is_no_checkpoint_to_go_on_from_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("checkpoint-7");
    fs::create_dir(&alone).unwrap();
    for from in [folder.path().join("checkpoint-3"), alone, folder.path().to_path_buf()] {
        let config = config(folder.path(), "run")
            .with(|c| c.start.resume_from_checkpoint = Resume::From(from.clone()));
        let error = run(&config).unwrap_err().to_string();
        assert!(
            error.contains("`resume_from_checkpoint`: ")
                && error.contains(&format!("`{}` is no `checkpoint-N`", from.display()))
                && error.contains("\nhint: "),
            "{error}"
        );
        assert!(!Path::new(&config.run.output_dir).join("metrics.jsonl").exists());
    }
}

#[test]
fn checkpoints_come_after_every_epoch_and_the_first_step_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "epochs").with(|c| {
        c.save.save_strategy = SaveStrategy::Epoch;
        c.run.logging_steps = 3;
        c.run.logging_first_step = true;
        c.optimizer.max_grad_norm = 0.0;
        c.optimizer.lr_scheduler_type = LrSchedulerType::CosineWithMinLr;
        c.optimizer.lr_scheduler_kwargs =
            Some(SchedulerKwargs { min_lr_rate: Some(0.5), ..SchedulerKwargs::default() });
        c.optimizer.warmup_steps = 0.25;
    });
    run(&config).unwrap();
    let saved: Vec<u64> = (1..=4).filter(|step| checkpoint(&config, *step).exists()).collect();
    assert_eq!(saved, [3, 4]);
    let lines = metrics_lines(&config.run.output_dir);
    let of = |key: &str| -> Vec<f64> {
        let values = lines.iter().map(|line| line.get(key).and_then(Value::as_f64));
        values.map(Option::unwrap).collect()
    };
    assert_eq!(of("step"), [1.0, 3.0, 4.0]);
    // One step of warm-up, then half a cosine of three steps down to the half.
    let rate = |part: f64| 3e-3 * (0.5 * (1.0 + part.cos()) * 0.5 + 0.5);
    let third = std::f64::consts::FRAC_PI_3;
    for (got, expected) in of("learning_rate").iter().zip([0.0, rate(third), rate(2.0 * third)]) {
        assert!((got - expected).abs() < 1e-12, "{got} {expected}");
    }
}
