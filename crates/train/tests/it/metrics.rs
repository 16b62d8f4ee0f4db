//! What runs write to `metrics.jsonl` is what `base::metrics` declares: no metric more, and none less.

use std::collections::BTreeSet;

use base::metrics::{self, Command, TABLE, undeclared};
use base::run_folder::StopFlag;
use config::{EvalSection, SamplerCorrection};
use rewards::{Reward, RewardError, RewardInput, RewardSet};
use serde_json::{Map, Value};
use train::{EvalMetrics, EvaluationError, Observer, PolicyAt, train_grpo_with_rewards, train_sft};

use crate::golden;
use crate::runs::{grpo, metrics_lines, sft};

/// A judge that nobody asks: scores by length, with the counters of one.
struct Judge;

impl Reward for Judge {
    fn name(&self) -> &str {
        "host/score"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(rows.iter().map(|row| Some(row.completion.len() as f64 / 100.0)).collect())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("judge_asked", 1), ("judge_cached", 2), ("judge_failed", 3)]
    }
}

/// Has an evaluation of its own.
struct Evaluator;

impl Observer for Evaluator {
    fn on_step(&mut self, _step: u64, _total: u64, _metrics: &Map<String, Value>) {}

    fn on_message(&mut self, _message: &str) {}

    fn evaluate(&mut self, _policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>, EvaluationError> {
        Ok(Some(vec![("val/iou/0.5".into(), 1.0)]))
    }
}

fn every_two(eval: &mut EvalSection) {
    eval.eval_steps = Some(2);
    eval.eval_config = Some("of the observer".into());
}

/// The entries that the lines of a run fill.
fn written(command: Command, output_dir: &str) -> BTreeSet<&'static str> {
    let mut written = BTreeSet::new();
    for line in metrics_lines(output_dir) {
        let line = line.as_object().unwrap();
        assert_eq!(undeclared(command, line), [""; 0], "not in base::metrics");
        for (name, value) in metrics::flat(line) {
            assert!(value.is_number() || value.is_null(), "{name}: {value}");
            written.extend(metrics::find_of(command, &name).map(|metric| metric.name));
        }
    }
    written
}

fn declared(command: Command) -> BTreeSet<&'static str> {
    let of_command = TABLE.iter().filter(|metric| metric.commands.contains(&command));
    of_command.map(|metric| metric.name).collect()
}

#[test]
fn grpo_writes_what_is_declared() {
    let folder = tempfile::tempdir().unwrap();
    let every = grpo(folder.path(), "every").with(|c| {
        c.model.freeze_vision_modules = true;
        c.data.val_split_ratio = 0.2;
        c.optimizer.max_steps = 3;
        c.save.save_steps = 1;
        every_two(&mut c.eval);
    });
    // A metric that only some setting brings needs a run with that setting here.
    let variant = grpo(folder.path(), "variant").with(|c| {
        c.optimizer.max_steps = 1;
        c.algorithm.steps_per_generation = Some(2);
        c.algorithm.top_entropy_quantile = 0.5;
        c.algorithm.sampler_correction = SamplerCorrection::TokenMask;
    });
    let runs = [every, variant];
    let mut all = BTreeSet::new();
    for config in runs {
        let rewards = RewardSet::new(vec![Box::new(Judge)], None).unwrap();
        let (model, stop) = (golden::checkpoint("nested"), StopFlag::new());
        train_grpo_with_rewards(&config, &model, rewards, &mut Evaluator, &stop).unwrap();
        all.extend(written(Command::Grpo, &config.run.output_dir));
    }
    assert_eq!(all, declared(Command::Grpo));
}

#[test]
fn sft_writes_what_is_declared() {
    let folder = tempfile::tempdir().unwrap();
    let config = sft(folder.path(), "sft").with(|c| {
        c.model.freeze_vision_modules = true;
        c.data.val_split_ratio = 0.2;
        c.optimizer.max_steps = 3;
        c.save.save_steps = 1;
        every_two(&mut c.eval);
    });
    let (model, stop) = (golden::checkpoint("nested"), StopFlag::new());
    train_sft(&config, &model, &mut Evaluator, &stop).unwrap();
    assert_eq!(written(Command::Sft, &config.run.output_dir), declared(Command::Sft));
}
