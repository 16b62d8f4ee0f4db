//! JSON values in messages.

use serde_json::Value;

/// What a value is, for a message.
pub fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(value) => format!("number `{value}`"),
        Value::String(text) => format!("text `{}`", text.chars().take(80).collect::<String>()),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
    }
}
