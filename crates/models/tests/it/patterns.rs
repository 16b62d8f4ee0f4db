//! Adapters whose layers have ranks and alphas of their own, by PEFT's rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use models::{
    AdapterSource, LoadOptions, LoraOptions, SavedAdapter, Targets, TrainedParts,
    VisionLanguageModel, load_with_adapter, merge_adapter, save_adapter,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tempfile::TempDir;
use torch::{read_tensors, write_tensors};

use crate::support::{checkpoint, load, max_difference, sample_logits};

fn load_options() -> LoadOptions {
    let device = torch::device_of_tests();
    LoadOptions { kind: Kind::Float, device, trained: TrainedParts::NONE }
}

/// An adapter over queries and values of rank 4 and alpha 8 that changes something.
fn adapter() -> TempDir {
    let options = LoraOptions {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: Targets::new(&["q_proj".to_owned(), "v_proj".to_owned()], false).unwrap(),
        seed: 1,
    };
    let base = checkpoint("nested");
    let model = load_with_adapter(&base, load_options(), AdapterSource::New(&options)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_adapter(model.as_ref(), &base, folder.path()).unwrap();
    edit_matrices(folder.path(), |name, matrix| {
        let halves = Tensor::arange(matrix.numel() as i64, (Kind::Float, torch::device_of_tests()));
        match name.contains("lora_B") {
            true => (halves.view(matrix.size().as_slice()).sin() * 0.25).contiguous(),
            false => matrix,
        }
    });
    folder
}

fn edit_matrices(folder: &Path, change: impl Fn(&str, Tensor) -> Tensor) {
    let path = folder.join("adapter_model.safetensors");
    let matrices: BTreeMap<String, Tensor> = read_tensors(&path).unwrap();
    let matrices = matrices.into_iter().map(|(name, matrix)| {
        let matrix = change(&name, matrix);
        (name, matrix)
    });
    write_tensors(&path, &matrices.collect::<Vec<_>>()).unwrap();
}

fn set(folder: &Path, keys: Value) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    fs::write(path, config.to_string()).unwrap();
}

fn model(folder: &Path) -> Box<dyn VisionLanguageModel> {
    let saved = SavedAdapter::read(folder).unwrap();
    load_with_adapter(&checkpoint("nested"), load_options(), AdapterSource::Saved(&saved)).unwrap()
}

fn logits(folder: &Path) -> Tensor {
    sample_logits(model(folder).as_ref())
}

#[test]
fn patterns_that_say_what_all_layers_have_change_nothing() {
    let folder = adapter();
    let expected = logits(folder.path());
    assert!(max_difference(&expected, &sample_logits(load(&checkpoint("nested")).as_ref())) > 1e-3);
    for keys in [
        json!({"rank_pattern": {"q_proj": 4}}),
        json!({"alpha_pattern": {"q_proj": 8, "self_attn.v_proj": 8.0}}),
        json!({"rank_pattern": {".*": 4}, "alpha_pattern": {}}),
        json!({"rank_pattern": {"lm_head": 64}, "alpha_pattern": null}),
    ] {
        set(folder.path(), json!({"rank_pattern": {}, "alpha_pattern": {}}));
        set(folder.path(), keys.clone());
        assert!(logits(folder.path()).equal(&expected), "{keys}");
    }
}

#[test]
fn a_layer_of_its_own_rank_and_alpha_computes_by_them() {
    // Queries with twice the alpha; values of rank 2, whose update is divided by 2 instead of 4.
    let own = adapter();
    edit_matrices(own.path(), |name, matrix| match name.contains("v_proj") {
        true if name.contains("lora_A") => matrix.narrow(0, 0, 2).contiguous(),
        true => matrix.narrow(1, 0, 2).contiguous(),
        false => matrix,
    });
    set(
        own.path(),
        json!({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.\\d.self_attn.q_proj": 16}}),
    );
    let plain = adapter();
    edit_matrices(plain.path(), |name, matrix| match name {
        _ if name.contains("lora_A") => matrix,
        _ if name.contains("q_proj") => matrix * 2.0,
        _ => {
            let doubled = matrix * 2.0;
            let _ = doubled.narrow(1, 2, 2).zero_();
            doubled
        }
    });
    let expected = logits(plain.path());
    assert!(max_difference(&logits(own.path()), &expected) < 1e-5);
    // Saved, it says so; merged, it is the same.
    let again = tempfile::tempdir().unwrap();
    save_adapter(model(own.path()).as_ref(), &checkpoint("nested"), again.path()).unwrap();
    assert!(logits(again.path()).equal(&logits(own.path())));
    let merged = tempfile::tempdir().unwrap();
    let saved = SavedAdapter::read(own.path()).unwrap();
    merge_adapter(&checkpoint("nested"), &saved, merged.path()).unwrap();
    assert!(max_difference(&sample_logits(load(merged.path()).as_ref()), &expected) < 1e-4);
}

#[test]
fn patterns_that_mean_nothing_are_refused() {
    let folder = adapter();
    for (keys, cause) in [
        (json!({"rank_pattern": {"v_proj": 2}}), "expected [2, "),
        (
            json!({"rank_pattern": {"v_proj": 0}}),
            "`rank_pattern.v_proj`: expected a number above 0, got 0",
        ),
        (json!({"rank_pattern": {"v_proj": 1.5}}), "`rank_pattern`: expected ranks"),
        (json!({"alpha_pattern": {"(": 1}}), "`alpha_pattern`: `(`"),
        (json!({"alpha_pattern": [1]}), "`alpha_pattern`: expected an object"),
    ] {
        set(folder.path(), json!({"rank_pattern": {}, "alpha_pattern": {}}));
        set(folder.path(), keys);
        let error = SavedAdapter::read(folder.path()).and_then(|saved| {
            load_with_adapter(&checkpoint("nested"), load_options(), AdapterSource::Saved(&saved))
                .map(drop)
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}
