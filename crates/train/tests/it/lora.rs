//! Adapters equal PEFT's: log-probabilities, gradients, merged weights, files read and written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use models::{
    AdapterSource, LoadOptions, LoraOptions, SavedAdapter, Targets, TrainedParts,
    VisionLanguageModel, load_model, load_with_adapter, merge_adapter, save_adapter,
};
use serde_json::Value;
use tch::{Kind, Tensor};
use torch::read_tensors;
use train::batch::{MicroBatch, Pass};

use crate::golden;
use crate::parity::Case;

const CASES: [&str; 8] = [
    "language",
    "flat",
    "vision",
    "queries",
    "qwen2_vl/language",
    "qwen2_vl/hub",
    "qwen3_vl/language",
    "qwen3_vl/hub",
];

fn trainable() -> LoadOptions {
    let device = torch::device_of_tests();
    LoadOptions { kind: Kind::Float, device, trained: TrainedParts::ALL }
}

struct Adapted {
    folder: PathBuf,
    value: Value,
    case: Case,
}

fn adapted(name: &str) -> Adapted {
    let family = name.split_once('/').map(|(family, _)| family);
    let folder = match name.split_once('/') {
        Some((family, name)) => golden::folder(format!("families/{family}/lora/{name}")),
        None => golden::folder(format!("lora/{name}")),
    };
    let value: Value = testing::read_json(folder.join("case.json"));
    let case = value["case"].as_str().unwrap();
    let case = family.map_or(case.to_owned(), |family| format!("{family}/{case}"));
    Adapted { folder, case: Case::new(&case), value }
}

fn logprobs(model: &dyn VisionLanguageModel, case: &Case) -> Vec<f64> {
    let (prompt, completion) = (case.prompt(), case.completion());
    let batch = MicroBatch::pack(model, &[(&prompt, vec![&completion])]).unwrap();
    Vec::<f64>::try_from(batch.scores(model, 1.0).logprobs.to_kind(Kind::Double)).unwrap()
}

fn assert_near(got: &[f64], expected: &Value, what: &str) {
    let expected = golden::floats(expected);
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(&expected) {
        assert!((got - expected).abs() < 1e-4, "{what}: {got}, expected {expected}");
    }
}

#[test]
fn peft_folders_compute_as_in_peft() {
    for name in CASES {
        let Adapted { folder, value, case } = adapted(name);
        let model = load_model(&folder, trainable()).unwrap();
        assert_near(&logprobs(model.as_ref(), &case), &value["logprobs"], name);
        // Off, it is the model under it.
        let lora = model.parameters().lora.as_ref().unwrap();
        let off = lora.switched_off(|| logprobs(model.as_ref(), &case));
        assert_near(&off, &case.value["logprobs"], name);
    }
}

#[test]
fn gradients_reach_adapters_alone_and_are_those_of_peft() {
    for name in CASES {
        for recompute in [false, true] {
            let Adapted { folder, case, .. } = adapted(name);
            let model = load_model(&folder, trainable()).unwrap();
            let (prompt, completion) = (case.prompt(), case.completion());
            let batch = MicroBatch::pack(model.as_ref(), &[(&prompt, vec![&completion])]).unwrap();
            batch.backward(model.as_ref(), Pass::new(1.0, recompute), |scores| {
                (-scores.logprobs.mean(Kind::Float), ())
            });
            let mut expected = read_tensors(&folder.join("grads.safetensors")).unwrap();
            for parameter in &model.parameters().list {
                let got = parameter.value.grad();
                if !parameter.is_adapter {
                    assert!(!got.defined(), "{name}: {}", parameter.name);
                    continue;
                }
                let key = format!("base_model.model.{}", parameter.name);
                let Some(expected) = expected.remove(&key) else {
                    panic!("{name}: PEFT has no gradient {key}");
                };
                let scale = f64::try_from(expected.norm()).unwrap();
                let expected = expected.to_device(got.device());
                let difference = f64::try_from((got - expected).norm()).unwrap() / scale;
                assert!(difference < 1e-4, "{name} {key}: {difference}");
            }
            assert!(expected.is_empty(), "{name}: {:?}", expected.keys());
        }
    }
}

#[test]
fn a_merged_model_computes_as_peft_merges() {
    for name in CASES {
        let Adapted { folder, value, case } = adapted(name);
        let adapter = SavedAdapter::read(&folder).unwrap();
        let base = models::base_of(&adapter).unwrap();
        let merged = tempfile::tempdir().unwrap();
        merge_adapter(&base, &adapter, merged.path()).unwrap();
        let model = load_model(merged.path(), trainable()).unwrap();
        assert!(model.parameters().lora.is_none());
        let got = logprobs(model.as_ref(), &case);
        assert_near(&got, &value["logprobs_merged"], name);
    }
}

