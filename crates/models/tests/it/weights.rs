//! Names, shapes and types of weights: what fits loads, what does not is named.

use std::collections::BTreeSet;

use models::parameters::Builder;
use models::{LoadOptions, Master, TrainedParts, qwen2_5_vl};
use tch::{Kind, Tensor};
use torch::WeightFiles;

use crate::support::{
    all_checkpoints, all_tensors, assert_names, checkpoint, copy, edit_config, edit_weights, load,
    load_as, refusal, sample_logits,
};

#[test]
fn parameters_have_the_names_of_the_checkpoint() {
    for name in all_checkpoints() {
        let folder = checkpoint(name);
        let stored: Vec<String> = all_tensors(&folder).into_keys().collect();
        let model = load(&folder);
        let mut names: Vec<String> =
            model.parameters().list.iter().map(|p| p.name.clone()).collect();
        names.sort();
        assert_eq!(names, stored, "{name}");
        assert_eq!(names.contains(&"lm_head.weight".to_string()), name.ends_with("nested"));
        for parameter in &model.parameters().list {
            assert!(parameter.value.requires_grad(), "{}", parameter.name);
            assert!(!parameter.has_master(), "{}", parameter.name);
        }
    }
}

#[test]
fn all_misfits_are_listed_in_one_error() {
    let folder = copy("nested");
    edit_weights(folder.path(), |tensors| {
        drop(tensors.remove("model.language_model.norm.weight").unwrap());
        drop(tensors.remove("model.visual.merger.mlp.2.bias").unwrap());
        tensors.insert("model.extra".into(), Tensor::from_slice(&[1.0f32]));
        let q = "model.language_model.layers.0.self_attn.q_proj.weight";
        let turned = tensors[q].narrow(0, 0, 7).contiguous();
        tensors.insert(q.into(), turned);
        let bias = "model.visual.blocks.0.attn.qkv.bias";
        let whole = tensors[bias].to_kind(Kind::Int64);
        tensors.insert(bias.into(), whole);
    });
    let message = refusal(folder.path());
    assert_names(
        &message,
        &[
            folder.path().to_str().unwrap(),
            "weight model.language_model.norm.weight: missing",
            "weight model.visual.merger.mlp.2.bias: missing",
            "weight model.extra: unexpected",
            "weight model.language_model.layers.0.self_attn.q_proj.weight: expected [32, 32], got [7, 32]",
            "weight model.visual.blocks.0.attn.qkv.bias: expected a floating type, got int64",
        ],
    );
    assert_eq!(message.lines().count(), 6, "{message}");
}

#[test]
fn a_weight_used_twice_is_named() {
    let folder = checkpoint("nested");
    let files = WeightFiles::open(&folder).unwrap();
    let options = LoadOptions {
        kind: Kind::Float,
        device: torch::device_of_tests(),
        trained: TrainedParts::NONE,
    };
    let mut builder = Builder::new(&qwen2_5_vl::FAMILY, &files, &folder, options, None);
    for _ in 0..2 {
        let _ = builder
            .at("model.language_model", |b| b.at("norm", |b| b.take("weight", &[32])))
            .unwrap();
    }
    let message = builder.finish().unwrap_err().to_string();
    assert_names(&message, &["weight model.language_model.norm.weight: used twice"]);
}

/// Equal numbers of elements once let a weight of another shape in.
#[test]
fn only_the_patch_kernel_may_be_whole_or_flat() {
    let kernel = "model.visual.patch_embed.proj.weight";
    let folder = copy("nested");
    let shape = all_tensors(folder.path())[kernel].size();
    assert_eq!(shape, [24, 3, 2, 14, 14]);
    let expected = sample_logits(load(folder.path()).as_ref());
    let reshape = |name: &'static str, shape: &'static [i64]| {
        edit_weights(folder.path(), move |tensors| {
            let view = tensors[name].view(shape);
            tensors.insert(name.into(), view);
        });
    };
    reshape(kernel, &[24, 1176]);
    assert!(sample_logits(load(folder.path()).as_ref()).equal(&expected));
    for wrong in [&[24, 2, 3, 14, 14][..], &[24, 6, 196], &[24, 1, 1176]] {
        reshape(kernel, wrong);
        let message =
            format!("weight {kernel}: expected [24, 3, 2, 14, 14] or [24, 1176], got {wrong:?}");
        assert_names(&refusal(folder.path()), &[&message]);
    }
    reshape(kernel, &[24, 1176]);
    let gate = "model.language_model.layers.0.mlp.gate_proj.weight";
    reshape(gate, &[48, 4, 8]);
    let message = format!("weight {gate}: expected [48, 32], got [48, 4, 8]");
    assert_names(&refusal(folder.path()), &[&message]);
}

