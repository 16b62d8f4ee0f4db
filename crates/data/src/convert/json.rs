//! Sources in JSON: one value, or items in a list or one a line.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ConvertError, read_file};

/// The whole file as `T`.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConvertError> {
    let bytes = read_file(path)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    serde_json::from_slice(bytes).map_err(|error| json_error(path, &error))
}

fn json_error(path: &Path, error: &serde_json::Error) -> ConvertError {
    let reason = error.to_string();
    ConvertError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        // The place stands before it.
        reason: reason
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned(),
    }
}

/// An item of a list, with its place.
pub(super) struct Item {
    /// `file: item 3`, counted from 1.
    pub(super) place: String,
    /// What stands there; none where it is no object.
    pub(super) object: Option<Map<String, Value>>,
}

/// The items of a file: a list of objects, or one object a line.
pub(super) fn items(path: &Path) -> Result<Vec<Item>, ConvertError> {
    let bytes = read_file(path)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let starts_list = bytes.trim_ascii_start().starts_with(b"[");
    let values: Vec<Value> = if starts_list {
        serde_json::from_slice(bytes).map_err(|error| json_error(path, &error))?
    } else {
        let values = serde_json::Deserializer::from_slice(bytes).into_iter();
        values
            .collect::<Result<_, _>>()
            .map_err(|error| json_error(path, &error))?
    };
    let numbered = values.into_iter().enumerate();
    Ok(numbered
        .map(|(index, value)| Item {
            place: format!("{}: item {}", path.display(), index + 1),
            object: match value {
                Value::Object(object) => Some(object),
                _ => None,
            },
        })
        .collect())
}
