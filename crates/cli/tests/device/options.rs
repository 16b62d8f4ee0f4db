//! Every option of training that computes on the device, one run each, against the same run on the CPU.

use std::collections::HashMap;

use serde_json::Value;
use tempfile::TempDir;

use crate::runs::{line, line_of, metrics};
use crate::{device, done};

/// Computed alike on both: the same loss and gradient norm to 4 digits.
const SAME: &[&str] = &[
    "",
    "--share_prompt false",
    "--gradient_checkpointing true",
    "--max_tokens_per_microbatch 64",
    "--gradient_accumulation_steps 2",
    "--max_concurrent_completions 3",
    "--cuda_graphs true",
    "--offload_optimizer true",
    "--offload_reference true",
    "--offload_optimizer true --gradient_accumulation_steps 2",
    "--optim adamw_8bit",
    "--optim adamw_8bit --offload_optimizer true",
    "--freeze_vision_modules true --freeze_merger true",
    "--freeze_vision_tower true",
    "--freeze_language_model true",
    "--freeze_vision_modules true --freeze_merger true --feature_cache_bytes 0",
    "--freeze_vision_modules true --freeze_merger true --feature_cache_dir FEATURES",
    "--use_peft true",
    "--use_peft true --lora_r 4 --lora_alpha 8 --lora_target_modules q_proj v_proj --gradient_checkpointing true",
    "--use_peft true --cuda_graphs true",
    "--max_grad_norm 0.01 --weight_decay 0.1 --lr_scheduler_type cosine --warmup_steps 1",
];

/// Of `grpo` alone: what takes other ways through a step.
const SAME_GRPO: &[&str] = &[
    "--beta 0",
    "--loss_type dapo --epsilon_high 0.28",
    "--loss_type gmpo",
    "--num_iterations 2",
    "--steps_per_generation 2",
    "--advantage_estimator reinforce_plus_plus --kl_in_reward true",
    "--scale_rewards none --kl_estimator k1",
    "--kl_estimator k2",
    "--top_entropy_quantile 0.5",
    "--sampler_correction sequence_mask",
    "--dynamic_sample true --max_resample_times 2",
    "--sync_ref_model true --ref_model_sync_steps 1 --ref_model_mixup_alpha 0.5",
    "--temperature 0.8 --top_k 50 --top_p 0.9 --min_p 0.01 --repetition_penalty 1.1 --min_completion_length 3",
];

/// Other formulas in the same places: `train` holds the loss and the gradients of each to TRL's on this device.
const SAME_FORMULAS: &[&str] = &[
    "--loss_type bnpo",
    "--loss_type dr_grpo",
    "--loss_type cispo",
    "--loss_type sapo",
    "--loss_type luspo --importance_sampling_level sequence",
    "--loss_type vespo",
    "--importance_sampling_level sequence --delta 4",
    "--advantage_estimator rloo",
    "--scale_rewards batch",
    "--use_bias_correction_kl true",
    "--entropy_coef 0.01",
    "--mask_truncated_completions true",
    "--sampler_correction token_truncate",
    "--off_policy_mask_threshold 0.5",
];

/// Of `grpo` alone among [`SAME`].
const GRPO_ALONE: [&str; 4] =
    ["cuda_graphs", "share_prompt", "offload_reference", "max_concurrent"];

/// Of the optimizer, which is the same for `grpo` and `sft`.
const OF_OPTIMIZER: [&str; 3] = ["offload_optimizer", "adamw_8bit", "max_grad_norm"];

/// Of families beside the first: what their own parts take part in.
const SAME_OF_OTHERS: &[&str] = &[
    "",
    "--gradient_checkpointing true",
    "--share_prompt false",
    "--cuda_graphs true",
    "--freeze_vision_modules true --feature_cache_dir FEATURES",
    "--use_peft true --lora_vision true",
];

fn compare(method: &str, options: &[&str]) {
    compare_of("nested", method, options);
}

