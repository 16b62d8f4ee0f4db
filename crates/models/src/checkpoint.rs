//! From a Hugging Face model folder to a model, and back to the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use base::model_folder::{is_adapter, read_config};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};
use torch::{WeightFiles, Written, write_tensors_as};

use crate::lora::{AdapterSource, SavedAdapter};
use crate::model::{LoadOptions, VisionLanguageModel};
use crate::names::{Names, Target};
use crate::parameters::{Parameter, Parameters};
use crate::{ModelError, contradictions, family_of};

/// # Errors
/// A missing file or broken JSON.
pub(crate) fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text)
        .map_err(|e| ModelError::Config { path: path.to_owned(), cause: format!("not JSON: {e}") })
}

/// Loads the model of `folder`, whatever its family; of a PEFT folder, the model that it names as its
/// base with the adapter over it.
///
/// # Errors
/// An unknown family, a configuration that does not parse, weights or an adapter that do not fit it.
pub fn load_model(
    folder: &Path,
    options: LoadOptions,
) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
    if !is_adapter(folder) {
        return load(folder, options, None);
    }
    let saved = SavedAdapter::read(folder)?;
    load_with_adapter(&base_of(&saved)?, options, AdapterSource::Saved(&saved))
}

/// Loads the model of `folder` with adapters over it.
///
/// # Errors
/// As [`load_model`].
pub fn load_with_adapter(
    folder: &Path,
    options: LoadOptions,
    adapter: AdapterSource<'_>,
) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
    load(folder, options, Some(adapter))
}

fn load(
    folder: &Path,
    options: LoadOptions,
    adapters: Option<AdapterSource<'_>>,
) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
    if let Some(AdapterSource::Saved(saved)) = &adapters {
        contradictions::warn_of_adapter(&saved.folder, folder);
    }
    family_of(folder)?.load(folder, options, adapters)
}

/// The folder of an adapter's base model: as the adapter names it, or relative to the adapter's folder.
///
/// # Errors
/// An adapter that names none, or one that is not there.
pub fn base_of(adapter: &SavedAdapter) -> Result<PathBuf, ModelError> {
    let base = adapter.base.as_deref().unwrap_or_default();
    let beside = adapter.folder.join(base);
    [PathBuf::from(base), beside]
        .into_iter()
        .find(|folder| !base.is_empty() && folder.join("config.json").is_file())
        .ok_or_else(|| ModelError::Base { adapter: adapter.folder.clone(), base: base.to_owned() })
}

/// Writes the weights of `model` into `target` under the names, files, types and shapes of `source`,
/// the folder it was loaded from, and copies every other file of `source` as it is; subfolders but that of chat
/// templates and weights in other formats are left out. Returns the weight files.
///
/// # Errors
/// A file that cannot be read or written, or weights of `source` that are not those of `model`.
pub fn save_weights(
    model: &dyn VisionLanguageModel,
    source: &Path,
    target: &Path,
) -> Result<Vec<Written>, ModelError> {
    let (rules, parameters) = (&model.family().names, model.parameters());
    save_parameters(rules, parameters, source, target, &Parameter::master_weight)
}

/// The weights whose exact values [`save_parameters`] asks for, in its order: those that the files of `source` hold in another type or form
/// than the layers.
///
/// # Errors
/// A file of `source` that cannot be read.
pub fn exact_weights<'p>(
    rules: &Names,
    all: &'p Parameters,
    source: &Path,
) -> Result<Vec<&'p Parameter>, ModelError> {
    let files = WeightFiles::open(source)?;
    let of_checkpoint = |name: &str| all.get(name).filter(|p| !p.is_adapter);
    let mut found = Vec::new();
    for name in names_by_file(&files)?.into_values().flatten() {
        match rules.target(&rules.current(name)) {
            Target::Same => {
                let kind = files.kind(name)?;
                let parameter = of_checkpoint(name).or_else(|| tied(all, name));
                found.extend(parameter.filter(|p| p.value.kind() != kind));
            }
            target => found.extend(target.weights().into_iter().filter_map(of_checkpoint)),
        }
    }
    Ok(found)
}

