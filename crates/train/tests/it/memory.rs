//! A long run holds no more memory than a short one; what a pass saves is what the plan counts.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base::{ImageLayout, PreparedImage, Prompt};
use models::config::ConfigFile;
use models::{
    AdapterSource, FAMILIES, Family, FamilyConfig, LoadOptions, LoraOptions, Targets, TinySizes,
    TrainedParts, VisionLanguageModel,
};
use serde_json::Value;
use tch::{Device, Kind};
use train::batch::{MicroBatch, Pass};
use train::plan::{Choice, Load, Ranks, Shape, Trained, memory};
use train::train_grpo_with_rewards;

use crate::golden;
use crate::runs::{grpo, metrics_lines, share, watch};

const STEPS: i64 = 500;

/// What is measured here is the CPU's memory.
fn is_elsewhere() -> bool {
    let is_elsewhere = torch::device_of_tests().is_cuda();
    if is_elsewhere {
        println!("skipped: the memory of the CPU");
    }
    is_elsewhere
}

/// Other tests' tensors would be counted, so `test` has a process of its own.
fn alone(test: &str, folder: &Path) {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("VLM_R1_TEST_RUN", folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{errors}");
}

#[test]
fn memory_stays_flat_over_500_steps() {
    if is_elsewhere() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    alone("memory::five_hundred_steps", folder.path());
    let lines = metrics_lines(&folder.path().join("run").display().to_string());
    assert_eq!(lines.len(), STEPS as usize);
    let bytes = |step: usize, key: &str| lines[step - 1][key].as_u64().unwrap();
    let at_start = bytes(50, "live_bytes");
    assert!(at_start > 1 << 20, "{at_start}");
    for step in 50..=STEPS as usize {
        let now = bytes(step, "live_bytes");
        assert!(
            now.abs_diff(at_start) <= 4096,
            "step {step}: {now} bytes live, {at_start} after step 50"
        );
    }
    let peak = |steps: std::ops::RangeInclusive<usize>| {
        steps.map(|step| bytes(step, "peak_live_bytes")).max().unwrap()
    };
    let (early, late) = (peak(10..=100), peak(401..=500));
    assert!(late <= early + early / 10, "peaks {early}, then {late}");
    let resident = |step| bytes(step, "peak_memory_bytes");
    // The system counts pages in batches: its highest number may come out a few lower later.
    let grown = resident(500).saturating_sub(resident(250));
    assert!(grown < 8 << 20, "the process grew by {grown} bytes");
}

#[test]
#[ignore = "run by memory_stays_flat_over_500_steps in a process of its own"]
fn five_hundred_steps() {
    let folder = std::env::var("VLM_R1_TEST_RUN").unwrap();
    let config = grpo(Path::new(&folder), "run").with(|c| {
        c.optimizer.max_steps = STEPS;
        c.algorithm.num_generations = 2;
        c.optimizer.per_device_train_batch_size = 4;
        c.sampling.max_completion_length = 4;
        c.optimizer.learning_rate = 1e-4;
        c.save.save_steps = 0;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let rewards = share(char::is_ascii_lowercase);
    let model = golden::checkpoint("nested");
    let outcome = train_grpo_with_rewards(&config, &model, rewards, &mut watch, &stop).unwrap();
    assert!(outcome.finished);
    let last: &Value = &metrics_lines(&config.run.output_dir)[STEPS as usize - 1];
    assert_eq!(last["step"], STEPS);
}

/// A prompt of 64 text tokens and an image, and four completions of 32.
const LOAD: Load =
    Load { prompts: 1, completions: 4, prompt_tokens: 128, completion_tokens: 32, patches: 256 };

/// A model of the family, large beside the numbers that stand between its layers.
fn config(family: &Family, layers: usize, blocks: usize) -> Box<dyn FamilyConfig> {
    let mut value = (family.tiny_config)(&TinySizes {
        vocab_size: 600,
        width: 128,
        mlp: 352,
        layers,
        heads: 4,
        kv_heads: 2,
        rope_theta: 1e4,
        mrope_section: [4, 6, 6],
        vision_width: 96,
        vision_mlp: 256,
        vision_blocks: blocks,
        vision_heads: 4,
        patch_size: 14,
        merge_size: 2,
        image_size: 224,
    });
    value["image_token_id"] = 548.into();
    (family.read_config)(&ConfigFile::of(Path::new("config.json"), value).unwrap()).unwrap()
}

fn model(config: &dyn FamilyConfig, choice: Choice) -> Box<dyn VisionLanguageModel> {
    let parts = choice.trained != Trained::FrozenVision;
    let options = LoadOptions {
        kind: if choice.bf16 { Kind::BFloat16 } else { Kind::Float },
        device: Device::Cpu,
        trained: TrainedParts { vision: parts, merger: parts, ..TrainedParts::ALL },
    };
    let lora = match choice.trained {
        Trained::Lora { rank, dropout } => Some(LoraOptions {
            rank: rank as i64,
            alpha: 1.0,
            dropout: if dropout { 0.1 } else { 0.0 },
            targets: Targets::new(&[], false).unwrap(),
            seed: 0,
        }),
        Trained::Full | Trained::FrozenVision => None,
    };
    config.blank(options, lora.as_ref().map(AdapterSource::New)).unwrap()
}

/// Bytes live between the forward and the backward pass, less those before.
fn saved_bytes(model: &dyn VisionLanguageModel, recompute: bool) -> f64 {
    let image_tokens = LOAD.patches as usize / 4;
    let mut ids = vec![1; LOAD.prompt_tokens as usize];
    ids[8..8 + image_tokens].fill(model.image_token_id());
    let pixels = vec![0.01; LOAD.patches as usize * model.patch_dim()];
    let image =
        PreparedImage::new(pixels, ImageLayout::merged([1, 16, 16], 2), [224, 224], [224, 224]);
    let prompt = Prompt { ids, images: vec![Arc::new(image)] };
    let completion = vec![1; LOAD.completion_tokens as usize];
    let completions = vec![completion.as_slice(); LOAD.completions as usize];
    let batch = MicroBatch::pack(model, &[(&prompt, completions)]).unwrap();
    assert_eq!(batch.num_tokens as u64, LOAD.tokens());
    let live = || torch::live_bytes(Device::Cpu).unwrap().now as f64;
    let before = live();
    let pass = || {
        batch.backward(model, Pass::new(1.0, recompute), |scores| {
            (scores.logprobs.sum(Kind::Float), live())
        })
    };
    let after = match &model.parameters().lora {
        Some(lora) => lora.with_dropout(&[0], pass),
        None => pass(),
    };
    after - before
}

/// The plan mirrors by hand what the layers save. Where they change, it must.
#[test]
fn what_layers_save_is_what_the_plan_counts() {
    if is_elsewhere() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    alone("memory::layers_beside_the_plan", folder.path());
}

#[test]
#[ignore = "run by what_layers_save_is_what_the_plan_counts in a process of its own"]
fn layers_beside_the_plan() {
    tch::set_num_threads(1);
    FAMILIES.iter().for_each(|family| of_family(family));
}

fn of_family(family: &Family) {
    let lora = |dropout| Trained::Lora { rank: 4, dropout };
    for trained in [Trained::Full, Trained::FrozenVision, lora(false), lora(true)] {
        for (bf16, recompute) in [(false, false), (true, false), (false, true), (true, true)] {
            let choice = Choice {
                trained,
                bf16,
                recompute,
                reference: false,
                accumulates: false,
                feature_cache: 0,
                in_8bit: false,
                offload_optimizer: false,
                offload_reference: false,
                cpu_kernels: true,
                ranks: Ranks::ONE,
            };
            let both = |layers, blocks| {
                let config = config(family, layers, blocks);
                let planned =
                    memory(&Shape::of(&*config).unwrap(), choice, &LOAD, &LOAD).activations;
                (saved_bytes(&*model(&*config, choice), recompute), planned as f64)
            };
            // What other parts save is the same in both, and so not looked at.
            let few = both(2, 2);
            for (what, more) in [("layers", both(6, 2)), ("blocks", both(2, 6))] {
                let (saved, planned) = (more.0 - few.0, more.1 - few.1);
                assert!(
                    (saved - planned).abs() <= 0.05 * planned.max(10_000.0),
                    "{}, {what}, {choice:?}: saved {saved}, planned {planned}",
                    family.model_type
                );
            }
        }
    }
}
