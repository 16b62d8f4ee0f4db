//! JSON files of a model folder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, io_error};

/// A JSON file that must be there.
pub(crate) fn read_json(path: &Path) -> Result<Value, DataError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    serde_json::from_str(&text).map_err(|error| DataError::ModelFile {
        path: path.to_owned(),
        reason: format!("broken JSON: {error}"),
    })
}

/// A JSON file that may be missing.
pub(crate) fn read_optional_json(path: &Path) -> Result<Option<Value>, DataError> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}
