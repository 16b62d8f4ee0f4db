//! Settings that `config.json` may have in two places: which of them counts, and where they differ.
//!
//! Source: huggingface/transformers v5.17, `configuration_qwen2_5_vl.py`; its other families do the same.

use serde_json::Value;

/// Keys of the text model, at the top level in the hub's flat form.
const TEXT_KEYS: [&str; 17] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_dropout",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
];
/// The rotary settings that are used.
const ROPE_KEYS: [&str; 2] = ["mrope_section", "rope_theta"];
const TIED: &str = "tie_word_embeddings";

/// Whether the head is the embedding: true where one of the two places has it so, as in transformers.
pub(crate) fn tied(config: &Value) -> Result<bool, String> {
    let of = |object: Option<&Value>| match object.and_then(|object| object.get(TIED)) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(tied)) => Ok(*tied),
        Some(other) => Err(format!("`{TIED}`: expected true or false, got {other}")),
    };
    Ok(of(Some(config))? | of(config.get("text_config"))?)
}

/// Refuses a file of weights that is not the one read here.
pub(crate) fn check_weights_key(config: &Value) -> Result<(), String> {
    match config.get("transformers_weights") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(name)) if name == "model.safetensors" => Ok(()),
        Some(other) => Err(format!(
            "`transformers_weights`: expected `model.safetensors` or none, got {other}\nhint: give the weights that name and remove the key"
        )),
    }
}

/// Refuses weights that are packed into fewer bits.
pub(crate) fn check_quantization(config: &Value) -> Result<(), String> {
    let places = [Some(config), config.get("text_config")];
    let keys = ["quantization_config", "compression_config"];
    let found = places
        .into_iter()
        .flatten()
        .find_map(|object| keys.iter().find_map(|key| Some((*key, given(object, key)?))));
    let Some((key, settings)) = found else {
        return Ok(());
    };
    let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
    Err(format!(
        "`{key}`: weights quantised by `{method}` are not read\nhint: take the model that was quantised, in float32, bfloat16 or float16"
    ))
}

/// Keys that have two values, with the one that counts.
pub(crate) fn contradictions(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let nested = config.get("text_config").filter(|text| text.get("hidden_size").is_some());
    if let Some(text) = nested {
        let different = TEXT_KEYS.iter().filter_map(|key| {
            let (top, inner) = (given(config, key)?, given(text, key)?);
            (!same(top, inner)).then(|| {
                format!(
                    "`{key}` is {top}, in `text_config` {inner}: that of `text_config` counts, as in transformers"
                )
            })
        });
        found.extend(different);
    }
    if let (Some(top), Some(inner)) =
        (given(config, TIED), config.get("text_config").and_then(|text| given(text, TIED)))
        && top != inner
    {
        found.push(format!(
            "`{TIED}` is {top}, in `text_config` {inner}: true counts, as in transformers"
        ));
    }
    found.extend(rope_contradiction(nested.unwrap_or(config)));
    found
}

fn rope_contradiction(text: &Value) -> Option<String> {
    let rope = |key| given(text, key).and_then(Value::as_object).filter(|rope| !rope.is_empty());
    let (older, newer) = (rope("rope_scaling")?, rope("rope_parameters")?);
    let differs = ROPE_KEYS.iter().find(|key| {
        let of = |rope: &serde_json::Map<String, Value>| rope.get(**key).cloned();
        let (older, newer) = (of(older), of(newer));
        // The base may be beside `rope_scaling`.
        let older = older.or_else(|| given(text, key).cloned());
        match (older, newer) {
            (Some(older), Some(newer)) => !same(&older, &newer),
            (older, newer) => older.is_some() != newer.is_some(),
        }
    })?;
    Some(format!(
        "`{differs}` of `rope_scaling` and of `rope_parameters` differ: `rope_scaling` counts, as in transformers"
    ))
}

fn given<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

/// Equal, `1` and `1.0` too; rotary settings by what is computed with.
fn same(a: &Value, b: &Value) -> bool {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        return ROPE_KEYS.iter().all(|key| match (a.get(*key), b.get(*key)) {
            (Some(a), Some(b)) => same(a, b),
            _ => true,
        });
    }
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