fn compare_of(model: &str, method: &str, options: &[&str]) {
    let dir = TempDir::new().unwrap();
    let mut of_cpu: HashMap<String, Vec<Value>> = HashMap::new();
    for (number, more) in options.iter().enumerate() {
        let features = dir.path().join(format!("features-{number}"));
        let more = more.replace("FEATURES", &features.display().to_string());
        let run = |place: &str, device: &str, more: &str| {
            let name = format!("{method}-{number}-{place}");
            let more = format!("{more} --max_steps 2");
            done(&line_of(model, method, dir.path(), &name, device, &more));
            metrics(&dir.path().join(name))
        };
        let found = run("device", &device(), &more);
        assert_eq!(found.len(), 2);
        // Graphs are of the device; the CPU decodes as it does.
        let on_cpu = more.replace("--cuda_graphs true", "").trim().to_owned();
        let expected = of_cpu.entry(on_cpu).or_insert_with_key(|on_cpu| run("cpu", "cpu", on_cpu));
        assert_eq!(expected.len(), 2);
        for (found, expected) in found.iter().zip(expected.iter()) {
            same(found, expected, &format!("{model} {method} {more}"));
        }
    }
}

fn same(found: &Value, expected: &Value, what: &str) {
    for key in ["loss", "grad_norm", "entropy", "kl", "reward", "completion_length"] {
        let (Some(a), Some(b)) = (found[key].as_f64(), expected[key].as_f64()) else {
            assert_eq!(found[key], expected[key], "{what}: {key}");
            continue;
        };
        // A loss is a difference of larger numbers.
        let tolerance = 1e-4 * b.abs() + 1e-5;
        assert!((a - b).abs() <= tolerance, "{what}: {key} {a}, on the CPU {b}");
    }
}

#[test]
fn other_families_train_as_on_the_cpu() {
    for model in &testing::nested_checkpoints()[1..] {
        compare_of(model, "grpo", SAME_OF_OTHERS);
        compare_of(model, "sft", &["", "--gradient_checkpointing true"]);
    }
}

fn sft_options(of_optimizer: bool) -> Vec<&'static str> {
    let has = |more: &str, names: &[&str]| names.iter().any(|name| more.contains(name));
    let options = SAME.iter().copied().filter(|more| !has(more, &GRPO_ALONE));
    options.filter(|more| has(more, &OF_OPTIMIZER) == of_optimizer).collect()
}

#[test]
fn sft_trains_as_on_the_cpu() {
    compare("sft", &sft_options(false));
}

#[test]
fn grpo_trains_as_on_the_cpu() {
    compare("grpo", SAME);
}

#[test]
fn every_algorithm_trains_as_on_the_cpu() {
    compare("grpo", SAME_GRPO);
}

/// In bf16 the device takes kernels of its own: runs end, and stay near the CPU's.
#[test]
fn bf16_trains() {
    let dir = TempDir::new().unwrap();
    for (number, more) in [
        "",
        "--cuda_graphs true",
        "--gradient_checkpointing true --offload_optimizer true",
        "--use_peft true --lora_dropout 0.1",
        "--freeze_vision_modules true --freeze_merger true --offload_reference true",
        "--optim adamw_8bit",
    ]
    .iter()
    .enumerate()
    {
        for method in ["sft", "grpo"] {
            if method == "sft" && (more.contains("cuda_graphs") || more.contains("reference")) {
                continue;
            }
            let more = format!("{more} --bf16 true --max_steps 2");
            let run = |place: &str, device: &str| {
                let name = format!("{method}-{number}-{place}");
                let more = if device == "cpu" {
                    more.replace("--cuda_graphs true", "")
                } else {
                    more.clone()
                };
                done(&line(method, dir.path(), &name, device, &more));
                metrics(&dir.path().join(name))
            };
            let found = run("device", &device());
            assert_eq!(found.len(), 2);
            if method == "sft" {
                let expected = run("cpu", "cpu");
                for (found, expected) in found.iter().zip(&expected) {
                    let loss = |row: &Value| row["loss"].as_f64().unwrap();
                    let (a, b) = (loss(found), loss(expected));
                    assert!((a - b).abs() < 0.02 * b.abs(), "{more}: loss {a}, on the CPU {b}");
                }
            }
            for row in &found {
                assert!(row["grad_norm"].as_f64().is_some_and(f64::is_finite), "{more}: {row}");
            }
        }
    }
}

mod long {
    use super::*;

    #[test]
    #[ignore = "`make test-long` runs it"]
    fn every_formula_trains_as_on_the_cpu() {
        compare("grpo", SAME_FORMULAS);
    }

    #[test]
    #[ignore = "`make test-long` runs it"]
    fn sft_by_every_optimizer_trains_as_on_the_cpu() {
        compare("sft", &sft_options(true));
    }
}
