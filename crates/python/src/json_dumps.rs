//! Values printed as Python's `json.dumps(x)` prints them. Chat templates show such texts, so they
//! must agree to the character.

use serde_json::Value;

use crate::repr::float_repr;

/// Layout of `json.dumps`.
#[derive(Clone, Debug)]
pub struct DumpStyle {
    /// Text of one level of indentation; `None` keeps everything on one line.
    pub indent: Option<String>,
    /// Between items: `, ` in Python's default.
    pub item_separator: String,
    /// Between a key and its value: `: ` in Python's default.
    pub key_separator: String,
    /// Whether characters beyond ASCII are escaped.
    pub ensure_ascii: bool,
    /// Whether the keys of objects are sorted.
    pub sort_keys: bool,
}

impl Default for DumpStyle {
    fn default() -> Self {
        Self {
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            ensure_ascii: false,
            sort_keys: false,
        }
    }
}

/// `json.dumps(value)` in the given style.
pub fn json_dumps(value: &Value, style: &DumpStyle) -> String {
    let mut out = String::new();
    dump(value, style, 0, &mut out);
    out
}

fn dump(value: &Value, style: &DumpStyle, depth: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(n) => match (n.is_f64(), n.as_f64()) {
            (true, Some(x)) => out.push_str(&float_repr(x)),
            _ => out.push_str(&n.to_string()),
        },
        Value::String(text) => dump_string(text, style.ensure_ascii, out),
        Value::Array(items) => dump_items(items.iter(), ('[', ']'), style, depth, out, |v, out| {
            dump(v, style, depth + 1, out);
        }),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            dump_items(entries.into_iter(), ('{', '}'), style, depth, out, |(key, v), out| {
                dump_string(key, style.ensure_ascii, out);
                out.push_str(&style.key_separator);
                dump(v, style, depth + 1, out);
            });
        }
    }
}

fn dump_items<T>(
    items: impl ExactSizeIterator<Item = T>,
    brackets: (char, char),
    style: &DumpStyle,
    depth: usize,
    out: &mut String,
    mut write: impl FnMut(T, &mut String),
) {
    let empty = items.len() == 0;
    out.push(brackets.0);
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, depth + 1);
        write(item, out);
    }
    if !empty {
        new_line(out, depth);
    }
    out.push(brackets.1);
}

fn dump_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !(' '..='~').contains(&c)) => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_prints_as_in_python() {
        let value: Value =
            serde_json::from_str(r#"{"b": [1, 2.0, null], "a": {"é\n": "\u0001\""}, "c": []}"#)
                .expect("test JSON");
        assert_eq!(
            json_dumps(&value, &DumpStyle::default()),
            r#"{"b": [1, 2.0, null], "a": {"é\n": "\u0001\""}, "c": []}"#
        );
        let style = DumpStyle {
            indent: Some("  ".to_owned()),
            item_separator: ",".to_owned(),
            ensure_ascii: true,
            sort_keys: true,
            ..DumpStyle::default()
        };
        assert_eq!(
            json_dumps(&value, &style),
            "{\n  \"a\": {\n    \"\\u00e9\\n\": \"\\u0001\\\"\"\n  },\n  \"b\": [\n    1,\n    2.0,\n    null\n  ],\n  \"c\": []\n}"
        );
    }
}
