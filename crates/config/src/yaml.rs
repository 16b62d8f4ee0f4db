//! The text of a YAML file as keys and values, and what is wrong with it in the words of this program.

use std::path::Path;

use serde_json::{Map, Value};
use serde_saphyr::Error;

use super::ConfigError;
use super::resolve::line_of;

/// The keys and values of a YAML text; none where it holds nothing but comments.
///
/// # Errors
/// On anything but a mapping.
pub fn parse_mapping(path: &Path, text: &str) -> Result<Map<String, Value>, ConfigError> {
    let yaml =
        |line: Option<u64>, cause: String| ConfigError::Yaml { file: path.into(), line, cause };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_empty = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    };
    if text.lines().all(is_empty) {
        return Ok(Map::new());
    }
    // `y` is a name here as likely as a boolean; fields that are boolean read the words themselves.
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(other) => {
            let got = super::value::described(&other);
            Err(yaml(None, format!("got {got}, expected lines `key: value`")))
        }
        Err(error) => {
            let line = error.location().map(|location| location.line());
            let line = line.filter(|line| *line > 0);
            match tab(text) {
                Some(tab) if !is_told(&error) => {
                    Err(yaml(Some(tab), "the line begins with a tab, expected spaces".to_owned()))
                }
                _ => Err(yaml(line, cause(text, &error, line))),
            }
        }
    }
}

/// The first line that is indented by a tab, which YAML does not allow.
fn tab(text: &str) -> Option<u64> {
    let is_so = |line: &str| {
        let rest = line.trim_start_matches(' ');
        rest.starts_with('\t') && !rest.trim().is_empty()
    };
    text.lines().position(is_so).map(|index| index as u64 + 1)
}

/// Whether an error says by itself what is wrong.
fn is_told(error: &Error) -> bool {
    matches!(
        error,
        Error::DuplicateMappingKey { .. }
            | Error::MultipleDocuments { .. }
            | Error::NonFiniteFloat { .. }
    )
}

fn cause(text: &str, error: &Error, line: Option<u64>) -> String {
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            let first = line_of(text, key).map(|line| line as u64);
            let first = first.filter(|first| Some(*first) != line);
            let first = first.map_or_else(String::new, |first| format!(", first in line {first}"));
            format!("`{key}` is there twice{first}")
        }
        Error::DuplicateMappingKey { key: None, .. } => "a key is there twice".to_owned(),
        Error::MultipleDocuments { .. } => "got several documents (`---`), expected one".to_owned(),
        Error::NonFiniteFloat { value, .. } => {
            format!("got `{value}`, expected a finite number")
        }
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "its aliases (`*name`) stand for too much".to_owned()
        }
        other => {
            let said = other.to_string();
            let said = said.trim_start_matches("error: ");
            // The place stands before.
            let rest = said.strip_prefix("line ").and_then(|said| said.split_once(": "));
            format!("not YAML: {}", rest.map_or(said, |(_, rest)| rest))
        }
    }
}