#[test]
fn a_tied_head_stored_again_must_fit() {
    let folder = copy("flat");
    let store = |head: Tensor| {
        edit_weights(folder.path(), move |tensors| {
            if tensors.contains_key("model.embed_tokens.weight") {
                tensors.insert("lm_head.weight".into(), head.shallow_clone());
            }
        });
    };
    store(Tensor::ones([567, 32], (Kind::BFloat16, torch::device_of_tests())));
    let message = "weight lm_head.weight: expected [568, 32], got [567, 32]";
    assert_names(&refusal(folder.path()), &[message]);
}

#[test]
fn an_untied_head_is_a_weight_of_its_own() {
    let folder = copy("flat");
    edit_config(folder.path(), |c| c["tie_word_embeddings"] = false.into());
    assert_names(&refusal(folder.path()), &["weight lm_head.weight: missing\nhint: "]);
}

#[test]
fn narrow_weights_are_computed_with_in_f32() {
    for kind in [Kind::Half, Kind::BFloat16] {
        let folder = copy("nested");
        edit_weights(folder.path(), |tensors| {
            for tensor in tensors.values_mut() {
                *tensor = tensor.to_kind(kind);
            }
        });
        let stored = all_tensors(folder.path());
        let model = load(folder.path());
        for parameter in &model.parameters().list {
            assert_eq!(parameter.value.kind(), Kind::Float);
            assert!(!parameter.has_master());
            let exact = stored[&parameter.name].to_kind(Kind::Float);
            let value = parameter.value.view(exact.size().as_slice());
            assert!(value.equal(&exact), "{}", parameter.name);
        }
    }
}

#[test]
fn bf16_training_keeps_the_exact_weights() {
    let folder = checkpoint("nested");
    let stored = all_tensors(&folder);
    let model = load_as(&folder, Kind::BFloat16, true).unwrap();
    for parameter in &model.parameters().list {
        let exact = &stored[&parameter.name];
        let size = exact.size();
        assert!(matches!(parameter.master, Master::Bf16 { host: None, .. }));
        let master = parameter.master_weight().unwrap();
        assert_eq!(exact.kind(), Kind::Float);
        assert!(master.view(size.as_slice()).equal(exact));
        assert!(!master.requires_grad());
        assert_eq!(parameter.value.kind(), Kind::BFloat16);
        let value = parameter.value.view(size.as_slice());
        assert!(value.equal(&exact.to_kind(Kind::BFloat16)));
    }
    let sampler = load_as(&folder, Kind::BFloat16, false).unwrap();
    let masters: BTreeSet<bool> = sampler
        .parameters()
        .list
        .iter()
        .map(|p| p.has_master() || p.value.requires_grad())
        .collect();
    assert_eq!(masters, BTreeSet::from([false]));
    let exact = sample_logits(load(&folder).as_ref());
    let difference = sample_logits(sampler.as_ref()) - &exact;
    let relative = f64::try_from(difference.norm() / exact.norm()).unwrap();
    // Eight bits of mantissa, a few roundings.
    assert!(relative > 0.0 && relative < 0.03, "{relative}");
}

/// The names of some tensors changed, in either direction.
fn renamed(name: &str, change: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let folder = copy(name);
    let index = folder.path().join("model.safetensors.index.json");
    edit_weights(folder.path(), |tensors| {
        let old: Vec<String> = tensors.keys().cloned().collect();
        for name in old {
            if let Some(new) = change(&name) {
                let tensor = tensors.remove(&name).unwrap();
                tensors.insert(new, tensor);
            }
        }
    });
    // Shards without their index would not be found; that it lists other names is only told.
    assert_eq!(index.exists(), !name.ends_with("nested"));
    folder
}