/// The names of the tensors of each file, sorted.
fn names_by_file(files: &WeightFiles) -> Result<BTreeMap<&str, Vec<&str>>, ModelError> {
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in files.names() {
        by_file.entry(files.file_of(name)?).or_default().push(name);
    }
    Ok(by_file)
}

/// [`save_weights`] of a family's parameters, whose exact values `exact` gives.
///
/// # Errors
/// As [`save_weights`], and those of `exact`.
pub fn save_parameters<E: From<ModelError>>(
    rules: &Names,
    all: &Parameters,
    source: &Path,
    target: &Path,
    exact: &dyn Fn(&Parameter) -> Result<Tensor, E>,
) -> Result<Vec<Written>, E> {
    let files = WeightFiles::open(source).map_err(ModelError::from)?;
    let parameters: BTreeMap<&str, &Parameter> =
        all.list.iter().filter(|p| !p.is_adapter).map(|p| (p.name.as_str(), p)).collect();
    let mut written = Vec::new();
    let mut absent: BTreeSet<&str> = parameters.keys().copied().collect();
    for (file, names) in names_by_file(&files)? {
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let kind = files.kind(name).map_err(ModelError::from)?;
            let tensor = match rules.target(&rules.current(name)) {
                Target::Same => {
                    absent.remove(name);
                    match parameters.get(name).copied().or_else(|| tied(all, name)) {
                        // Already rounded where the file has the compute type.
                        Some(parameter) if parameter.value.kind() == kind => {
                            parameter.value.detach()
                        }
                        Some(parameter) => exact(parameter)?,
                        // What no layer takes stays as it is.
                        None => files.tensor(name).map_err(ModelError::from)?,
                    }
                }
                target => {
                    let weight = |own: &str| match parameters.get(own) {
                        Some(parameter) => exact(parameter),
                        None => Err(not_there(source, own).into()),
                    };
                    for own in target.weights() {
                        absent.remove(own);
                    }
                    reformed(&target, &files, rules, name, weight)?
                }
            };
            tensors.push((name.to_string(), shaped_as(&tensor, &files, name)?, kind));
        }
        let file = write_tensors_as(&target.join(file), &tensors);
        written.push(file.map_err(ModelError::from)?);
    }
    if !absent.is_empty() {
        return Err(ModelError::Weights {
            folder: source.to_path_buf(),
            problems: absent
                .iter()
                .map(|name| format!("weight {name}: trained, but not in these files"))
                .collect(),
        }
        .into());
    }
    let has_head = parameters.contains_key(HEAD);
    finish_folder(&files, source, target, has_head)?;
    Ok(written)
}

fn shaped_as(tensor: &Tensor, files: &WeightFiles, name: &str) -> Result<Tensor, ModelError> {
    Ok(tensor.f_view(files.shape(name)?.as_slice())?)
}

/// A stored tensor made of the weights that it holds in another form.
fn reformed<E: From<ModelError>>(
    target: &Target,
    files: &WeightFiles,
    rules: &Names,
    name: &str,
    weight: impl Fn(&str) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let own = target.weights().into_iter().map(weight).collect::<Result<Vec<_>, _>>()?;
    Ok(of_weights(target, &own, files, rules, name)?)
}

/// `own`: the weights that `target` names.
fn of_weights(
    target: &Target,
    own: &[Tensor],
    files: &WeightFiles,
    rules: &Names,
    name: &str,
) -> Result<Tensor, ModelError> {
    Ok(match target {
        Target::Same => files.tensor(name)?,
        Target::Rows(_) => Tensor::f_cat(own, 0)?,
        Target::RowsOf { before, .. } => {
            let mut first = 0;
            for other in files.names().filter(|other| before.contains(&rules.current(other))) {
                first += files.shape(other)?[0];
            }
            own[0].f_narrow(0, first, files.shape(name)?[0])?.contiguous()
        }
        Target::Transposed(_) => own[0].f_tr()?.contiguous(),
        Target::Slice { index, .. } => own[0].f_select(0, *index)?.contiguous(),
    })
}

fn not_there(folder: &Path, own: &str) -> ModelError {
    let problems = vec![format!("weight {own}: in these files, but not in the model")];
    ModelError::Weights { folder: folder.to_path_buf(), problems }
}

