//! Folders that contradict themselves: what is taken is what transformers takes, and what is not is said.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use base::console::Log;
use models::qwen2_5_vl::Config;
use models::{
    AdapterSource, LoadOptions, LoraOptions, SavedAdapter, Targets, TrainedParts, load_model,
    load_with_adapter, merge_adapter, save_adapter, save_weights,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use torch::{read_tensors, write_tensors};

use crate::support::{
    all_tensors, assert_names, checkpoint, copy, edit_config, edit_weights, load, max_difference,
    refusal, sample_logits, weight_files,
};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const HEAD: &str = "lm_head.weight";

/// What is said of `folder` while `work` runs.
fn said_of<R>(folder: &Path, work: impl FnOnce() -> R) -> (R, String) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    let log = Log::open(&path, File::create(&path).unwrap());
    let result = work();
    drop(log);
    let text = fs::read_to_string(&path).unwrap();
    let name = folder.to_str().unwrap();
    // Other tests speak meanwhile, of other folders.
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
    (result, lines.join("\n"))
}

fn list(tensors: BTreeMap<String, Tensor>) -> Vec<(String, Tensor)> {
    tensors.into_iter().collect()
}

/// Two shards of zeros with an index, left over beside the file that counts.
fn leave_shards(folder: &Path) {
    let zeros: Vec<_> = list(all_tensors(folder))
        .into_iter()
        .map(|(name, tensor)| (name, tensor.zeros_like()))
        .collect();
    let (first, second) = zeros.split_at(zeros.len() / 2);
    let mut map = BTreeMap::new();
    for (file, part) in SHARDS.iter().zip([first, second]) {
        write_tensors(&folder.join(file), part).unwrap();
        map.extend(part.iter().map(|(name, _)| (name, *file)));
    }
    let index = json!({"weight_map": map}).to_string();
    fs::write(folder.join(INDEX), index).unwrap();
}

#[test]
fn one_file_goes_before_shards_and_those_are_named() {
    let expected = sample_logits(load(&checkpoint("nested")).as_ref());
    let folder = copy("nested");
    leave_shards(folder.path());
    let (model, said) = said_of(folder.path(), || load(folder.path()));
    assert!(sample_logits(model.as_ref()).equal(&expected));
    assert_names(&said, &["warning: ", WHOLE, INDEX, SHARDS[0], SHARDS[1]]);
    let (_, again) = said_of(folder.path(), || load(folder.path()));
    assert_eq!(again, "", "said once");

    let target = tempfile::tempdir().unwrap();
    save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
    let [saved] = &weight_files(target.path())[..] else {
        panic!("one form alone");
    };
    assert!(saved.ends_with(WHOLE));
    assert!(!target.path().join(INDEX).exists());
}

#[test]
fn weights_that_are_not_read_are_named() {
    for (checkpoint, stale) in [
        ("nested", "model-00001-of-00002.safetensors"),
        ("nested", "adapter_model.safetensors"),
        ("nested", "model.fp16.safetensors.index.json"),
        ("flat", "model-00003-of-00003.safetensors"),
        ("flat", "consolidated.safetensors"),
    ] {
        let folder = copy(checkpoint);
        fs::write(folder.path().join(stale), "not looked into").unwrap();
        fs::write(folder.path().join("pytorch_model.bin"), "harmless").unwrap();
        let (_, said) = said_of(folder.path(), || load(folder.path()));
        assert_names(&said, &["warning: ", &format!("not read: `{stale}`")]);
        assert!(!said.contains("pytorch_model.bin"), "{said}");
    }
    let folder = copy("flat");
    assert_eq!(said_of(folder.path(), || load(folder.path())).1, "");
}

