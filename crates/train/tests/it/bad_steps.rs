//! Steps whose loss or gradient is not finite change nothing, are written down, and end the run when
//! there are more of them than were allowed.

use std::fs;
use std::path::Path;

use config::{GrpoConfig, LrSchedulerType, SftConfig};
use models::VisionLanguageModel;
use rewards::{Reward, RewardBatch, RewardError, RewardInput, RewardSet};
use serde_json::Value;
use tch::Tensor;
use testing::read_jsonl;
use train::optimizer::{Optimizer, OptimizerOptions};
use train::{Outcome, TrainError, train_grpo_with_rewards, train_sft};

use crate::golden;
use crate::runs::{bytes, grpo, metrics, sft, watch};

/// The share of small letters; of the second step's second group three scores whose sum overflows, so
/// that the advantages are no numbers.
struct Overflowing;

impl Reward for Overflowing {
    fn name(&self) -> &str {
        "overflowing"
    }

    /// As if nothing looked at scores before the step does.
    fn max_size(&self) -> f64 {
        f64::MAX
    }

    /// By its place in the step.
    fn batch(&self) -> RewardBatch {
        RewardBatch::Step
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let score = |(index, row): (usize, &RewardInput<'_>)| {
            let small = row.completion.chars().filter(char::is_ascii_lowercase);
            let share = small.count() as f64 / row.completion.chars().count().max(1) as f64;
            let is_huge = row.step == Some(2) && index > 4;
            Some(if is_huge { 1e308 } else { share })
        };
        Ok(rows.iter().enumerate().map(score).collect())
    }
}

fn run(config: &GrpoConfig, stop_after: Option<u64>) -> Result<Outcome, TrainError> {
    let mut watch = watch(stop_after);
    let stop = watch.stop.clone();
    let rewards = RewardSet::new(vec![Box::new(Overflowing)], None).unwrap();
    let model = golden::checkpoint("nested");
    train_grpo_with_rewards(config, &model, rewards, &mut watch, &stop)
}

/// Two micro-batches a step: the first one's gradients are there when the second one is found bad.
fn config(folder: &Path, out: &str, bf16: bool, max_bad_steps: u64) -> GrpoConfig {
    grpo(folder, out).with(|c| {
        c.model.bf16 = bf16;
        c.start.max_bad_steps = max_bad_steps;
        c.optimizer.per_device_train_batch_size = 4;
        c.optimizer.gradient_accumulation_steps = 2;
        c.optimizer.max_steps = 4;
        c.save.save_steps = 1;
    })
}

/// Whether weights and moments of two checkpoints are the same to the bit.
fn is_same(folder: &str, (a, b): (u64, u64)) -> bool {
    ["model.safetensors", "trainer_state/optimizer.safetensors"].iter().all(|file| {
        let of = |step| bytes(Path::new(folder), &format!("checkpoint-{step}/{file}"));
        of(a) == of(b)
    })
}

#[test]
fn a_refused_step_changes_nothing_and_the_run_goes_on_exactly() {
    let folder = tempfile::tempdir().unwrap();
    for bf16 in [false, true] {
        let whole = config(folder.path(), &format!("whole-{bf16}"), bf16, 1);
        assert!(run(&whole, None).unwrap().finished);
        assert!(is_same(&whole.run.output_dir, (1, 2)), "{bf16}");
        assert!(!is_same(&whole.run.output_dir, (2, 3)), "{bf16}");
        let counts: Vec<u64> = metrics(&whole.run.output_dir)
            .iter()
            .map(|m| m["bad_steps"].as_u64().unwrap())
            .collect();
        assert_eq!(counts, [0, 1, 1, 1]);
        let has_loss: Vec<bool> = metrics(&whole.run.output_dir)
            .iter()
            .map(|m| m.get("loss").is_some_and(Value::is_f64))
            .collect();
        assert_eq!(has_loss, [true, false, true, true]);

        // Stopped by its first bad step, continued with one allowed, interrupted right after it.
        let parts = config(folder.path(), &format!("parts-{bf16}"), bf16, 0);
        let error = run(&parts, None).unwrap_err().to_string();
        for said in ["step 2: loss of micro-batch 2", "NaN", "step_000002.jsonl", "--max_bad_steps"]
        {
            assert!(error.contains(said), "{error}");
        }
        let parts = parts.with(|c| c.start.max_bad_steps = 1);
        assert_eq!(run(&parts, Some(2)).unwrap().steps, 2);
        assert!(run(&parts, None).unwrap().finished);
        let file = "checkpoint-4/trainer_state/optimizer.safetensors";
        let of = |config: &GrpoConfig, file: &str| bytes(Path::new(&config.run.output_dir), file);
        assert!(of(&whole, file) == of(&parts, file), "{bf16}");
        assert_eq!(metrics(&whole.run.output_dir), metrics(&parts.run.output_dir));
        let dump = "bad_steps/step_000002.jsonl";
        assert!(of(&whole, dump) == of(&parts, dump));
    }
}

