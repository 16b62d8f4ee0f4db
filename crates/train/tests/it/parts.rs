//! One step of a run is the same, weights and moments included, however the prompts of its groups are
//! computed: once for all completions, once for each, or once for each part of a group.

use std::collections::BTreeMap;
use std::path::Path;

use config::{GrpoConfig, LrSchedulerType};
use serde_json::Value;
use tch::Tensor;
use train::train_grpo_with_rewards;

use crate::golden;
use crate::runs::{bytes, grpo, metrics, share, watch};

/// Metrics, rollouts, exact weights and moments after a step of two updates.
struct Step {
    metrics: Value,
    rollouts: Vec<u8>,
    state: BTreeMap<String, Tensor>,
}

/// With an epsilon of 1, AdamW's updates are nearly in proportion to the gradients: of a gradient that
/// is rounding alone, no sign decides a whole step.
fn step(config: GrpoConfig) -> Step {
    let config = config.with(|c| {
        c.optimizer.max_steps = 1;
        c.optimizer.per_device_train_batch_size = 16;
        c.algorithm.num_iterations = 2;
        c.algorithm.beta = 0.2;
        c.sampling.temperature = 0.9;
        c.optimizer.learning_rate = 0.5;
        c.optimizer.lr_scheduler_type = LrSchedulerType::Constant;
        c.optimizer.adam_epsilon = 1.0;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let rewards = share(char::is_ascii_lowercase);
    let model = golden::checkpoint("nested");
    let outcome = train_grpo_with_rewards(&config, &model, rewards, &mut watch, &stop).unwrap();
    let state = outcome.checkpoint.unwrap().join("trainer_state/optimizer.safetensors");
    Step {
        metrics: metrics(&config.run.output_dir).remove(0),
        rollouts: bytes(Path::new(&config.run.output_dir), "rollouts/step_000001.jsonl"),
        state: torch::read_tensors(&state).unwrap(),
    }
}

fn norm(tensor: &Tensor) -> f64 {
    f64::try_from(tensor.norm()).unwrap()
}

fn assert_same(name: &str, got: &Step, expected: &Step, start: &BTreeMap<String, Tensor>) {
    assert!(got.rollouts == expected.rollouts, "{name}: rollouts differ");
    for key in ["loss", "grad_norm", "kl", "entropy", "clip_ratio"] {
        let number = |step: &Step| step.metrics[key].as_f64().unwrap();
        let (a, b) = (number(got), number(expected));
        assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{name} {key}: {a} {b}");
    }
    let mut moved = 0;
    for (key, value) in &expected.state {
        let difference = norm(&(&got.state[key] - value));
        let change = match key.strip_prefix("weight/") {
            Some(weight) => norm(&(value - start[weight].view(value.size().as_slice()))),
            None => norm(value),
        };
        assert!(difference <= 2e-4 * change + 1e-6, "{name} {key}: {difference} of {change}");
        moved += usize::from(key.starts_with("weight/") && change > 1e-3);
    }
    assert!(moved > 10, "{name}: {moved} weights moved");
}

#[test]
fn however_prompts_are_computed_a_step_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let start =
        torch::read_tensors(&golden::checkpoint("nested").join("model.safetensors")).unwrap();
    let shared = step(grpo(folder.path(), "shared"));
    // A budget of 1 token makes each completion a micro-batch; others cut some groups, not all.
    for (share_prompt, tokens) in
        [(false, None), (false, Some(1)), (true, Some(1)), (true, Some(70)), (true, Some(120))]
    {
        let name = format!("{share_prompt}-{tokens:?}");
        let config = grpo(folder.path(), &name).with(|c| {
            c.rollout.share_prompt = share_prompt;
            c.machine.max_tokens_per_microbatch = tokens;
        });
        assert_same(&name, &step(config), &shared, &start);
    }
}
