//! Optimizer and reference in host memory, and moments in 8 bits: what they change, which is nothing or little.

use std::fs;
use std::path::Path;

use config::{GrpoConfig, Optim};
use torch::{read_tensors, write_tensors};
use train::{Outcome, train_grpo_with_rewards, train_sft};

use crate::golden;
use crate::runs::{bytes, grpo, metrics, metrics_lines, sft, share, watch};

fn run(config: &GrpoConfig, stop_after: Option<u64>) -> Outcome {
    let mut watch = watch(stop_after);
    let (stop, model) = (watch.stop.clone(), golden::checkpoint("nested"));
    let rewards = share(char::is_ascii_digit);
    train_grpo_with_rewards(config, &model, rewards, &mut watch, &stop).unwrap()
}

/// Two prompts a step, a micro-batch each, so that gradients are summed.
fn short(folder: &Path, out: &str) -> GrpoConfig {
    grpo(folder, out).with(|c| {
        c.optimizer.per_device_train_batch_size = 4;
        c.optimizer.gradient_accumulation_steps = 2;
        c.optimizer.max_steps = 4;
        c.optimizer.weight_decay = 0.1;
    })
}

fn is_same_checkpoint(a: &Outcome, b: &Outcome, weights: &str) {
    let (a, b) = (a.checkpoint.as_ref().unwrap(), b.checkpoint.as_ref().unwrap());
    for file in [weights, "trainer_state/optimizer.safetensors"] {
        assert!(bytes(a, file) == bytes(b, file), "{file} differs");
    }
}

/// Also when the place changes in the middle of a run: checkpoints do not tell it.
#[test]
fn where_weights_wait_changes_nothing() {
    if torch::device_of_tests().is_cuda() {
        println!(
            "skipped: the update in host memory is another kernel than the device's, equal within rounding"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("f32", false, false, Optim::AdamwTorch),
        ("bf16", true, false, Optim::AdamwTorch),
        ("lora", true, true, Optim::AdamwTorch),
        ("8bit", false, false, Optim::Adamw8bit),
    ];
    for (name, bf16, use_peft, optim) in cases {
        let settings = |out: &str, offloaded: bool| {
            short(folder.path(), &format!("{name}-{out}")).with(|c| {
                c.model.bf16 = bf16;
                c.model.use_peft = use_peft;
                c.optimizer.optim = optim;
                c.machine.offload_optimizer = offloaded;
                c.rollout.offload_reference = offloaded;
            })
        };
        let plain = settings("plain", false);
        let offloaded = settings("offloaded", true);
        let expected = run(&plain, None);
        let got = run(&offloaded, None);
        let weights = if use_peft { "adapter_model.safetensors" } else { "model.safetensors" };
        is_same_checkpoint(&expected, &got, weights);
        assert_eq!(metrics(&plain.run.output_dir), metrics(&offloaded.run.output_dir), "{name}");
        let kl = metrics_lines(&offloaded.run.output_dir)[3]["kl"].as_f64().unwrap();
        assert!(kl > 0.0, "{name}: {kl}");

        run(&settings("both", false), Some(1));
        run(&settings("both", true), Some(2));
        let changed = run(&settings("both", false), None);
        is_same_checkpoint(&expected, &changed, weights);
    }
}

/// As checkpoints held them before the bf16 masters.
#[test]
fn whole_f32_weights_of_a_checkpoint_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |out: &str| short(folder.path(), out).with(|c| c.model.bf16 = true);
    let expected = run(&settings("expected"), None);
    let stopped = run(&settings("whole"), Some(2));
    let path = stopped.checkpoint.unwrap().join("trainer_state/optimizer.safetensors");
    let state = read_tensors(&path).unwrap();
    let whole = state.iter().filter_map(|(name, tensor)| {
        let kept = match name.split_once('/')? {
            ("rest", _) => return None,
            ("weight", of) => {
                let residual = &state[&format!("rest/{of}")];
                torch::Bf16Master { value: tensor, residual }.load().unwrap()
            }
            _ => tensor.shallow_clone(),
        };
        Some((name.clone(), kept))
    });
    write_tensors(&path, &whole.collect::<Vec<_>>()).unwrap();
    // Which an older program did not write.
    std::fs::remove_file(path.with_file_name("sums.json")).unwrap();
    let got = run(&settings("whole"), None);
    is_same_checkpoint(&expected, &got, "model.safetensors");
}

