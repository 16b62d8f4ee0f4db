//! From a Hugging Face model folder to a model, and back to the same files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tch::{Kind, Tensor};
use torch::{WeightFiles, write_tensors};

use crate::ModelError;
use crate::model::{LoadOptions, VisionLanguageModel};
use crate::qwen2_5_vl;

/// `model_type` of `config.json`.
///
/// # Errors
/// No readable `config.json`, or no such key.
pub fn read_family(folder: &Path) -> Result<String, ModelError> {
    let path = folder.join("config.json");
    let config = read_config(folder)?;
    config
        .get("model_type")
        .and_then(Value::as_str)
        .map(str::to_string)
        .ok_or(ModelError::Config {
            path,
            cause: "no string `model_type`".into(),
        })
}

/// `config.json` as it came.
///
/// # Errors
/// A missing file or broken JSON.
pub fn read_config(folder: &Path) -> Result<Value, ModelError> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).map_err(|source| ModelError::Io {
        path: path.clone(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|e| ModelError::Config {
        path,
        cause: format!("not JSON: {e}"),
    })
}

/// Loads the model of `folder`, whatever its family.
///
/// # Errors
/// An unknown family, a configuration that does not parse, weights that do not fit it.
pub fn load_model(
    folder: &Path,
    options: LoadOptions,
) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
    match read_family(folder)?.as_str() {
        "qwen2_5_vl" => Ok(Box::new(qwen2_5_vl::Model::load(folder, options)?)),
        got => Err(ModelError::Family {
            path: folder.join("config.json"),
            got: got.into(),
            known: "qwen2_5_vl",
        }),
    }
}

/// Writes the weights of `model` into `target` under the names, files and types of `source`, the
/// folder it was loaded from, and copies every other file of `source` as it is.
///
/// # Errors
/// A file that cannot be read or written.
pub fn save_weights(
    model: &dyn VisionLanguageModel,
    source: &Path,
    target: &Path,
) -> Result<(), ModelError> {
    let files = WeightFiles::open(source)?;
    let mut by_file: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    for name in files.names() {
        let stored = files.tensor(name)?;
        let file = files
            .file_of(name)
            .unwrap_or("model.safetensors")
            .to_string();
        let tensor = match model.parameters().get(name) {
            Some(parameter) => exact(parameter)
                .to_kind(stored.kind())
                .view(stored.size().as_slice()),
            None => tied_copy(model, name, &stored),
        };
        by_file
            .entry(file)
            .or_default()
            .push((name.to_string(), tensor));
    }
    for (file, tensors) in &by_file {
        write_tensors(&target.join(file), tensors)?;
    }
    copy_other_files(source, target)
}

fn exact(parameter: &crate::Parameter) -> Tensor {
    parameter
        .master
        .as_ref()
        .unwrap_or(&parameter.value)
        .detach()
}

/// A tensor no layer took: a tied head stored again follows its embedding, a buffer stays.
fn tied_copy(model: &dyn VisionLanguageModel, name: &str, stored: &Tensor) -> Tensor {
    let embedding = model
        .parameters()
        .list
        .iter()
        .find(|p| p.name.ends_with("embed_tokens.weight"));
    match embedding {
        Some(p) if name == "lm_head.weight" => exact(p).to_kind(stored.kind()),
        _ => stored.shallow_clone(),
    }
}

fn copy_other_files(source: &Path, target: &Path) -> Result<(), ModelError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ModelError::Io { path, source }
    };
    for entry in fs::read_dir(source).map_err(io(source))? {
        let path = entry.map_err(io(source))?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let weights = path.extension().is_some_and(|e| {
            ["safetensors", "bin", "pt", "pth", "gguf"]
                .iter()
                .any(|w| e == *w)
        });
        if path.is_file() && !weights {
            let to = target.join(name);
            fs::copy(&path, &to).map_err(io(&to))?;
            fs::File::open(&to)
                .and_then(|f| f.sync_all())
                .map_err(io(&to))?;
        }
    }
    Ok(())
}

/// `float32`, `bfloat16` or `float16`, also as `f32`, `bf16`, `f16`.
pub fn parse_kind(name: &str) -> Option<Kind> {
    match name {
        "float32" | "f32" | "fp32" => Some(Kind::Float),
        "bfloat16" | "bf16" => Some(Kind::BFloat16),
        "float16" | "f16" | "fp16" => Some(Kind::Half),
        _ => None,
    }
}
