//! `config.json`: what is refused names file, key, what was got and what is expected.

use std::fs;

use models::qwen2_5_vl::Config;
use serde_json::{Value, json};

use crate::support::{assert_names, checkpoint, copy, edit_config, load, refusal, sample_logits};

/// Sets the value at a path like `text_config/hidden_size`; null removes the key.
fn set(config: &mut Value, path: &str, value: Value) {
    let (parents, key) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = config;
    for parent in parents.split('/').filter(|p| !p.is_empty()) {
        at = &mut at[parent];
    }
    let object = at.as_object_mut().unwrap();
    if value.is_null() {
        object.remove(key).unwrap();
    } else {
        object.insert(key.into(), value);
    }
}

fn refusal_with(checkpoint: &str, path: &str, value: Value) -> String {
    let folder = copy(checkpoint);
    edit_config(folder.path(), |config| set(config, path, value));
    let message = refusal(folder.path());
    let file = folder.path().join("config.json");
    assert_names(&message, &[file.to_str().unwrap()]);
    message
}

#[test]
fn missing_keys_are_named() {
    for (checkpoint, path, parts) in [
        ("nested", "model_type", &["`model_type`"][..]),
        ("nested", "text_config/intermediate_size", &["`text_config`", "`intermediate_size`"]),
        ("flat", "intermediate_size", &["`intermediate_size`"]),
        ("flat", "rms_norm_eps", &["`rms_norm_eps`"]),
        ("nested", "vision_config", &["`vision_config`"]),
        ("nested", "image_token_id", &["`image_token_id`"]),
    ] {
        assert_names(&refusal_with(checkpoint, path, Value::Null), parts);
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    for (checkpoint, path, value, parts) in [
        (
            "nested",
            "model_type",
            json!("qwen9_vl"),
            &["`model_type`", "`qwen9_vl`", "qwen2_5_vl"][..],
        ),
        (
            "flat",
            "quantization_config",
            json!({"quant_method": "awq", "bits": 4}),
            &["`quantization_config`: weights quantised by `awq`", "hint: "],
        ),
        (
            "nested",
            "text_config/quantization_config",
            json!({"load_in_4bit": true, "quant_method": "bitsandbytes"}),
            &["`quantization_config`", "`bitsandbytes`"],
        ),
        (
            "nested",
            "text_config/layer_types",
            json!(["full_attention", "sliding_attention"]),
            &["`layer_types`: layer 1: expected `full_attention`, got `sliding_attention`"],
        ),
        (
            "nested",
            "text_config/layer_types",
            json!(["full_attention"]),
            &["`layer_types`: expected one for each of 2 layers, got 1"],
        ),
        ("flat", "hidden_act", json!("gelu"), &["`hidden_act`: expected `silu`, got `gelu`"]),
        (
            "flat",
            "vision_config/hidden_act",
            json!("quick_gelu"),
            &["`vision_config.hidden_act`: expected `silu`, got `quick_gelu`"],
        ),
        (
            "nested",
            "text_config/attention_dropout",
            json!(0.1),
            &["`attention_dropout`: expected 0, got 0.1"],
        ),
        (
            "nested",
            "text_config/rope_parameters/mrope_section",
            json!([1, 1, 3]),
            &["sum of `mrope_section`: expected 4, got 5"],
        ),
        (
            "nested",
            "text_config/rope_parameters/mrope_section",
            json!([2, 2]),
            &["length of `mrope_section`: expected 3, got 2"],
        ),
        (
            "flat",
            "rope_scaling/mrope_section",
            json!([-2, 2, 4]),
            &["`mrope_section`", "[-2, 2, 4]"],
        ),
        (
            "nested",
            "text_config/rope_parameters/rope_type",
            json!("yarn"),
            &["`rope_type`: expected `mrope` or `default`, got `yarn`"],
        ),
        (
            "flat",
            "rope_scaling/type",
            json!("linear"),
            &["`type`: expected `mrope` or `default`, got `linear`"],
        ),
        (
            "nested",
            "vision_config/rope_parameters/rope_type",
            json!("yarn"),
            &["`vision_config.rope_type`: expected `axial`", "`yarn`"],
        ),
        (
            "nested",
            "vision_config/out_hidden_size",
            json!(64),
            &["`out_hidden_size`: expected 32, got 64"],
        ),
        ("nested", "vision_config/window_size", json!(100), &["`window_size`", "got 16"]),
        (
            "nested",
            "image_token_id",
            json!(558),
            &["`image_token_id`: expected below `vocab_size` 558, got 558"],
        ),
        ("nested", "image_token_id", json!(-1), &["`image_token_id`"]),
        ("flat", "vision_config/in_chans", json!(4), &["`in_chans`: expected 3, got 4"]),
        ("flat", "hidden_size", json!("32"), &["invalid type: string \"32\""]),
    ] {
        assert_names(&refusal_with(checkpoint, path, value), parts);
    }
}

/// Zeros once divided, and sizes without end overflowed.
#[test]
fn sizes_that_cannot_be_are_refused_before_any_arithmetic() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
        "vocab_size",
        "vision_config/depth",
        "vision_config/hidden_size",
        "vision_config/intermediate_size",
        "vision_config/num_heads",
        "vision_config/patch_size",
        "vision_config/spatial_merge_size",
        "vision_config/temporal_patch_size",
        "vision_config/window_size",
    ] {
        for value in [json!(0), json!(1u64 << 40)] {
            let message = refusal_with("flat", key, value);
            assert_names(&message, &[": expected 1 to "]);
        }
    }
    assert_names(
        &refusal_with("flat", "hidden_size", json!(-32)),
        &["`hidden_size`: expected 1 to 16777216, got -32"],
    );
    assert_names(&refusal_with("flat", "rope_theta", json!(0.0)), &["`rope_theta`"]);
}

