//! A frozen tower runs once for each image of a run, and nothing else changes.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use base::Prompt;
use config::GrpoConfig;
use models::{
    AdapterSource, FeatureCache, FeatureCacheOptions, LoadOptions, LoraOptions, Targets,
    TrainedParts, VisionLanguageModel, load_model, load_with_adapter,
};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use train::batch::{MicroBatch, Pass, PromptWithCompletions};
use train::train_grpo_with_rewards;

use crate::golden;
use crate::runs::{bytes, grpo, metrics, metrics_lines, share, watch};

fn frozen_tower() -> LoadOptions {
    LoadOptions {
        kind: Kind::Float,
        device: torch::device_of_tests(),
        trained: TrainedParts {
            vision: false,
            merger: false,
            language: true,
            masters_on_host: false,
        },
    }
}

fn cache() -> Rc<FeatureCache> {
    let options = FeatureCacheOptions { max_bytes: 1 << 20, folder: None };
    Rc::new(FeatureCache::new(&options).unwrap())
}

/// Two images of different size, one of them in two prompts, and a prompt without any.
fn prompts(checkpoint: &str) -> Vec<Prompt> {
    let processor = golden::processor(checkpoint);
    let image = |name: &str| {
        let path = golden::folder("parity/images").join(name);
        Arc::new(processor.load_image(&path).unwrap())
    };
    let (scene, small) = (image("scene.png"), image("small.png"));
    assert_ne!(scene.layout, small.layout);
    let prompt = |text: &str, images: &[_]| processor.prompt(text, images).unwrap();
    vec![
        prompt("Where is the circle?", std::slice::from_ref(&scene)),
        prompt("How many?", &[]),
        prompt("Compare them.", &[small, scene]),
    ]
}

const ANSWERS: [&[&[u32]]; 3] =
    [&[&[5, 6, 7, 8, 538], &[9, 538], &[30]], &[&[11, 12, 13]], &[&[7, 7, 8, 538], &[40, 41]]];

/// Loss, and the gradients of all weights that have one, by name.
fn gradients(
    model: &dyn VisionLanguageModel,
    checkpoint: &str,
    recompute: bool,
) -> (f64, Vec<(String, Tensor)>) {
    let prompts = prompts(checkpoint);
    let items: Vec<PromptWithCompletions<'_>> =
        prompts.iter().zip(ANSWERS).map(|(p, a)| (p, a.to_vec())).collect();
    let batch = MicroBatch::pack(model, &items).unwrap();
    let loss = batch.backward(model, Pass::new(0.9, recompute), |scores| {
        let loss = -(&scores.logprobs * &scores.logprobs).mean(Kind::Float);
        let number = f64::try_from(loss.detach()).unwrap();
        (loss, number)
    });
    let mut gradients = Vec::new();
    for parameter in &model.parameters().list {
        let gradient = torch::take_grad(&parameter.value).unwrap();
        gradients.extend(gradient.map(|g| (parameter.name.clone(), g)));
    }
    (loss, gradients)
}

/// Largest relative norm of a difference.
fn worst(got: &[(String, Tensor)], expected: &[(String, Tensor)]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |t: &Tensor| f64::try_from(t.norm()).unwrap();
    let pairs = got.iter().zip(expected);
    pairs
        .map(|((name, a), (other, b))| {
            assert_eq!(name, other);
            norm(&(a - b)) / norm(b).max(1e-4)
        })
        .fold(0.0, f64::max)
}

fn models(checkpoint: &str) -> [Box<dyn VisionLanguageModel>; 2] {
    let lora = LoraOptions {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: Targets::new(&[], false).unwrap(),
        seed: 3,
    };
    let folder = golden::checkpoint(checkpoint);
    let all = LoadOptions { trained: TrainedParts::ALL, ..frozen_tower() };
    [
        load_model(&folder, frozen_tower()).unwrap(),
        load_with_adapter(&folder, all, AdapterSource::New(&lora)).unwrap(),
    ]
}

#[test]
fn kept_features_change_neither_loss_nor_gradients() {
    for (checkpoint, mut model) in
        testing::nested_checkpoints().into_iter().flat_map(|c| models(c).map(|m| (c, m)))
    {
        let is_adapted = model.parameters().lora.is_some();
        let (loss, plain) = gradients(model.as_ref(), checkpoint, false);
        assert!(!plain.is_empty());
        assert!(plain.iter().all(|(name, _)| !name.contains("visual")));
        assert!(plain.iter().all(|(name, _)| name.contains("lora") == is_adapted));
        let cache = cache();
        model.keep_features(cache.clone()).unwrap();
        let cold = gradients(model.as_ref(), checkpoint, false);
        assert_eq!((cache.stats().hits, cache.stats().misses), (0, 2));
        assert!((cold.0 - loss).abs() < 1e-6 * loss.abs());
        let difference = worst(&cold.1, &plain);
        assert!(difference < 3e-6, "{checkpoint}: {difference}");
        let warm = gradients(model.as_ref(), checkpoint, false);
        assert_eq!((warm.0, worst(&warm.1, &cold.1)), (cold.0, 0.0));
        // With layers computed again, beside the same without a cache.
        let recomputed = gradients(model.as_ref(), checkpoint, true);
        assert!(worst(&recomputed.1, &plain) < 1e-5);
        assert_eq!((cache.stats().hits, cache.stats().misses), (4, 2));
    }
}

