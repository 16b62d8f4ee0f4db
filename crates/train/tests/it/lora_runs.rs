//! Runs that train adapters, or parts of a model: what moves, what stays, what is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base::model_folder::is_adapter;
use config::GrpoConfig;
use models::SavedAdapter;
use tch::Tensor;
use torch::read_tensors;
use train::{Outcome, TrainError, train_grpo_with_rewards, train_sft};

use crate::golden;
use crate::runs::{Watch, bytes, grpo, metrics, metrics_lines, sft, share, watch};

fn lora(folder: &Path, out: &str) -> GrpoConfig {
    grpo(folder, out).with(|c| {
        c.model.use_peft = true;
        c.model.lora_r = 4;
        c.model.lora_alpha = 8.0;
        c.model.lora_dropout = 0.1;
        c.optimizer.learning_rate = 1e-2;
    })
}

fn run(config: &GrpoConfig, watch: &mut Watch) -> Result<Outcome, TrainError> {
    let stop = watch.stop.clone();
    let model = golden::checkpoint("nested");
    train_grpo_with_rewards(config, &model, share(char::is_ascii_digit), watch, &stop)
}

fn weights(folder: &Path) -> BTreeMap<String, Tensor> {
    read_tensors(&folder.join("model.safetensors")).unwrap()
}

#[test]
fn adapters_learn_resume_and_are_written_as_peft_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let whole = lora(folder.path(), "whole");
    let outcome = run(&whole, &mut watch(None)).unwrap();
    let parts = lora(folder.path(), "parts");
    for stop in [1, 2, 4] {
        assert_eq!(run(&parts, &mut watch(Some(stop))).unwrap().steps, stop);
    }
    let resumed = run(&parts, &mut watch(None)).unwrap();
    let (a, b) = (outcome.checkpoint.unwrap(), resumed.checkpoint.unwrap());
    for file in ["adapter_model.safetensors", "trainer_state/optimizer.safetensors"] {
        assert!(bytes(&a, file) == bytes(&b, file), "{file} differs");
    }
    assert_eq!(metrics(&whole.run.output_dir), metrics(&parts.run.output_dir));
    // The reference is the policy without its adapters: no distance at first, then some.
    let kl: Vec<f64> = metrics_lines(&whole.run.output_dir)
        .iter()
        .map(|line| line["kl"].as_f64().unwrap())
        .collect();
    assert!(kl[1..].iter().all(|kl| *kl > kl_of_rounding()), "{kl:?}");

    assert!(is_adapter(&a) && !a.join("model.safetensors").exists());
    assert!(a.join("tokenizer.json").exists() && !a.join("config.json").exists());
    let adapter = SavedAdapter::read(&a).unwrap();
    assert_eq!(
        models::base_of(&adapter).unwrap(),
        golden::checkpoint("nested").canonicalize().unwrap()
    );
    let moved = read_tensors(&a.join("adapter_model.safetensors")).unwrap();
    let halves = moved.iter().filter(|(name, _)| name.contains("lora_B"));
    assert!(
        halves.clone().count() == 14
            && halves.clone().all(|(_, b)| f64::try_from(b.abs().max()).unwrap() > 0.0)
    );
    let saved = torch::read_tensors(&a.join("trainer_state/optimizer.safetensors")).unwrap();
    assert!(saved.keys().all(|name| name.contains("lora_")), "{:?}", saved.keys());
}

fn kl_of_rounding() -> f64 {
    1e-9
}

#[test]
fn the_reward_rises_by_adapters_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = lora(folder.path(), "learn").with(|c| {
        c.optimizer.max_steps = 40;
        c.optimizer.per_device_train_batch_size = 20;
        c.algorithm.num_generations = 8;
        c.model.lora_r = 8;
        c.model.lora_dropout = 0.0;
        c.optimizer.learning_rate = 2e-2;
    });
    let mut watch = watch(None);
    run(&config, &mut watch).unwrap();
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    let (start, end) = (mean(&watch.rewards[..4]), mean(&watch.rewards[36..]));
    assert!(end > start + 0.1, "reward went from {start} to {end}");
}

#[test]
fn adapters_learn_answers() {
    let folder = tempfile::tempdir().unwrap();
    let config = sft(folder.path(), "sft").with(|c| {
        c.model.use_peft = true;
        c.model.lora_r = 8;
        c.model.lora_dropout = 0.05;
        c.model.lora_vision = true;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let outcome = train_sft(&config, &golden::checkpoint("nested"), &mut watch, &stop).unwrap();
    let losses: Vec<f64> = metrics_lines(&config.run.output_dir)
        .iter()
        .map(|line| line["loss"].as_f64().unwrap())
        .collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.6 * first, "{first} to {last}");
    let adapter = SavedAdapter::read(&outcome.checkpoint.unwrap()).unwrap();
    assert!(adapter.modules().any(|module| module.contains("visual.blocks")));
    let env = fs::read_to_string(Path::new(&config.run.output_dir).join("env.json")).unwrap();
    let env: serde_json::Value = serde_json::from_str(&env).unwrap();
    let parts = &env["parameters"];
    assert_eq!(parts["vision"]["trained"], 0);
    assert_eq!(parts["adapters"]["trained"], parts["adapters"]["all"]);
    let log = fs::read_to_string(Path::new(&config.run.output_dir).join("log.txt")).unwrap();
    assert!(log.contains("frozen") && log.contains("adapters"), "{log}");
}

#[test]
fn parts_are_frozen_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let before = weights(&golden::checkpoint("nested"));
    let is_merger = |name: &str| name.contains("visual.merger");
    type Stays<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(&str, [bool; 3], Stays<'_>); 3] = [
        ("tower", [true, false, false], &|n| n.contains("visual.") && !is_merger(n)),
        ("merger", [false, true, false], &|n| is_merger(n)),
        ("language", [false, false, true], &|n| !n.contains("visual.")),
    ];
    for (name, [tower, merger, language], stays) in cases {
        let config = grpo(folder.path(), name).with(|c| {
            c.model.freeze_vision_tower = tower;
            c.model.freeze_merger = merger;
            c.model.freeze_language_model = language;
            c.optimizer.max_steps = 2;
            c.optimizer.per_device_train_batch_size = 16;
        });
        let after = weights(&run(&config, &mut watch(None)).unwrap().checkpoint.unwrap());
        for (weight, value) in &before {
            assert_eq!(value.equal(&after[weight]), stays(weight), "{name}: {weight}");
        }
    }
}

#[test]
fn a_run_in_which_nothing_trains_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = grpo(folder.path(), "nothing").with(|c| {
        c.model.freeze_vision_modules = true;
        c.model.freeze_language_model = true;
    });
    let error = run(&config, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("nothing is left to train"), "{error}");
    let config = lora(folder.path(), "both").with(|c| {
        c.model.lora_vision = true;
        c.model.freeze_vision_modules = true;
    });
    let error = run(&config, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("lora_vision"), "{error}");
}