/// A tied head that is stored again follows its embedding.
fn tied<'p>(parameters: &'p Parameters, name: &str) -> Option<&'p Parameter> {
    let list = &parameters.list;
    (name == HEAD).then(|| list.iter().find(|p| p.name.ends_with("embed_tokens.weight"))).flatten()
}

/// The head's name in every supported family.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Copies all but the weights `files` of `source`, and adapts the index and `config.json` to the weights written.
pub(crate) fn finish_folder(
    files: &WeightFiles,
    source: &Path,
    target: &Path,
    has_head: bool,
) -> Result<(), ModelError> {
    let own_index = files.index_name().filter(|_| files.index_faults().is_empty());
    copy_files(source, target, |name| {
        // Other indexes name files that are not written.
        !name.ends_with(".index.json") || Some(name) == own_index
    })?;
    if let Some(name) = files.index_name().filter(|_| own_index.is_none()) {
        write_json(&target.join(name), &index_of(files)?)?;
    }
    if has_head {
        write_untied(target)?;
    }
    Ok(())
}

/// An index of what the files hold.
fn index_of(files: &WeightFiles) -> Result<Value, ModelError> {
    let (mut map, mut total) = (Map::new(), 0);
    for name in files.names() {
        map.insert(name.to_owned(), files.file_of(name)?.into());
        let numbers: i64 = files.shape(name)?.iter().product();
        total += numbers as usize * files.kind(name)?.elt_size_in_bytes();
    }
    Ok(json!({"metadata": {"total_size": total}, "weight_map": map}))
}

/// Sets `tie_word_embeddings` to false in `config.json`, so that loading need not compare head and embedding.
fn write_untied(folder: &Path) -> Result<(), ModelError> {
    let mut config = read_config(folder)?;
    let mut changed = false;
    let mut untie = |object: Option<&mut Value>| {
        let key = object.and_then(|object| object.get_mut("tie_word_embeddings"));
        if let Some(tied) = key.filter(|tied| **tied == json!(true)) {
            *tied = json!(false);
            changed = true;
        }
    };
    untie(config.get_mut("text_config"));
    untie(Some(&mut config));
    match changed {
        true => write_json(&folder.join("config.json"), &config),
        false => Ok(()),
    }
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let write = || {
        let mut file = fs::File::create(path)?;
        file.write_all(format!("{value:#}\n").as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| ModelError::Io { path: path.to_path_buf(), source })
}

/// Endings of weights in formats that would contradict the safetensors files written here.
const OTHER_WEIGHTS: [&str; 8] =
    ["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"];

/// Copies processor files, such as the tokenizer and chat templates, from one model folder into another.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy_processor_files(source: &Path, target: &Path) -> Result<(), ModelError> {
    copy_files(source, target, |name| name != "config.json" && !name.ends_with(".index.json"))
}

fn copy_files(
    source: &Path,
    target: &Path,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ModelError::Io { path, source }
    };
    for entry in fs::read_dir(source).map_err(io(source))? {
        let path = entry.map_err(io(source))?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let weights = path.extension().is_some_and(|e| OTHER_WEIGHTS.iter().any(|w| e == *w));
        if path.is_file() && !weights && is_wanted(&name.to_string_lossy()) {
            let to = target.join(name);
            copy_file(&path, &to).map_err(io(&to))?;
        }
    }
    copy_templates(source, target)
}

/// Named chat templates, which are in a folder of their own.
fn copy_templates(source: &Path, target: &Path) -> Result<(), ModelError> {
    const TEMPLATES: &str = "additional_chat_templates";
    let [source, target] = [source, target].map(|folder| folder.join(TEMPLATES));
    let entries = fs::read_dir(&source).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    for path in
        files.filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "jinja"))
    {
        let to = target.join(path.file_name().unwrap_or_default());
        let copied = fs::create_dir_all(&target).and_then(|()| copy_file(&path, &to));
        copied.map_err(|source| ModelError::Io { path: to, source })?;
    }
    Ok(())
}

/// Copies the content only: `fs::copy` would copy permissions too.
fn copy_file(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create(to)?;
    std::io::copy(&mut fs::File::open(from)?, &mut file)?;
    file.sync_all()
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