fn frozen(folder: &Path, out: &str) -> GrpoConfig {
    grpo(folder, out).with(|c| c.model.freeze_vision_modules = true)
}

/// Metrics of each step without what depends on the clock, and those of the cache.
fn run(config: &GrpoConfig, stop_after: Option<u64>) -> (Vec<Value>, Vec<Map<String, Value>>) {
    let mut watch = watch(stop_after);
    let stop = watch.stop.clone();
    let checkpoint = golden::checkpoint("nested");
    let rewards = share(char::is_ascii_lowercase);
    train_grpo_with_rewards(config, &checkpoint, rewards, &mut watch, &stop).unwrap();
    let of_cache = metrics_lines(&config.run.output_dir)
        .into_iter()
        .map(|line| {
            let Value::Object(mut all) = line else { panic!("{line}") };
            all.retain(|key, _| key.starts_with("feature_cache/"));
            all
        })
        .collect();
    (metrics(&config.run.output_dir), of_cache)
}

fn counts(of_cache: &Map<String, Value>) -> [u64; 3] {
    ["hits", "loads", "misses"].map(|n| of_cache[&format!("feature_cache/{n}")].as_u64().unwrap())
}

/// Images of the rows.
const NUM_IMAGES: u64 = 3;

#[test]
fn a_frozen_tower_runs_once_for_each_image() {
    let folder = tempfile::tempdir().unwrap();
    let adapted = |out: &str| grpo(folder.path(), out).with(|c| c.model.use_peft = true);
    for (on, off) in [
        (frozen(folder.path(), "on"), frozen(folder.path(), "off")),
        (adapted("adapted-on"), adapted("adapted-off")),
    ] {
        let off = off.with(|c| c.machine.feature_cache_bytes = 0);
        let (expected, none) = run(&off, None);
        assert!(none.iter().all(Map::is_empty));
        let (got, of_cache) = run(&on, None);
        assert_eq!(got.len(), 6);
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got["reward"], expected["reward"]);
            for key in ["loss", "grad_norm", "kl", "entropy"] {
                let [a, b] = [got, expected].map(|line| line[key].as_f64().unwrap());
                assert!((a - b).abs() < 1e-5 * b.abs().max(1e-2), "{key}: {a}, {b}");
            }
        }
        let last = of_cache.last().unwrap();
        let [hits, loads, misses] = counts(last);
        assert_eq!((loads, misses), (0, NUM_IMAGES));
        // Sampling, reference and training ask for each image of each step.
        assert_eq!((hits + misses) % 3, 0);
        assert!(hits > 5 * misses, "{hits}");
        assert!(last["feature_cache/saved_secs"].as_f64().unwrap() > 0.0);
        assert!(last["feature_cache/bytes"].as_u64().unwrap() > 0);
    }
}

#[test]
fn features_on_disk_serve_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let with_store = |out: &str| {
        frozen(folder.path(), out)
            .with(|c| c.machine.feature_cache_dir = Some(store.display().to_string()))
    };
    let (first, of_cache) = run(&with_store("first"), None);
    assert_eq!(counts(of_cache.last().unwrap())[1..], [0, NUM_IMAGES]);
    let damaged = fs::read_dir(&store).unwrap().next().unwrap().unwrap();
    fs::write(damaged.path(), "nothing").unwrap();
    let second = with_store("second");
    let (again, of_cache) = run(&second, None);
    assert_eq!(again, first);
    assert_eq!(
        counts(of_cache.last().unwrap())[1..],
        [NUM_IMAGES - 1, 1],
        "the damaged one is computed"
    );
    let log = fs::read_to_string(Path::new(&second.run.output_dir).join("log.txt")).unwrap();
    let name = damaged.file_name();
    assert!(log.contains(name.to_str().unwrap()), "{log}");

    let trained = with_store("trained").with(|c| c.model.freeze_vision_modules = false);
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let rewards = share(char::is_ascii_lowercase);
    let checkpoint = golden::checkpoint("nested");
    let refused = train_grpo_with_rewards(&trained, &checkpoint, rewards, &mut watch, &stop);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("`feature_cache_dir`"), "{refused}");
}

#[test]
fn a_resumed_run_with_kept_features_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let whole = frozen(folder.path(), "whole");
    let (expected, _) = run(&whole, None);
    let parts = frozen(folder.path(), "parts");
    run(&parts, Some(2));
    run(&parts, Some(4));
    let (got, _) = run(&parts, None);
    assert_eq!(got, expected);
    for file in ["model.safetensors", "trainer_state/optimizer.safetensors"] {
        let of = |config: &GrpoConfig| {
            bytes(&Path::new(&config.run.output_dir).join("checkpoint-6"), file)
        };
        assert!(of(&whole) == of(&parts), "{file} differs");
    }
}
