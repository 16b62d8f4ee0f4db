//! Saving gives back the folder that was loaded, with other numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use models::save_weights;
use tch::{Kind, Tensor, no_grad};

use crate::support::{
    all_checkpoints, all_tensors, assert_names, checkpoint, copy, edit_weights, load, load_as,
    sample_logits, weight_files,
};

/// Names and bytes of all files.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn what_was_not_trained_comes_back_byte_for_byte() {
    for name in all_checkpoints() {
        // Once through our writer, so that tensors lie in the order it gives them.
        let source = copy(name);
        edit_weights(source.path(), |_| {});
        let target = tempfile::tempdir().unwrap();
        let model = load(source.path());
        save_weights(model.as_ref(), source.path(), target.path()).unwrap();
        assert_eq!(contents(target.path()), contents(source.path()), "{name}");
    }
}

#[test]
fn files_names_types_and_shapes_stay() {
    for name in all_checkpoints() {
        let source = copy(name);
        fs::write(source.path().join("notes.txt"), "kept").unwrap();
        for other in ["pytorch_model.bin", "consolidated.safetensors", "a.gguf"] {
            fs::write(source.path().join(other), "left out").unwrap();
        }
        fs::create_dir(source.path().join("original")).unwrap();
        if name.ends_with("nested") {
            // The reader of a single file does not look at others; shards are named by the index.
            assert!(!source.path().join("model.safetensors.index.json").exists());
        }
        let target = tempfile::tempdir().unwrap();
        let model = load(source.path());
        no_grad(|| {
            for parameter in &model.parameters().list {
                let _ = parameter.value.shallow_clone().g_add_scalar_(0.01);
            }
        });
        save_weights(model.as_ref(), source.path(), target.path()).unwrap();

        let (before, after) = (contents(&checkpoint(name)), contents(target.path()));
        let mut expected: Vec<&str> = before.keys().map(String::as_str).collect();
        expected.push("notes.txt");
        expected.sort_unstable();
        assert_eq!(after.keys().collect::<Vec<_>>(), expected);
        for (file, bytes) in &before {
            assert_eq!(after[file] == *bytes, !file.ends_with(".safetensors"), "{file}");
        }
        same_headers(&checkpoint(name), target.path());
        // Stored bf16 rounds; what is loaded again is the rounded weight.
        let stored = all_tensors(target.path());
        for parameter in &model.parameters().list {
            let got = &stored[&parameter.name];
            let expected = parameter.value.detach().view(got.size().as_slice());
            assert!(got.equal(&expected.to_kind(got.kind())));
        }
        let again = sample_logits(load(target.path()).as_ref());
        let exact = all_tensors(&checkpoint(name)).values().all(|t| t.kind() == Kind::Float);
        if exact {
            assert!(again.equal(&sample_logits(model.as_ref())));
        }
    }
}

/// Same tensors in the same files, same types and shapes, and the metadata that transformers asks for.
fn same_headers(before: &Path, after: &Path) {
    for file in weight_files(before) {
        let name = file.file_name().unwrap();
        let (old, new) = (header(&file), header(&after.join(name)));
        assert_eq!(new["__metadata__"], serde_json::json!({"format": "pt"}));
        let describe = |header: &serde_json::Value| -> Vec<(String, String, String)> {
            let tensors = header.as_object().unwrap().iter();
            let mut list: Vec<_> = tensors
                .filter(|(name, _)| *name != "__metadata__")
                .map(|(name, info)| {
                    (name.clone(), info["dtype"].to_string(), info["shape"].to_string())
                })
                .collect();
            list.sort();
            list
        };
        assert_eq!(describe(&new), describe(&old));
    }
}

fn header(file: &Path) -> serde_json::Value {
    let bytes = fs::read(file).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + len]).unwrap()
}

#[test]
fn masters_are_what_is_saved() {
    let source = checkpoint("nested");
    let target = tempfile::tempdir().unwrap();
    let model = load_as(&source, Kind::BFloat16, true).unwrap();
    save_weights(model.as_ref(), &source, target.path()).unwrap();
    let (before, after) = (all_tensors(&source), all_tensors(target.path()));
    assert!(before.iter().all(|(name, t)| after[name].equal(t)));
}

#[test]
fn a_flattened_kernel_is_saved_flat() {
    let source = copy("nested");
    let kernel = "model.visual.patch_embed.proj.weight";
    edit_weights(source.path(), |tensors| {
        let flat = tensors[kernel].view([24, -1]);
        tensors.insert(kernel.into(), flat);
    });
    let target = tempfile::tempdir().unwrap();
    let model = load(source.path());
    save_weights(model.as_ref(), source.path(), target.path()).unwrap();
    assert_eq!(all_tensors(target.path())[kernel].size(), [24, 1176]);
}

#[test]
fn a_tied_head_stored_again_follows_the_embedding() {
    let source = copy("flat");
    edit_weights(source.path(), |tensors| {
        if tensors.contains_key("model.embed_tokens.weight") {
            let head = tensors["model.embed_tokens.weight"].to_kind(Kind::BFloat16);
            tensors.insert("lm_head.weight".into(), head);
            let buffer = Tensor::from_slice(&[0.5f32, 0.25]);
            tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), buffer);
        }
    });
    let target = tempfile::tempdir().unwrap();
    let model = load(source.path());
    assert!(model.parameters().get("lm_head.weight").is_none());
    no_grad(|| {
        let embedding = model.parameters().get("model.embed_tokens.weight").unwrap();
        let _ = embedding.value.shallow_clone().g_add_scalar_(0.01);
    });
    save_weights(model.as_ref(), source.path(), target.path()).unwrap();
    let saved = all_tensors(target.path());
    let embedding = saved["model.embed_tokens.weight"].to_kind(Kind::BFloat16);
    assert!(saved["lm_head.weight"].equal(&embedding));
    let buffer = &saved["model.layers.0.self_attn.rotary_emb.inv_freq"];
    assert!(buffer.equal(&torch::on_test_device(&[0.5f32, 0.25])));
}

#[test]
fn weights_of_another_source_are_not_lost_in_silence() {
    let target = tempfile::tempdir().unwrap();
    let model = load(&checkpoint("nested"));
    let source = copy("nested");
    edit_weights(source.path(), |tensors| {
        drop(tensors.remove("lm_head.weight").unwrap());
    });
    let error = save_weights(model.as_ref(), source.path(), target.path());
    assert_names(
        &error.unwrap_err().to_string(),
        &["weight lm_head.weight: trained, but not in these files"],
    );
}