#[test]
fn weights_of_another_format_alone_are_no_weights() {
    let folder = copy("nested");
    let file = folder.path().join(WHOLE);
    fs::rename(&file, folder.path().join("pytorch_model.bin")).unwrap();
    let parts = [file.to_str().unwrap(), "no such file", "not read: pytorch_model.bin", "\nhint: "];
    assert_names(&refusal(folder.path()), &parts);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_told_of_and_saved_right() {
    let folder = copy("flat");
    let index = folder.path().join(INDEX);
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    let map = value["weight_map"].as_object_mut().unwrap();
    let name = "model.norm.weight";
    let right = map[name].as_str().unwrap().to_owned();
    let wrong = SHARDS.into_iter().find(|shard| *shard != right).unwrap();
    map.insert(name.into(), wrong.into());
    map.insert("nowhere.weight".into(), wrong.into());
    map.remove("model.layers.0.input_layernorm.weight").unwrap();
    fs::write(&index, value.to_string()).unwrap();
    let (model, said) = said_of(folder.path(), || load(folder.path()));
    assert_names(
        &said,
        &[
            &format!("{name} is listed in `{wrong}`, lies in `{right}`"),
            "nowhere.weight is listed in",
            "model.layers.0.input_layernorm.weight is not listed",
        ],
    );
    let target = tempfile::tempdir().unwrap();
    save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
    let (_, said) = said_of(target.path(), || load(target.path()));
    assert_eq!(said, "");
    let saved = fs::read_to_string(target.path().join(INDEX)).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["weight_map"][name], json!(right));
}

/// The flat checkpoint, whose head is tied, with a stored head.
fn with_head(head: impl Fn(&Tensor) -> Tensor) -> tempfile::TempDir {
    let folder = copy("flat");
    edit_weights(folder.path(), |tensors| {
        if let Some(embedding) = tensors.get("model.embed_tokens.weight") {
            let head = head(embedding);
            tensors.insert(HEAD.into(), head);
        }
    });
    folder
}

#[test]
fn a_stored_head_that_differs_counts() {
    let tied = sample_logits(load(&checkpoint("flat")).as_ref());
    // One number is enough.
    for head in [
        |embedding: &Tensor| embedding.ones_like(),
        |embedding: &Tensor| {
            let head = embedding.copy();
            let _ = head.view(-1).get(-1).g_add_scalar_(1.0);
            head
        },
    ] {
        let folder = with_head(head);
        let (model, said) = said_of(folder.path(), || load(folder.path()));
        assert_names(&said, &["warning: ", "tie_word_embeddings", HEAD, "not tied"]);
        assert!(model.parameters().get(HEAD).is_some());
        assert!(max_difference(&sample_logits(model.as_ref()), &tied) > 1e-3);
        let config = models::family_of(folder.path()).unwrap().config(folder.path()).unwrap();
        assert!(!config.is_tied());

        let target = tempfile::tempdir().unwrap();
        save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
        let [before, after] = [folder.path(), target.path()].map(all_tensors);
        assert!(after[HEAD].equal(&before[HEAD]));
        let (again, said) = said_of(target.path(), || load(target.path()));
        assert_eq!(said, "", "the checkpoint says what it holds");
        assert!(sample_logits(again.as_ref()).equal(&sample_logits(model.as_ref())));
    }
}

#[test]
fn a_stored_head_that_is_the_embedding_is_tied_in_silence() {
    let same: [fn(&Tensor) -> Tensor; 3] = [
        |embedding| embedding.copy(),
        |embedding| embedding.to_kind(Kind::BFloat16),
        |embedding| embedding.to_kind(Kind::Double),
    ];
    for head in same {
        let folder = with_head(head);
        let (model, said) = said_of(folder.path(), || load(folder.path()));
        assert!(!said.contains("tie_word_embeddings"), "{said}");
        assert!(model.parameters().get(HEAD).is_none());
    }
}