#[test]
fn the_batch_of_a_refused_step_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "dump", false, 0);
    run(&config, None).unwrap_err();
    let out = Path::new(&config.run.output_dir);
    let lines = read_jsonl::<Value>(&out.join("bad_steps/step_000002.jsonl"));
    let (head, rows) = lines.split_first().unwrap();
    assert_eq!(head["quantity"], "loss");
    assert_eq!(head["value"], "NaN");
    assert_eq!(head["micro_batch"], 2);
    assert_eq!(rows.len(), 8);
    for (index, row) in rows.iter().enumerate() {
        let is_bad = index >= 4;
        assert_eq!(row["micro_batch"], if is_bad { 2 } else { 1 });
        assert_eq!(row["advantage"] == "NaN", is_bad, "{row}");
        assert_eq!(row["rewards"]["overflowing"] == 1e308, index > 4, "{row}");
        let len = row["ids"].as_array().unwrap().len();
        assert!(len > 0 && row["tokens"] == len);
        for list in ["sampled_logprobs", "old_logprobs", "ref_logprobs"] {
            let values = golden::floats(&row[list]);
            assert!(values.len() == len && values.iter().all(|v| *v < 0.0), "{row}");
        }
        for text in ["sample", "prompt", "completion"] {
            assert!(row[text].is_string(), "{row}");
        }
        assert!(row["images"].is_array() && !golden::ids(&row["prompt_ids"]).is_empty());
    }
    // A run started over forgets it.
    fs::remove_dir_all(out.join("checkpoint-1")).unwrap();
    let again = config.clone().with(|c| c.optimizer.max_steps = 1);
    run(&again, None).unwrap();
    assert!(!out.join("bad_steps/step_000002.jsonl").exists());
}

/// A rate at which one update makes every later loss overflow.
fn diverging(folder: &Path, out: &str) -> SftConfig {
    sft(folder, out).with(|c| {
        c.optimizer.learning_rate = 1e30;
        c.optimizer.lr_scheduler_type = LrSchedulerType::Constant;
        c.start.max_bad_steps = 2;
        c.optimizer.max_steps = 10;
        c.save.save_steps = 0;
    })
}

fn run_sft(config: &SftConfig, model: &Path) -> Result<Outcome, TrainError> {
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    train_sft(config, model, &mut watch, &stop)
}

#[test]
fn sft_that_diverges_stops_after_the_bad_steps_it_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let config = diverging(folder.path(), "sft");
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let error = train_sft(&config, &golden::checkpoint("nested"), &mut watch, &stop).unwrap_err();
    let said = watch.said.join("\n");
    assert!(said.contains("step 4: loss of micro-batch 1"), "{said}");
    // All after the first update: there is nothing to go on from.
    assert!(matches!(error, TrainError::Diverged { step: 1, .. }), "{error}");
    let out = Path::new(&config.run.output_dir);
    // Of five rows the third step has the last one.
    for (step, rows) in [(2, 2), (3, 1), (4, 2)] {
        let lines = read_jsonl::<Value>(&out.join(format!("bad_steps/step_{step:06}.jsonl")));
        assert_eq!(lines.len(), 1 + rows);
        for row in &lines[1..] {
            let len = row["ids"].as_array().unwrap().len();
            assert_eq!(row["old_logprobs"].as_array().unwrap().len(), len);
            assert!(row["completion"].is_string() && row["micro_batch"] == 1);
        }
    }
}

#[test]
fn a_gradient_that_overflows_is_refused_though_the_loss_is_finite() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let golden = golden::checkpoint("nested");
    for entry in fs::read_dir(&golden).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let mut tensors = torch::read_tensors(&golden.join("model.safetensors")).unwrap();
    let name = tensors
        .keys()
        .find(|name| {
            name.ends_with("model.norm.weight") || name.ends_with("language_model.norm.weight")
        })
        .unwrap()
        .clone();
    let scaled = &tensors[&name] * 1e24;
    tensors.insert(name, scaled);
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    torch::write_tensors(&model.join("model.safetensors"), &tensors).unwrap();
    let config = sft(folder.path(), "gradient").with(|c| c.optimizer.max_steps = 1);
    let error = run_sft(&config, &model).unwrap_err().to_string();
    assert!(error.contains("step 1: gradient norm"), "{error}");
    let dump = Path::new(&config.run.output_dir).join("bad_steps/step_000001.jsonl");
    let head = &read_jsonl::<Value>(&dump)[0];
    assert_eq!(head["quantity"], "gradient norm");
    assert!(head["micro_batch"].is_null());
    assert!(head["value"] == "inf" || head["value"] == "NaN", "{head}");
}

fn optimizer(model: &mut dyn VisionLanguageModel) -> Optimizer {
    let options = OptimizerOptions {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        in_8bit: false,
        max_grad_norm: 1.0,
    };
    Optimizer::alone(model.parameters_mut(), options).unwrap()
}

#[test]
fn the_weight_whose_gradient_is_not_finite_is_named_and_nothing_moves() {
    let mut model = golden::model("nested", true);
    let mut optimizer = optimizer(model.as_mut());
    let parameters = model.parameters();
    let copy = |optimizer: &Optimizer| -> Vec<Tensor> {
        let state = optimizer.state(parameters);
        state.iter().map(|(_, tensor)| tensor.copy()).collect()
    };
    let before = copy(&optimizer);
    for (factor, named) in [(f64::INFINITY, true), (1e38, false)] {
        let weights = &parameters.list;
        (weights[0].value.sum(tch::Kind::Float) * 0.5).backward();
        (weights[1].value.sum(tch::Kind::Float) * factor).backward();
        let Err(TrainError::NonFinite(cause)) = optimizer.step(parameters, 0.1) else {
            panic!("a gradient of {factor} was applied");
        };
        let expected: &[String] = if named { &[weights[1].name.clone()] } else { &[] };
        assert_eq!(cause.weights, expected, "{factor}");
        assert_eq!(cause.quantity, "gradient norm");
        for (a, b) in before.iter().zip(copy(&optimizer)) {
            assert!(a.equal(&b));
        }
        // Nothing of it is left for the next step.
        assert_eq!(optimizer.step(parameters, 0.1).unwrap(), 0.0);
    }
}