#[test]
fn eight_bit_moments_are_kept_in_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        |out: &str| short(folder.path(), out).with(|c| c.optimizer.optim = Optim::AdamwBnb8bit);
    let whole = run(&settings("whole"), None);
    for stop in 1..4 {
        run(&settings("parts"), Some(stop));
    }
    let parts = run(&settings("parts"), None);
    is_same_checkpoint(&whole, &parts, "model.safetensors");
    let state = whole.checkpoint.unwrap().join("trainer_state/optimizer.safetensors");
    let state = read_tensors(&state).unwrap();
    let weights = state.iter().filter(|(name, _)| name.starts_with("weight/"));
    for (name, weight) in weights {
        let name = name.trim_start_matches("weight/");
        let codes = state.get(&format!("exp_avg_sq.codes/{name}"));
        assert_eq!(codes.is_some(), weight.numel() >= 4096, "{name}");
        assert_eq!(state.contains_key(&format!("exp_avg/{name}")), codes.is_none());
        if let Some(codes) = codes {
            assert_eq!(codes.kind(), tch::Kind::Uint8);
            let distinct = codes.unique_consecutive(false, false, None).0;
            assert!(distinct.numel() > 1, "{name}");
        }
    }
    assert!(state.keys().any(|name| name.starts_with("exp_avg.codes/")));
}

/// 200 steps of SFT on the tiny model: the loss falls from above 4 to below 1, windows of ten steps lie within
/// 0.15 of those with f32 moments on the way, where it falls by that in a few steps, and within 0.05 at the end.
#[test]
fn eight_bits_follow_the_curve() {
    let folder = tempfile::tempdir().unwrap();
    let losses = |out: &str, optim: Optim| -> Vec<f64> {
        let config = sft(folder.path(), out).with(|c| {
            c.optimizer.optim = optim;
            c.optimizer.max_steps = 200;
            c.optimizer.learning_rate = 3e-3;
        });
        let mut watch = watch(None);
        let stop = watch.stop.clone();
        train_sft(&config, &golden::checkpoint("nested"), &mut watch, &stop).unwrap();
        let lines = metrics_lines(&config.run.output_dir);
        lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let exact = losses("f32", Optim::AdamwTorch);
    let eight = losses("8bit", Optim::Adamw8bit);
    assert_ne!(exact, eight);
    assert!(exact[0] > 4.0 && exact[199] < 1.0, "{} to {}", exact[0], exact[199]);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    for (window, (exact, eight)) in exact.chunks(10).zip(eight.chunks(10)).enumerate() {
        let (exact, eight) = (mean(exact), mean(eight));
        let most = if window < 15 { 0.15 } else { 0.05 };
        assert!((exact - eight).abs() < most, "{window}: {exact} and {eight}");
    }
}

#[test]
fn a_loss_of_0_is_explained_once() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |beta| {
        grpo(folder.path(), &format!("beta-{beta}")).with(|c| {
            c.algorithm.beta = beta;
            c.optimizer.max_steps = 2;
        })
    };
    for (beta, times) in [(0.0, 1), (0.04, 0)] {
        run(&settings(beta), Some(1));
        run(&settings(beta), None);
        let log = Path::new(&settings(beta).run.output_dir).join("log.txt");
        let log = fs::read_to_string(log).unwrap();
        assert_eq!(log.matches("is 0 by construction").count(), times, "{log}");
    }
    let first = &metrics_lines(&settings(0.0).run.output_dir)[0];
    let (loss, norm) = (first["loss"].as_f64().unwrap(), first["grad_norm"].as_f64().unwrap());
    assert!(loss.abs() < 1e-6 && norm > 1e-3, "{loss} {norm}");
}
