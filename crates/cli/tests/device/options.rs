//! Every option of training that computes on the device, one run each, against the same run on the CPU.

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

/// Of `grpo` alone.
const SAME_GRPO: &[&str] = &[
    "--beta 0",
    "--loss_type bnpo",
    "--loss_type dr_grpo",
    "--loss_type dapo --epsilon_high 0.28",
    "--loss_type cispo",
    "--loss_type sapo",
    "--loss_type luspo --importance_sampling_level sequence",
    "--loss_type vespo",
    "--loss_type gmpo",
    "--importance_sampling_level sequence --delta 4",
    "--num_iterations 2",
    "--steps_per_generation 2",
    "--advantage_estimator rloo",
    "--advantage_estimator reinforce_plus_plus --kl_in_reward true",
    "--scale_rewards batch",
    "--scale_rewards none --kl_estimator k1",
    "--kl_estimator k2",
    "--use_bias_correction_kl true",
    "--entropy_coef 0.01",
    "--top_entropy_quantile 0.5",
    "--mask_truncated_completions true",
    "--sampler_correction token_truncate",
    "--sampler_correction sequence_mask",
    "--off_policy_mask_threshold 0.5",
    "--dynamic_sample true --max_resample_times 2",
    "--sync_ref_model true --ref_model_sync_steps 1 --ref_model_mixup_alpha 0.5",
    "--temperature 0.8 --top_k 50 --top_p 0.9 --min_p 0.01 --repetition_penalty 1.1 --min_completion_length 3",
];

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
    for (number, more) in options.iter().enumerate() {
        let features = dir.path().join(format!("features-{number}"));
        let more = more.replace("FEATURES", &features.display().to_string());
        let run = |place: &str, device: &str| {
            let name = format!("{method}-{number}-{place}");
            // Graphs are of the device; the CPU decodes as it does.
            let more = match device {
                "cpu" => more.replace("--cuda_graphs true", ""),
                _ => more.clone(),
            };
            let more = format!("{more} --max_steps 2");
            done(&line_of(model, method, dir.path(), &name, device, &more));
            metrics(&dir.path().join(name))
        };
        let (found, expected) = (run("device", &device()), run("cpu", "cpu"));
        assert_eq!(found.len(), 2);
        for (found, expected) in found.iter().zip(&expected) {
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

#[test]
fn sft_trains_as_on_the_cpu() {
    let options: Vec<&str> = SAME
        .iter()
        .copied()
        .filter(|more| {
            !["cuda_graphs", "share_prompt", "offload_reference", "max_concurrent"]
                .iter()
                .any(|name| more.contains(name))
        })
        .collect();
    compare("sft", &options);
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
