//! Python's `str` and `repr` of JSON values: VLM-R1 compares and trains on such texts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use serde_json::Value;

use crate::json::Json;

/// `str(value)` of a [`Value`].
pub fn str_of(value: &Value) -> String {
    str(&borrowed(value))
}

fn borrowed(value: &Value) -> Json<'_> {
    match value {
        Value::Null => Json::Null,
        Value::Bool(truth) => Json::Bool(*truth),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => Json::Number(float),
            None => Json::Integer(number.to_string().into()),
        },
        Value::String(text) => Json::Text(text.into()),
        Value::Array(items) => Json::List(items.iter().map(borrowed).collect()),
        Value::Object(map) => {
            let pairs = map.iter();
            Json::Object(pairs.map(|(key, value)| (key.into(), borrowed(value))).collect())
        }
    }
}

/// `repr` of a list of texts.
pub fn list_repr(texts: &[&str]) -> String {
    let texts = texts.iter().map(|text| Json::Text((*text).into()));
    str(&Json::List(texts.collect()))
}

/// `repr` of a float.
pub fn float_repr(number: f64) -> String {
    let mut out = String::new();
    float(number, &mut out);
    out
}

/// `str(value)`.
pub fn str(value: &Json<'_>) -> String {
    match value {
        Json::Text(text) => text.clone().into_owned(),
        _ => {
            let mut out = String::new();
            repr(value, &mut out);
            out
        }
    }
}

fn repr(value: &Json<'_>, out: &mut String) {
    match value {
        Json::Null => out.push_str("None"),
        Json::Bool(true) => out.push_str("True"),
        Json::Bool(false) => out.push_str("False"),
        Json::Integer(digits) if digits == "-0" => out.push('0'),
        Json::Integer(digits) => out.push_str(digits),
        Json::Number(number) => float(*number, out),
        Json::Text(text) => quoted(text, out),
        Json::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(item, out);
            }
            out.push(']');
        }
        Json::Object(pairs) => object(pairs, out),
    }
}

/// A repeated key keeps its first place and its last value.
fn object(pairs: &[(Cow<'_, str>, Json<'_>)], out: &mut String) {
    let last: HashMap<&str, &Json<'_>> = pairs.iter().map(|(key, value)| (&**key, value)).collect();
    let mut left = last;
    out.push('{');
    for (index, (key, _)) in pairs.iter().enumerate() {
        let Some(value) = left.remove(&**key) else {
            continue;
        };
        out.push_str(if index > 0 { ", " } else { "" });
        quoted(key, out);
        out.push_str(": ");
        repr(value, out);
    }
    out.push('}');
}

/// Shortest digits that read back as the number, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64, out: &mut String) {
    if !number.is_finite() {
        let sign = if number < 0.0 { "-" } else { "" };
        let name = if number.is_nan() { "nan" } else { "inf" };
        out.push_str(sign);
        return out.push_str(name);
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        // Writing to a string cannot fail.
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    } else {
        let _ = write!(out, "{number:?}");
    }
}

/// In single quotes, in double ones where that saves escapes.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_escaped(c) => {
                let _ = match u32::from(c) {
                    code @ ..=0xff => write!(out, "\\x{code:02x}"),
                    code @ ..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Whether `repr` writes a character by its number: controls, formats, spaces other than U+0020, private ones.
fn is_escaped(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{a0}' | '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}'
        | '\u{70f}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}'
        | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}' | '\u{f0000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::loads;

    #[test]
    fn values_read_as_python_prints_them() {
        for (json, text) in [
            ("\"a 'b'\"", "a 'b'"),
            ("[1, -0, 1.0, 1e3, true, null]", "[1, 0, 1.0, 1000.0, True, None]"),
            (
                "[1e16, 1.5e-5, 1e15, 0.0001, -0.0]",
                "[1e+16, 1.5e-05, 1000000000000000.0, 0.0001, -0.0]",
            ),
            ("[1e999, -1e999, NaN, 1e300]", "[inf, -inf, nan, 1e+300]"),
            (
                "[\"a\", \"it's\", \"'\\\"\", \"\\n\\\\\\u0001\"]",
                r#"['a', "it's", '\'"', '\n\\\x01']"#,
            ),
            ("{\"a\": 1, \"b\": [], \"a\": {}}", "{'a': {}, 'b': []}"),
            (
                "[\"\\u00a0\\u200b\\u3000\\ufeff\", \"\u{e9}\u{7ea2}\"]",
                "['\\xa0\\u200b\\u3000\\ufeff', '\u{e9}\u{7ea2}']",
            ),
            ("12345678901234567890", "12345678901234567890"),
        ] {
            let value = loads(json).expect("readable");
            assert_eq!(str(&value), text, "{json}");
        }
    }
}
