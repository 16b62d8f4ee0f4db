//! Variants of the algorithm in whole runs: what they do to the run, and that it resumes bit for bit.

use std::path::Path;

use config::{
    AdvantageEstimator, AlgorithmSection, GrpoConfig, KlEstimator, LossType, RatioLevel,
    SamplerCorrection, ScaleRewards,
};
use rewards::{Reward, RewardError, RewardInput, RewardSet};
use serde_json::Value;
use train::{Outcome, TrainError, train_grpo_with_rewards};

use crate::golden;
use crate::runs::{bytes, grpo, metrics, watch};

/// 1 where a text has an `e`: often the same for all completions of a prompt.
struct HasLetter;

impl Reward for HasLetter {
    fn name(&self) -> &str {
        "letter"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(rows.iter().map(|row| Some(f64::from(row.completion.contains('e')))).collect())
    }
}

fn run(config: &GrpoConfig, stop_after: Option<u64>) -> Result<Outcome, TrainError> {
    let mut watch = watch(stop_after);
    let (model, stop) = (golden::checkpoint("nested"), watch.stop.clone());
    let rewards = RewardSet::new(vec![Box::new(HasLetter)], None).unwrap();
    train_grpo_with_rewards(config, &model, rewards, &mut watch, &stop)
}

/// Two prompts an update, groups of two.
fn config(folder: &Path, out: &str, set: impl FnOnce(&mut AlgorithmSection)) -> GrpoConfig {
    grpo(folder, out).with(|c| {
        c.algorithm.num_generations = 2;
        c.optimizer.per_device_train_batch_size = 4;
        c.optimizer.max_steps = 4;
        c.sampling.max_completion_length = 8;
        set(&mut c.algorithm);
    })
}

fn all(config: &GrpoConfig, key: &str) -> Vec<f64> {
    let lines = metrics(&config.run.output_dir);
    lines.iter().map(|line| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"))).collect()
}

/// Every step is the first after a resume once.
fn resumes_bit_for_bit(name: &str, set: impl Fn(&mut AlgorithmSection)) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let whole = config(folder.path(), "whole", &set);
    let outcome = run(&whole, None).unwrap();
    let parts = config(folder.path(), "parts", &set);
    for stop in 1..4 {
        assert_eq!(run(&parts, Some(stop)).unwrap().steps, stop, "{name}");
    }
    let resumed = run(&parts, None).unwrap();
    let (a, b) = (outcome.checkpoint.unwrap(), resumed.checkpoint.unwrap());
    for file in ["model.safetensors", "trainer_state/optimizer.safetensors"] {
        assert!(bytes(&a, file) == bytes(&b, file), "{name}: {file} differs");
    }
    let lines = metrics(&whole.run.output_dir);
    assert_eq!(lines, metrics(&parts.run.output_dir), "{name}");
    lines
}

#[test]
fn groups_without_spread_are_replaced_by_further_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let plain = config(folder.path(), "plain", |_| {});
    run(&plain, None).unwrap();
    let silent: f64 = all(&plain, "zero_spread_groups").iter().sum();
    assert!(silent >= 2.0, "{silent}");
    assert!(all(&plain, "resampled_groups").iter().all(|count| *count == 0.0));
    let lines = resumes_bit_for_bit("dynamic", |a| {
        a.dynamic_sample = true;
        a.max_resample_times = 6;
    });
    let sum = |key: &str| lines.iter().map(|line| line[key].as_f64().unwrap()).sum::<f64>();
    assert!(sum("resampled_groups") >= 2.0 && sum("zero_spread_groups") < silent, "{lines:?}");
    // The rows go faster than the steps: two steps of five rows would be less than an epoch.
    assert!(lines[1]["epoch"].as_f64() > all(&plain, "epoch").get(1).copied(), "{lines:?}");
}

#[test]
fn a_reference_moves_with_the_policy_and_is_resumed() {
    // After each update the reference is the policy: no step sees a divergence.
    let lines = resumes_bit_for_bit("moved", |a| {
        a.sync_ref_model = true;
        a.ref_model_sync_steps = 1;
        a.ref_model_mixup_alpha = 1.0;
        a.beta = 0.5;
    });
    assert!(lines.iter().all(|line| line["kl"].as_f64().unwrap().abs() < 1e-9), "{lines:?}");
    let lines = resumes_bit_for_bit("half", |a| {
        a.sync_ref_model = true;
        a.ref_model_sync_steps = 2;
        a.beta = 0.5;
    });
    let kl: Vec<f64> = lines.iter().map(|line| line["kl"].as_f64().unwrap()).collect();
    assert!(kl[3] > 0.0, "{kl:?}");
}

#[test]
fn a_rollout_of_several_updates_has_one_old_policy() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "several", |a| a.steps_per_generation = Some(2));
    run(&config, None).unwrap();
    // Four prompts, and the fifth row at the end of the epoch.
    assert_eq!(all(&config, "completions"), [8.0, 2.0, 8.0, 2.0]);
    assert!(metrics(&config.run.output_dir)[0].get("clip_ratio").is_some());
    resumes_bit_for_bit("several", |a| {
        a.steps_per_generation = Some(3);
        a.epsilon = 1e-6;
        a.num_iterations = 2;
    });
}

#[test]
fn other_variants_resume_bit_for_bit() {
    resumes_bit_for_bit("gspo", |a| {
        a.importance_sampling_level = RatioLevel::Sequence;
        a.num_iterations = 2;
        a.mask_truncated_completions = true;
    });
    resumes_bit_for_bit("entropy", |a| {
        a.loss_type = LossType::Dapo;
        a.top_entropy_quantile = 0.5;
        a.entropy_coef = 0.1;
        a.scale_rewards = ScaleRewards::Batch;
    });
    resumes_bit_for_bit("reinforce", |a| {
        a.advantage_estimator = AdvantageEstimator::ReinforcePlusPlus;
        a.beta = 0.3;
        a.loss_type = LossType::Cispo;
        a.epsilon_high = Some(5.0);
        a.sampler_correction = SamplerCorrection::TokenTruncate;
    });
    resumes_bit_for_bit("vespo", |a| {
        a.loss_type = LossType::Vespo;
        a.kl_estimator = Some(KlEstimator::K2);
        a.off_policy_mask_threshold = Some(0.1);
        a.num_iterations = 2;
    });
}

#[test]
fn a_divergence_in_the_reward_is_told_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let set = |a: &mut AlgorithmSection| {
        a.advantage_estimator = AdvantageEstimator::Rloo;
        a.beta = 0.5;
    };
    let config = config(folder.path(), "rloo", set);
    run(&config, None).unwrap();
    let kl = all(&config, "kl");
    // The policy is its own reference at first.
    assert!(kl[0].abs() < 1e-5 && kl[2..].iter().any(|kl| kl.abs() > 1e-4), "{kl:?}");
}
