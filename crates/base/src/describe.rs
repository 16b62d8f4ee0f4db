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
            // On one line: what follows a line break would pass for a line of ours.
            let shown = text.chars().take(MAX_SHOWN).map(|c| match c.is_control() {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            });
            format!("text `{}`", shown.collect::<String>())
        }
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_takes_one_line() {
        let told = describe(&Value::from("a\nhint: b\t\u{e9}"));
        assert_eq!(told, "text `a\\nhint: b\\t\u{e9}`");
        assert_eq!(describe(&Value::from(vec![1, 2])), "a list of 2");
    }
}