#[test]
fn a_saved_adapter_is_the_one_that_was_read() {
    for name in CASES {
        let Adapted { folder, case, .. } = adapted(name);
        let model = load_model(&folder, trainable()).unwrap();
        let base = golden::checkpoint(&case.checkpoint);
        let saved = tempfile::tempdir().unwrap();
        save_adapter(model.as_ref(), &base, saved.path()).unwrap();
        let read = |folder: &std::path::Path| -> BTreeMap<String, Tensor> {
            read_tensors(&folder.join("adapter_model.safetensors")).unwrap()
        };
        let (before, after) = (read(&folder), read(saved.path()));
        assert!(before.keys().eq(after.keys()));
        assert!(before.iter().all(|(name, tensor)| tensor.equal(&after[name])));
        let again = SavedAdapter::read(saved.path()).unwrap();
        let first = SavedAdapter::read(&folder).unwrap();
        assert_eq!((again.rank, again.alpha), (first.rank, first.alpha));
    }
}

fn options(dropout: f64, targets: &[&str]) -> LoraOptions {
    let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
    LoraOptions {
        rank: 4,
        alpha: 8.0,
        dropout,
        targets: Targets::new(&targets, false).unwrap(),
        seed: 3,
    }
}

#[test]
fn a_new_adapter_changes_nothing_and_covers_the_language_model() {
    let options = options(0.1, &[]);
    let new = || {
        load_with_adapter(&golden::checkpoint("nested"), trainable(), AdapterSource::New(&options))
            .unwrap()
    };
    let model = new();
    let case = Case::new("one_image");
    assert_near(&logprobs(model.as_ref(), &case), &case.value["logprobs"], "new");
    let lora = model.parameters().lora.as_ref().unwrap();
    assert_eq!(lora.modules.len(), 2 * 7, "two layers of seven");
    let adapters = |model: &dyn VisionLanguageModel| -> Vec<(String, Vec<f32>)> {
        let list = &model.parameters().list;
        list.iter()
            .filter(|p| p.is_adapter)
            .map(|p| {
                (p.name.clone(), Vec::try_from(p.master_weight().unwrap().flatten(0, -1)).unwrap())
            })
            .collect()
    };
    let (first, second) = (adapters(model.as_ref()), adapters(new().as_ref()));
    assert_eq!(first, second, "the seed says where it starts");
    let all_a: Vec<f32> = first
        .iter()
        .filter(|(name, _)| name.contains("q_proj.lora_A"))
        .flat_map(|(_, values)| values.clone())
        .collect();
    let bound = 1.0 / (32f32).sqrt();
    assert!(all_a.iter().all(|x| x.abs() <= bound));
    assert!(all_a.iter().any(|x| x.abs() > 0.9 * bound));
}

#[test]
fn dropout_is_keyed_and_recomputation_draws_it_again() {
    let gradients = |key: u64, recompute: bool| -> Vec<f32> {
        let options = options(0.5, &["q_proj", "down_proj"]);
        let source = AdapterSource::New(&options);
        let model = load_with_adapter(&golden::checkpoint("nested"), trainable(), source).unwrap();
        let case = Case::new("one_image");
        let (prompt, completion) = (case.prompt(), case.completion());
        let batch = MicroBatch::pack(model.as_ref(), &[(&prompt, vec![&completion])]).unwrap();
        let lora = model.parameters().lora.as_ref().unwrap();
        lora.with_dropout(&[key], || {
            batch.backward(model.as_ref(), Pass::new(1.0, recompute), |scores| {
                (-scores.logprobs.mean(Kind::Float), ())
            });
        });
        let adapters = model.parameters().list.iter().filter(|p| p.is_adapter);
        adapters
            .flat_map(|p| Vec::<f32>::try_from(p.value.grad().flatten(0, -1)).unwrap())
            .collect()
    };
    let plain = gradients(1, false);
    assert_eq!(plain, gradients(1, false));
    assert_ne!(plain, gradients(2, false));
    let recomputed = gradients(1, true);
    let worst = plain.iter().zip(&recomputed).map(|(a, b)| (a - b).abs());
    assert!(worst.fold(0.0, f32::max) < 1e-6);
}

#[test]
fn an_adapter_of_another_model_is_refused_by_name_and_shape() {
    let folder = golden::folder("lora/vision");
    let adapter = SavedAdapter::read(&folder).unwrap();
    let other = tempfile::tempdir().unwrap();
    // The same model with a wider queries' weight.
    for entry in std::fs::read_dir(golden::checkpoint("nested")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, other.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = other.path().join("model.safetensors");
    let mut tensors = read_tensors(&weights).unwrap();
    let name = "model.language_model.layers.0.self_attn.q_proj.weight";
    tensors.insert(name.into(), Tensor::zeros([64, 32], (Kind::Float, tch::Device::Cpu)));
    tensors.remove("model.visual.merger.mlp.0.weight");
    torch::write_tensors(&weights, &tensors.into_iter().collect::<Vec<_>>()).unwrap();
    let into = tempfile::tempdir().unwrap();
    let message = merge_adapter(other.path(), &adapter, into.path()).unwrap_err().to_string();
    assert!(message.contains(name) && message.contains("[64, 32]"), "{message}");
    assert!(
        message.contains("model.visual.merger.mlp.0: the model has no such layer"),
        "{message}"
    );
    assert_eq!(std::fs::read_dir(into.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn a_target_that_means_no_layer_is_refused() {
    let options = options(0.0, &["q_proj", "w_proj"]);
    let source = AdapterSource::New(&options);
    let refusal =
        load_with_adapter(&golden::checkpoint("nested"), trainable(), source).err().unwrap();
    assert!(refusal.to_string().contains("`w_proj`"), "{refusal}");
}