#[test]
fn broken_files_are_named() {
    let folder = copy("nested");
    let path = folder.path().join("config.json");
    for text in ["", "{\"model_type\": ", "[]", "\u{0}"] {
        fs::write(&path, text).unwrap();
        assert_names(&refusal(folder.path()), &[path.to_str().unwrap()]);
    }
    fs::remove_file(&path).unwrap();
    assert_names(&refusal(folder.path()), &[path.to_str().unwrap(), "No such file"]);
}

/// Spellings that other versions of transformers write for the same model.
#[test]
fn old_and_new_spellings_are_the_same_model() {
    let expected = sample_logits(load(&checkpoint("flat")).as_ref());
    for edits in [
        vec![("rope_scaling/type", json!("default")), ("rope_scaling/rope_type", json!("default"))],
        vec![("rope_scaling/rope_type", json!("mrope"))],
        vec![("vision_config/in_channels", json!(3))],
        vec![("vision_config/in_chans", Value::Null)],
        vec![(
            "vision_config/rope_parameters",
            json!({"rope_theta": 10000.0, "rope_type": "axial"}),
        )],
        vec![("text_config", json!({"model_type": "qwen2_5_vl_text"}))],
    ] {
        let folder = copy("flat");
        edit_config(folder.path(), |config| {
            for (path, value) in edits {
                set(config, path, value);
            }
        });
        assert!(sample_logits(load(folder.path()).as_ref()).equal(&expected));
    }
}

#[test]
fn the_bases_of_the_rotations_are_read() {
    for (checkpoint_name, path) in [
        ("nested", "text_config/rope_parameters/rope_theta"),
        ("nested", "vision_config/rope_parameters/rope_theta"),
        ("flat", "rope_theta"),
    ] {
        let expected = sample_logits(load(&checkpoint(checkpoint_name)).as_ref());
        let folder = copy(checkpoint_name);
        edit_config(folder.path(), |config| set(config, path, json!(7.0)));
        assert!(!sample_logits(load(folder.path()).as_ref()).equal(&expected), "{path}");
    }
}

#[test]
fn windows_are_refused_where_a_layer_has_one() {
    let window = |edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let folder = copy("nested");
        edit_config(folder.path(), |config| edit(config["text_config"].as_object_mut().unwrap()));
        Config::read(folder.path()).map(drop).map_err(|error| error.to_string())
    };
    // As transformers has it: no window, none of these layers, all layers named.
    for keys in [
        json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
        json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2}),
        json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 28}),
        json!({"use_sliding_window": false, "sliding_window": 9, "max_window_layers": 0}),
        json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 0, "layer_types": ["full_attention", "full_attention"]}),
    ] {
        let read = window(&|text| text.extend(keys.as_object().unwrap().clone()));
        assert_eq!(read, Ok(()), "{keys}");
    }
    for first in [0, 1] {
        let keys = json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": first, "layer_types": null});
        let refused = window(&|text| text.extend(keys.as_object().unwrap().clone())).unwrap_err();
        assert_names(
            &refused,
            &["`use_sliding_window`: expected false, or `max_window_layers` of 2"],
        );
    }
    let absent = window(&|text| {
        text.remove("layer_types");
        text.remove("sliding_window");
        text.insert("use_sliding_window".into(), true.into());
        text.insert("max_window_layers".into(), 1.into());
    });
    assert!(absent.is_err(), "the window is 4096 by default");
}
