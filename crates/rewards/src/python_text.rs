//! What Python's `str()` makes of a JSON value: items that VLM-R1 compares are compared by it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use crate::python_json::Json;

/// `str(value)`.
pub(crate) fn str(value: &Json<'_>) -> String {
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
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python_json::loads;

    #[test]
    fn values_read_as_python_prints_them() {
        for (json, text) in [
            ("\"a 'b'\"", "a 'b'"),
            (
                "[1, -0, 1.0, 1e3, true, null]",
                "[1, 0, 1.0, 1000.0, True, None]",
            ),
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
            ("12345678901234567890", "12345678901234567890"),
        ] {
            let value = loads(json).expect("readable");
            assert_eq!(str(&value), text, "{json}");
        }
    }
}
