//! Which of the files of a model folder holds its chat template.
//!
//! Source: huggingface/transformers v5.17, `processing_utils.py`, `get_processor_dict`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, io_error};
use crate::model_files::read_optional_json;

const KEY: &str = "chat_template";
/// Templates by name, one a file.
const NAMED: &str = "additional_chat_templates";

/// The template that counts, with its file. Others that differ from it are named in a warning.
pub(crate) fn choose(dir: &Path) -> Result<(PathBuf, String), DataError> {
    let found = templates(dir)?;
    let Some((path, text)) = found.first().cloned() else {
        return Err(DataError::NoChatTemplate { dir: dir.to_owned() });
    };
    let different: Vec<String> = found
        .iter()
        .filter(|(_, other)| same_form(other) != same_form(&text))
        .map(|(path, _)| format!("`{}`", name_in(dir, path)))
        .collect();
    if !different.is_empty() {
        base::console::say_once(&format!(
            "warning: {}: chat templates differ: that of `{}` is taken, as in transformers; passed over: {}",
            dir.display(),
            name_in(dir, &path),
            different.join(", ")
        ));
    }
    Ok((path, text))
}

/// All templates of the folder, that which counts first.
fn templates(dir: &Path) -> Result<Vec<(PathBuf, String)>, DataError> {
    let [processor, legacy, tokenizer] =
        ["processor_config.json", "chat_template.json", "tokenizer_config.json"]
            .map(|name| dir.join(name));
    let mut found = Vec::new();
    found.extend(in_json(&processor)?);
    let in_legacy = in_json(&legacy)?;
    let named = named(dir)?;
    if let (Some(name), true) = (named.first(), legacy.is_file()) {
        let name = name_in(dir, name);
        return Err(DataError::ModelFile {
            path: legacy,
            reason: format!(
                "cannot stand beside `{name}`, as in transformers\nhint: keep its template in `chat_template.jinja` instead"
            ),
        });
    }
    found.extend(in_legacy);
    let jinja = dir.join("chat_template.jinja");
    let default = named.iter().find(|path| path.ends_with("default.jinja"));
    for path in [Some(&jinja).filter(|path| path.is_file()), default].into_iter().flatten() {
        let text = fs::read_to_string(path).map_err(io_error(path))?;
        found.push((path.clone(), text));
    }
    if let (Some(path), true) = (named.first(), found.is_empty()) {
        return Err(DataError::ModelFile {
            path: path.clone(),
            reason: "no default template beside this one\nhint: save the one to use as `chat_template.jinja`".to_owned(),
        });
    }
    found.extend(in_json(&tokenizer)?);
    Ok(found)
}

/// Files of templates by name, sorted.
fn named(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let folder = dir.join(NAMED);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&folder).map_err(io_error(&folder))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        .collect();
    files.sort();
    Ok(files)
}

/// `chat_template` of a JSON file that may be missing: a text, or several by name.
fn in_json(path: &Path) -> Result<Option<(PathBuf, String)>, DataError> {
    let file = read_optional_json(path)?.unwrap_or_default();
    let refuse = |reason: String| {
        Err(DataError::ModelFile { path: path.to_owned(), reason: format!("`{KEY}`: {reason}") })
    };
    let default = match file.get(KEY) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => Some(text.as_str()),
        Some(Value::Array(list)) => list
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str()),
        Some(Value::Object(named)) => named.get("default").and_then(Value::as_str),
        Some(other) => return refuse(format!("expected a text or named texts, got {other}")),
    };
    match default {
        Some(text) => Ok(Some((path.to_owned(), text.to_owned()))),
        None => refuse("several templates, and none of the name `default`".to_owned()),
    }
}

/// What is the same to Jinja: it reads all line breaks as one and drops the last.
fn same_form(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.strip_suffix('\n').unwrap_or(&text).to_owned()
}

fn name_in(dir: &Path, path: &Path) -> String {
    path.strip_prefix(dir).unwrap_or(path).display().to_string()
}
