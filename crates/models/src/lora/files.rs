//! Adapters in PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::model_folder::ADAPTER_CONFIG as CONFIG;
use serde_json::{Map, Value, json};
use tch::Tensor;
use torch::{Written, read_tensors, write_tensors};

use super::patterns::Patterns;
use crate::ModelError;
use crate::checkpoint::{read_json, write_json};
use crate::model::VisionLanguageModel;
use crate::parameters::{Parameter, Parameters};

const WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts before the name of a layer.
const WRAPPER: &str = "base_model.model.";

/// An adapter on disk.
#[derive(Debug)]
pub struct SavedAdapter {
    /// Its folder.
    pub folder: PathBuf,
    /// `base_model_name_or_path`, where the adapter says.
    pub base: Option<String>,
    /// Rank of the update.
    pub rank: i64,
    /// `lora_alpha`, such that the update is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// `lora_dropout`.
    pub dropout: f64,
    /// Ranks and alphas of single layers.
    patterns: Patterns,
    /// `A` and `B` by layer, named as in transformers 5.
    matrices: BTreeMap<String, (Tensor, Tensor)>,
}

impl SavedAdapter {
    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// A missing or broken file, a kind of adapter that is not built, a matrix without its other half.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let config = read_json(&folder.join(CONFIG))?;
        let refuse = |cause: String| ModelError::Config { path: folder.join(CONFIG), cause };
        check_kind(&config).map_err(refuse)?;
        let number = |key: &str| {
            let number = config[key].as_f64().filter(|n| n.is_finite() && *n >= 0.0);
            number.ok_or_else(|| refuse(format!("`{key}`: expected a number, got {}", config[key])))
        };
        let rank = config["r"].as_i64().filter(|rank| *rank > 0);
        let rank =
            rank.ok_or_else(|| refuse(format!("`r`: expected a rank, got {}", config["r"])))?;
        let patterns = Patterns::read(&config, number("lora_alpha")?).map_err(refuse)?;
        Ok(SavedAdapter {
            folder: folder.to_path_buf(),
            base: config["base_model_name_or_path"].as_str().map(str::to_owned),
            rank,
            alpha: patterns.alpha_of(None, rank),
            dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
            patterns,
            matrices: read_matrices(folder)?,
        })
    }

    /// Rank of a layer's update, and its alpha, such that the update is multiplied by `alpha / rank`.
    pub fn rank_and_alpha(&self, module: &str) -> (i64, f64) {
        let rank = self.patterns.rank_of(module).unwrap_or(self.rank);
        (rank, self.patterns.alpha_of(Some(module), rank))
    }

    /// `A` and `B` of a layer.
    pub(super) fn matrices(&self, module: &str) -> Option<(&Tensor, &Tensor)> {
        self.matrices.get(module).map(|(a, b)| (a, b))
    }

    /// Names of the layers that have an adapter.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.matrices.keys().map(String::as_str)
    }
}

/// What would change the meaning of the matrices, and is not built.
fn check_kind(config: &Value) -> Result<(), String> {
    if config["peft_type"] != json!("LORA") {
        let got = &config["peft_type"];
        return Err(format!("`peft_type`: expected \"LORA\", got {got}"));
    }
    let is_plain = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text == "none",
        _ => false,
    };
    for key in [
        "use_dora",
        "bias",
        "lora_bias",
        "fan_in_fan_out",
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "alora_invocation_tokens",
        "use_qalora",
        "use_bdlora",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ] {
        if !is_plain(&config[key]) {
            return Err(format!("`{key}` {} is not built", config[key]));
        }
    }
    // These change the weights under the adapter as well.
    let start = config["init_lora_weights"].as_str().unwrap_or_default();
    if ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|s| start.starts_with(s)) {
        return Err(format!("`init_lora_weights` \"{start}\" is not built"));
    }
    Ok(())
}

fn read_matrices(folder: &Path) -> Result<BTreeMap<String, (Tensor, Tensor)>, ModelError> {
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, tensor) in read_tensors(&folder.join(WEIGHTS))? {
        let Some((module, half)) = layer_and_half(&name) else {
            problems.push(format!("adapter weight {name}: no half of a LoRA layer"));
            continue;
        };
        let other = halves.entry(module).or_default()[half].replace(tensor);
        if other.is_some() {
            problems
                .push(format!("adapter weight {name}: the same half of a layer under two names"));
        }
    }
    let mut matrices = BTreeMap::new();
    for (module, halves) in halves {
        match halves {
            [Some(a), Some(b)] => drop(matrices.insert(module, (a, b))),
            [None, _] => problems.push(format!("adapter {module}: lora_A is missing")),
            [_, None] => problems.push(format!("adapter {module}: lora_B is missing")),
        }
    }
    if problems.is_empty() {
        return Ok(matrices);
    }
    Err(ModelError::Weights { folder: folder.to_path_buf(), problems })
}

/// `base_model.model.<layer>.lora_A.weight`, with or without the adapter's name before `.weight`; the
/// layer in transformers 5's names.
fn layer_and_half(name: &str) -> Option<(String, usize)> {
    let name = name.strip_prefix(WRAPPER).unwrap_or(name);
    let name = name.strip_suffix(".weight")?;
    let name = name.strip_suffix(".default").unwrap_or(name);
    let (module, half) = match name.strip_suffix(".lora_A") {
        Some(module) => (module, 0),
        None => (name.strip_suffix(".lora_B")?, 1),
    };
    Some((crate::names::current_of_any(module), half))
}

/// Writes the adapter of `model`, trained over `base`, into `folder`; it loads in PEFT. Returns the weight file.
///
/// # Errors
/// A model without adapters, or a file that cannot be written.
pub fn save_adapter(
    model: &dyn VisionLanguageModel,
    base: &Path,
    folder: &Path,
) -> Result<Written, ModelError> {
    save_adapter_of(model.parameters(), base, folder, &Parameter::master_weight)
}

/// [`save_adapter`] of the adapters of `parameters`, whose exact values `exact` gives in the order of the list.
///
/// # Errors
/// As [`save_adapter`], and those of `exact`.
pub fn save_adapter_of<E: From<ModelError>>(
    parameters: &Parameters,
    base: &Path,
    folder: &Path,
    exact: &dyn Fn(&Parameter) -> Result<Tensor, E>,
) -> Result<Written, E> {
    let Some(lora) = &parameters.lora else {
        return Err(ModelError::NoAdapter.into());
    };
    let tensors: Vec<(String, Tensor)> = parameters
        .list
        .iter()
        .filter(|p| p.is_adapter)
        .map(|p| Ok((format!("{WRAPPER}{}", p.name), exact(p)?)))
        .collect::<Result<_, E>>()?;
    let written = write_tensors(&folder.join(WEIGHTS), &tensors).map_err(ModelError::from)?;
    let differing = |value: fn(&(i64, f64)) -> Value| -> Map<String, Value> {
        let layers = lora.scales.iter();
        layers.map(|(module, scale)| (module.clone(), value(scale))).collect()
    };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.to_string_lossy(),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": differing(|(rank, _)| json!(rank)),
        "alpha_pattern": differing(|(_, alpha)| json!(alpha)),
        "lora_dropout": lora.dropout,
        "target_modules": lora.modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    write_json(&folder.join(CONFIG), &config)?;
    Ok(written)
}
