//! What a JSON value is, for messages.

use serde_json::Value;

/// Longest text that is shown, characters.
const MAX_SHOWN: usize = 80;

/// A value in a few words: ``number `3` ``, `a list of 2`.
pub fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(value) => format!("number `{value}`"),
        Value::String(text) => {
            format!("text `{}`", text.chars().take(MAX_SHOWN).collect::<String>())
        }
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
    }
}