#[test]
fn each_weight_may_have_either_name() {
    let older = |name: &str| {
        let name = name.strip_prefix("model.")?;
        let text = name.strip_prefix("language_model.").map(|rest| format!("model.{rest}"));
        Some(text.unwrap_or_else(|| name.to_owned()))
    };
    for name in all_checkpoints() {
        let expected = sample_logits(load(&checkpoint(name)).as_ref());
        let is_current =
            all_tensors(&checkpoint(name)).keys().any(|n| n.starts_with("model.visual."));
        type Change = Box<dyn Fn(&str) -> Option<String>>;
        let changes: [Change; 4] = match is_current {
            true => [
                Box::new(move |n| older(n).filter(|_| n.contains("visual"))),
                Box::new(move |n| older(n).filter(|_| n.contains("language_model"))),
                Box::new(move |n| older(n).filter(|_| n.contains("layers.1."))),
                Box::new(move |n| {
                    older(n).filter(|_| n.contains("embed_tokens") || n.contains("patch_embed"))
                }),
            ],
            false => {
                let newer = |n: &str| match n.strip_prefix("model.") {
                    Some(rest) => Some(format!("model.language_model.{rest}")),
                    None => n.starts_with("visual.").then(|| format!("model.{n}")),
                };
                [
                    Box::new(move |n| newer(n).filter(|_| n.contains("visual"))),
                    Box::new(move |n| newer(n).filter(|_| !n.contains("visual"))),
                    Box::new(move |n| newer(n).filter(|_| n.contains("layers.1."))),
                    Box::new(newer),
                ]
            }
        };
        for change in changes {
            let folder = renamed(name, change);
            let stored: Vec<String> = all_tensors(folder.path()).into_keys().collect();
            let model = load(folder.path());
            assert!(sample_logits(model.as_ref()).equal(&expected), "{name}");
            let mut names: Vec<String> =
                model.parameters().list.iter().map(|p| p.name.clone()).collect();
            names.sort();
            assert_eq!(names, stored);
            let target = tempfile::tempdir().unwrap();
            models::save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
            assert_eq!(all_tensors(target.path()).into_keys().collect::<Vec<_>>(), stored);
        }
    }
}

#[test]
fn tensors_without_a_layer_are_passed_over_and_kept() {
    let folder = copy("nested");
    edit_weights(folder.path(), |tensors| {
        for name in [
            "score.weight",
            "visual.rotary_pos_emb.inv_freq",
            "model.visual.spare.bias",
            "v_head.summary.weight",
        ] {
            tensors.insert(name.into(), Tensor::from_slice(&[1.0f32]));
        }
    });
    let expected = sample_logits(load(&checkpoint("nested")).as_ref());
    let model = load(folder.path());
    assert!(sample_logits(model.as_ref()).equal(&expected));
    let target = tempfile::tempdir().unwrap();
    models::save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
    assert!(all_tensors(target.path()).contains_key("score.weight"));
    // One weight under both names is no stray.
    edit_weights(folder.path(), |tensors| {
        let name = "model.language_model.norm.weight";
        let other = tensors[name].shallow_clone() + 1.0;
        tensors.insert("model.norm.weight".into(), other);
    });
    assert_names(&refusal(folder.path()), &["the same weight as", "model.norm.weight"]);
}

#[test]
fn many_missing_weights_are_counted() {
    let folder = copy("nested");
    edit_weights(folder.path(), |tensors| {
        tensors.retain(|name, _| name.contains("embed_tokens"));
        for layer in 0..20 {
            tensors.insert(format!("layers.{layer}.q.qweight"), Tensor::from_slice(&[1.0f32]));
        }
    });
    let message = refusal(folder.path());
    assert_names(
        &message,
        &["weight ", ": missing", "more: missing", ": unexpected", "more: unexpected", "quantised"],
    );
    assert!(message.lines().count() < 25, "{message}");
}