#[test]
fn where_the_head_is_tied_may_stand_in_two_places() {
    for (top, inner, tied) in [
        (json!(true), Value::Null, true),
        (Value::Null, json!(true), true),
        (json!(false), json!(true), true),
        (json!(true), json!(false), true),
        (json!(false), json!(false), false),
        (Value::Null, Value::Null, false),
    ] {
        let folder = copy("nested");
        edit_config(folder.path(), |config| {
            config["tie_word_embeddings"] = top.clone();
            config["text_config"]["tie_word_embeddings"] = inner.clone();
        });
        let (config, said) = said_of(folder.path(), || Config::read(folder.path()).unwrap());
        assert_eq!(config.tie_word_embeddings, tied, "{top} {inner}");
        let differ = top.is_boolean() && inner.is_boolean() && top != inner;
        assert_eq!(said.contains("`tie_word_embeddings`"), differ, "{said}");
        if tied {
            // The stored head differs; what is saved says so in both places.
            let target = tempfile::tempdir().unwrap();
            let model = load(folder.path());
            save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
            let config = Config::read(target.path()).unwrap();
            assert!(!config.tie_word_embeddings, "{top} {inner}");
        }
    }
    let folder = copy("nested");
    edit_config(folder.path(), |c| c["tie_word_embeddings"] = json!("yes"));
    let message = "`tie_word_embeddings`: expected true or false, got \"yes\"";
    assert_names(&refusal(folder.path()), &[message]);
}

#[test]
fn a_merged_model_keeps_a_head_of_its_own() {
    let base = with_head(Tensor::ones_like);
    let options = LoadOptions {
        kind: Kind::Float,
        device: torch::device_of_tests(),
        trained: TrainedParts::all(true),
    };
    let lora = LoraOptions {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        targets: Targets::new(&["all-linear".to_owned()], false).unwrap(),
        seed: 1,
    };
    let model = load_with_adapter(base.path(), options, AdapterSource::New(&lora)).unwrap();
    let [adapter, merged] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    save_adapter(model.as_ref(), base.path(), adapter.path()).unwrap();
    // A folder with an adapter and a whole model: the adapter is read.
    fs::write(adapter.path().join(WHOLE), "not looked into").unwrap();
    let (over, said) = said_of(adapter.path(), || load_model(adapter.path(), options).unwrap());
    assert_names(&said, &["warning: ", "not read: `model.safetensors`"]);
    let saved = SavedAdapter::read(adapter.path()).unwrap();
    let weights = adapter.path().join("adapter_model.safetensors");
    let mut twice = list(read_tensors(&weights).unwrap());
    let (name, tensor) = &twice[0];
    let other = (name.replace("lora_A.", "lora_A.default."), tensor.copy());
    twice.push(other);
    write_tensors(&weights, &twice).unwrap();
    let error = SavedAdapter::read(adapter.path()).unwrap_err().to_string();
    assert_names(&error, &["the same half of a layer under two names"]);
    merge_adapter(base.path(), &saved, merged.path()).unwrap();
    let (again, said) = said_of(merged.path(), || load(merged.path()));
    assert_eq!(said, "");
    assert!(again.parameters().get(HEAD).is_some());
    let difference = max_difference(&sample_logits(again.as_ref()), &sample_logits(over.as_ref()));
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn keys_with_two_values_are_named() {
    for (edit, parts) in [
        (
            (|c: &mut Value| c["rms_norm_eps"] = json!(0.5)) as fn(&mut Value),
            vec!["`rms_norm_eps` is 0.5, in `text_config` 1e-6"],
        ),
        (
            |c| c["num_hidden_layers"] = json!(7),
            vec!["`num_hidden_layers` is 7, in `text_config` 2"],
        ),
        (
            |c| {
                c["text_config"]["rope_scaling"] =
                    json!({"mrope_section": [2, 1, 1], "type": "mrope"})
            },
            vec!["`mrope_section` of `rope_scaling` and of `rope_parameters` differ"],
        ),
    ] {
        let folder = copy("nested");
        edit_config(folder.path(), edit);
        let (_, said) = said_of(folder.path(), || load(folder.path()));
        assert_names(&said, &parts);
        assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    }
    let folder = copy("nested");
    edit_config(folder.path(), |c| {
        c["text_config"]["rope_scaling"] = json!({"mrope_section": [2, 1, 1], "type": "mrope"});
        c["hidden_size"] = json!(32.0);
    });
    let config = Config::read(folder.path()).unwrap();
    assert_eq!(config.text.mrope_section(), [2, 1, 1], "as in transformers");
}
