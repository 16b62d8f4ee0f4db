//! Rows to be evaluated, one by one: good ones and bad ones in their order, from VLM-R1's JSONL or from
//! a JSON list as its evaluation files are, whose items have `problem` and `solution`.

use std::fs;
use std::path::Path;

use base::{Sample, SourceLine};
use serde_json::{Map, Value, json};

use crate::error::{DataError, RowCause, RowError, io_error};
use crate::image_folder::ImageFolder;
use crate::row::{RowChecks, missing, parse_row};
use crate::rows::{DataFile, check_images, for_each_line};

/// The text of one row.
struct Item<'a> {
    line: usize,
    /// Number in the list, from 1.
    number: usize,
    text: &'a [u8],
}

/// Reads the rows of a file in their order; a bad one does not keep the others from being read.
///
/// # Errors
/// A file that cannot be read or has no rows.
pub fn load_items(
    file: &DataFile,
    checks: &RowChecks,
) -> Result<Vec<Result<Sample, RowError>>, DataError> {
    let path = &file.path;
    let folder = ImageFolder::new(file.image_folder.as_deref());
    let method = file.reward_method.as_deref();
    let mut rows = Vec::new();
    let mut read = |item: &[u8], source: SourceLine| {
        let row = as_conversation(item)
            .and_then(|item| parse_row(&item, source.clone(), &folder, method, checks))
            .and_then(check_images);
        rows.push(row.map_err(|cause| RowError {
            source_line: source,
            cause,
        }));
    };
    if is_list(path)? {
        let text = fs::read(path).map_err(io_error(path))?;
        for item in items(&text) {
            let mut source = SourceLine::new(path, item.line);
            source.item = Some(item.number);
            read(item.text, source);
        }
    } else {
        for_each_line(path, |text, line| read(text, SourceLine::new(path, line)))?;
    }
    if rows.is_empty() {
        return Err(DataError::NoRows { path: path.clone() });
    }
    Ok(rows)
}

/// Whether the file is one JSON list.
fn is_list(path: &Path) -> Result<bool, DataError> {
    let mut first = None;
    for_each_line(path, |line, _| {
        first = first.or(line.trim_ascii_start().first().copied());
    })?;
    Ok(first == Some(b'['))
}

/// The items of a JSON list, found by brackets and quotes alone, so that one that is broken within
/// leaves the others as they are.
fn items(text: &[u8]) -> impl Iterator<Item = Item<'_>> {
    let start = text.iter().position(|byte| *byte == b'[');
    let mut at = start.map_or(text.len(), |start| start + 1);
    let mut line = 1 + count_lines(&text[..at]);
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = &text[at..];
            let end = end_of_item(rest);
            let item = rest[..end].trim_ascii();
            let before = rest.len() - rest.trim_ascii_start().len();
            let first_line = line + count_lines(&rest[..before.min(end)]);
            let is_last = rest.get(end) != Some(&b',');
            line += count_lines(&rest[..end]);
            at = if is_last { text.len() } else { at + end + 1 };
            if !item.is_empty() {
                number += 1;
                return Some(Item {
                    line: first_line,
                    number,
                    text: item,
                });
            }
            if is_last {
                return None;
            }
        }
    })
}

fn count_lines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// Where the comma after an item, or the end of the list, stands.
fn end_of_item(text: &[u8]) -> usize {
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 0 => depth -= 1,
            b']' => return index,
            b',' if depth == 0 => return index,
            _ => {}
        }
    }
    text.len()
}

/// An item with `problem` and `solution` as a row with a conversation; any other as it is.
fn as_conversation(item: &[u8]) -> Result<Vec<u8>, RowCause> {
    let Ok(Value::Object(mut columns)) = serde_json::from_slice::<Value>(item) else {
        return Ok(item.to_vec());
    };
    if columns.contains_key("conversations") || !columns.contains_key("problem") {
        return Ok(item.to_vec());
    }
    let Some(solution) = columns.get("solution") else {
        return Err(missing(&columns, "solution"));
    };
    let answer = match solution {
        Value::Array(_) | Value::Object(_) => json!(solution.to_string()),
        other => other.clone(),
    };
    let turns = json!([
        {"from": "human", "value": columns["problem"]},
        {"from": "gpt", "value": answer},
    ]);
    columns.insert("conversations".into(), turns);
    Ok(Value::Object(Map::from_iter(columns))
        .to_string()
        .into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str) -> Result<Vec<Result<Sample, RowError>>, DataError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        let file = DataFile {
            path,
            image_folder: None,
            reward_method: None,
        };
        let checks = RowChecks {
            expect_box: true,
            ..RowChecks::default()
        };
        load_items(&file, &checks)
    }

    #[test]
    fn a_list_is_read_item_by_item_with_its_lines() {
        let text = "\u{feff}[\n  {\"problem\": \"a, ]\\\"\", \"solution\": [1, 2, 3, 4], \"x\": 1},\n\
                    {\"problem\": oops, \"solution\": [1, 2, 3, 4]},\n 7, {\"problem\": \"b\"},\n\
                    {\"problem\": \"c\",\n \"solution\": [9, 2, 3, 4]},\n\
                    {\"problem\": \"d\", \"solution\": \"[1, 2, 3, 4]\"}\n]\n";
        let rows = load("val.json", text).expect("a list");
        let said: Vec<(usize, String)> = rows
            .iter()
            .map(|row| match row {
                Ok(sample) => (sample.source.line, sample.problem.clone()),
                Err(row) => (row.source_line.line, row.cause.to_string()),
            })
            .collect();
        let expected = [
            (2, "a, ]\""),
            (3, "broken JSON at column 13: expected value"),
            (4, "expected one JSON object per line, got a number"),
            (4, "missing key `solution`"),
            (5, "holds no box"),
            (7, "d"),
        ];
        for ((line, text), (expected_line, expected)) in said.iter().zip(expected) {
            assert_eq!(*line, expected_line, "{text}");
            assert!(text.contains(expected), "{text}, expected {expected}");
        }
        assert_eq!(said.len(), expected.len());
        let broken = rows[1].as_ref().expect_err("a bad row");
        let place = broken.source_line.to_string();
        assert!(place.ends_with("val.json:3 (item 2)"), "{place}");
        let first = rows[0].as_ref().expect("a good row");
        assert_eq!(first.solution, "<answer> [1,2,3,4] </answer>");
        assert_eq!(first.columns["x"], 1);
    }

    #[test]
    fn lines_are_read_one_by_one() {
        let good = r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "[1, 2, 3, 4]"}]}"#;
        let rows = load("val.jsonl", &format!("{good}\n\n{{\n{good}\n")).expect("lines");
        let lines: Vec<(usize, bool)> = rows
            .iter()
            .map(|row| match row {
                Ok(sample) => (sample.source.line, true),
                Err(row) => (row.source_line.line, false),
            })
            .collect();
        assert_eq!(lines, [(1, true), (3, false), (4, true)]);
    }

    #[test]
    fn nothing_is_an_error_and_a_list_may_break_off() {
        for empty in ["", "\n \n", "[]", "[ , ]"] {
            let error = load("val.json", empty).expect_err("no rows");
            assert!(error.to_string().contains("no rows"), "{empty:?}: {error}");
        }
        let rows = load(
            "val.json",
            "[{\"problem\": \"a\", \"solution\": [1,2,3,4]}, {\"pro",
        );
        let rows = rows.expect("a torn list");
        assert_eq!(rows.iter().filter(|row| row.is_ok()).count(), 1);
        assert_eq!(rows.len(), 2);
    }
}
