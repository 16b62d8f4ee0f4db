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
    GrpoConfig {
        max_steps: 4,
        save_steps: 1,
        num_generations: 2,
        per_device_train_batch_size: 4,
        max_completion_length: 6,
        ..grpo(folder, out)
    }
}

fn checkpoint(config: &GrpoConfig, step: u64) -> PathBuf {
    Path::new(&config.output_dir).join(format!("checkpoint-{step}"))
}

#[test]
fn a_run_goes_on_from_the_checkpoint_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = config(folder.path(), "whole");
    run(&whole).unwrap();
    let end = bytes(&checkpoint(&whole, 4), OPTIMIZER);
    let lines = metrics(&whole.output_dir);

    // In another folder, which has none of its own.
    let from = |from: PathBuf, out: &GrpoConfig| GrpoConfig {
        resume_from_checkpoint: Resume::From(from),
        ..out.clone()
    };
    let other = config(folder.path(), "other");
    let resumed = from(checkpoint(&whole, 2), &other);
    assert!(run(&resumed).unwrap().finished);
    assert!(bytes(&checkpoint(&other, 4), OPTIMIZER) == end);
    assert_eq!(metrics(&other.output_dir), lines[2..]);
    assert!(!checkpoint(&other, 2).exists());
    let error = run(&resumed).unwrap_err().to_string();
    assert!(error.contains("of another run") && error.contains("checkpoint-4"), "{error}");

    // An earlier one of its own: what came after it stands aside.
    let back = from(checkpoint(&whole, 2), &whole);
    assert!(run(&back).unwrap().finished);
    assert!(bytes(&checkpoint(&whole, 4), OPTIMIZER) == end);
    assert_eq!(metrics(&whole.output_dir), lines);
    assert!(Path::new(&whole.output_dir).join("checkpoint-4.old-1").is_dir());

    // With other settings it is another run, from wherever it goes on.
    let changed = GrpoConfig {
        beta: 0.5,
        output_dir: folder.path().join("changed").display().to_string(),
        ..from(checkpoint(&whole, 2), &whole)
    };
    let error = run(&changed).unwrap_err().to_string();
    assert!(error.contains("`beta`: was 0.04, is 0.5"), "{error}");
}

#[test]
fn what_is_no_checkpoint_to_go_on_from_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("checkpoint-7");
    fs::create_dir(&alone).unwrap();
    for from in [folder.path().join("checkpoint-3"), alone, folder.path().to_path_buf()] {
        let config = GrpoConfig {
            resume_from_checkpoint: Resume::From(from.clone()),
            ..config(folder.path(), "run")
        };
        let error = run(&config).unwrap_err().to_string();
        assert!(
            error.contains("`resume_from_checkpoint`: ")
                && error.contains(&format!("`{}` is no `checkpoint-N`", from.display()))
                && error.contains("\nhint: "),
            "{error}"
        );
        assert!(!Path::new(&config.output_dir).join("metrics.jsonl").exists());
    }
}

#[test]
fn checkpoints_come_after_every_epoch_and_the_first_step_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let config = GrpoConfig {
        save_strategy: SaveStrategy::Epoch,
        logging_steps: 3,
        logging_first_step: true,
        max_grad_norm: 0.0,
        lr_scheduler_type: LrSchedulerType::CosineWithMinLr,
        lr_scheduler_kwargs: Some(SchedulerKwargs {
            min_lr_rate: Some(0.5),
            ..SchedulerKwargs::default()
        }),
        warmup_steps: 0.25,
        ..config(folder.path(), "epochs")
    };
    run(&config).unwrap();
    let saved: Vec<u64> = (1..=4).filter(|step| checkpoint(&config, *step).exists()).collect();
    assert_eq!(saved, [3, 4]);
    let lines = metrics_lines(&config.output_dir);
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
