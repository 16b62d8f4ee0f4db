//! Sources in JSON: one value, or items in a list or one a line.

use std::path::Path;

use python::json::{JsonError, Lost, parse};
use serde_json::{Map, Value};

use super::{ConvertError, read_file};
use crate::error::{DataError, RowCause};
use crate::file_form::no_text;
use crate::row::{key_of, parse_columns};
use crate::row_texts::RowTexts;

/// The text of a file, without a byte order mark.
pub(crate) fn text_of(path: &Path) -> Result<String, ConvertError> {
    let bytes = read_file(path)?;
    let form = |reason| ConvertError::Form { path: path.to_owned(), reason };
    if let Some(found) = no_text(&bytes) {
        return Err(form(format!("{}\nhint: {}", found.what, found.hint)));
    }
    let mut text = String::from_utf8(bytes)
        .map_err(|error| form(format!("no UTF-8 at byte {}", error.utf8_error().valid_up_to())))?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// The whole file, and what of it JSON does not have.
pub(super) fn read(path: &Path) -> Result<Value, ConvertError> {
    let text = text_of(path)?;
    let parsed = parse(&text).map_err(|error| json_error(path, &text, error))?;
    Ok(parsed.value)
}

/// A mistake with its line and column.
pub(crate) fn json_error(path: &Path, text: &str, error: JsonError) -> ConvertError {
    let before = &text.as_bytes()[..error.at];
    let line_start = before.iter().rposition(|byte| *byte == b'\n');
    ConvertError::Json {
        path: path.to_owned(),
        line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        column: error.at - line_start.map_or(0, |start| start + 1) + 1,
        reason: error.reason.to_owned(),
    }
}

/// An item of a list, with its place.
pub(super) struct Item {
    /// `file: item 3`, counted from 1.
    pub(super) place: String,
    /// The value, or why it cannot be read.
    pub(super) object: Result<Map<String, Value>, String>,
    /// What of it JSON does not have, under keys that are not `read`.
    pub(super) lost: Vec<Lost>,
}

/// The items of a file: a list of objects, or one object a line; `read` are the keys that are read.
pub(super) fn items(
    path: &Path,
    read: &'static [&'static str],
) -> Result<impl Iterator<Item = Result<Item, ConvertError>>, ConvertError> {
    let numbered = RowTexts::open(path).map_err(convert_error)?.enumerate();
    let path = path.to_owned();
    Ok(numbered.map(move |(index, text)| {
        let text = text.map_err(convert_error)?;
        let place = format!("{}: item {}", path.display(), index + 1);
        let line = text.line;
        let columns = text.text.and_then(|text| parse_columns(&text));
        let (object, lost) = match columns {
            // An unknown number of rows is missing.
            Err(RowCause::TornList) => {
                let reason = format!("line {line}: {}", RowCause::TornList);
                return Err(ConvertError::Form { path: path.clone(), reason });
            }
            Err(cause) => (Err(cause.to_string()), Vec::new()),
            Ok((object, lost)) => {
                let is_read = |lost: &&Lost| {
                    lost.path.first().is_some_and(|key| read.contains(&key.as_str()))
                };
                match lost.iter().find(is_read) {
                    Some(lost) => {
                        let key = key_of(&lost.path);
                        let what = lost.what.clone();
                        (Err(RowCause::Lost { key, what }.to_string()), Vec::new())
                    }
                    None => (Ok(object), lost),
                }
            }
        };
        Ok(Item { place, object, lost })
    }))
}

fn convert_error(error: DataError) -> ConvertError {
    match error {
        DataError::Io { path, source } => ConvertError::Io { path, source },
        DataError::NotRows { path, what, hint } => {
            ConvertError::Form { path, reason: format!("{what}\nhint: {hint}") }
        }
        other => ConvertError::Write(Box::new(other)),
    }
}
