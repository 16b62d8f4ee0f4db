//! Rows to evaluate, good and bad ones in their order: VLM-R1's training rows, or the items of its
//! evaluation files, which have `problem` and `solution`.

use base::Example;
use python::json::Lost;

use crate::error::{DataError, RowError};
use crate::image_folder::ImageFolder;
use crate::row::{RowChecks, RowReader};
use crate::row_texts::RowTexts;
use crate::rows::{CheckedImages, DataFile};

/// Reads the rows of a file in order; a bad row does not stop the others. `look` is called with each
/// good one and the values in it that JSON cannot hold.
///
/// # Errors
/// A file that cannot be read or has no rows.
pub fn load_eval_rows(
    file: &DataFile,
    checks: &RowChecks,
    look: &mut dyn FnMut(&Example, &[Lost]),
) -> Result<Vec<Result<Example, RowError>>, DataError> {
    let path = &file.path;
    let folder = ImageFolder::new(file.image_folder.as_deref());
    let reader = RowReader {
        folder: &folder,
        method: file.reward_method.as_deref(),
        checks,
        takes_problems: true,
    };
    let mut rows = Vec::new();
    let mut images = CheckedImages::default();
    for text in RowTexts::open(path)? {
        let text = text?;
        let source_line = text.source(path);
        let row = text.text.and_then(|text| {
            let row = reader.read(&text, source_line.clone())?;
            images.check(&row.example)?;
            Ok(row)
        });
        rows.push(match row {
            Ok(row) => {
                look(&row.example, &row.lost);
                Ok(row.example)
            }
            Err(cause) => Err(RowError { source_line, cause }),
        });
    }
    match rows.is_empty() {
        true => Err(DataError::NoRows { path: path.clone() }),
        false => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(name: &str, text: &str) -> Result<Vec<Result<Example, RowError>>, DataError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        let file = DataFile { path, image_folder: None, reward_method: None };
        let checks = RowChecks { expect_box: true, ..RowChecks::default() };
        load_eval_rows(&file, &checks, &mut |_, _| {})
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
                Ok(example) => (example.source.line, example.problem.clone()),
                Err(row) => (row.source_line.line, row.cause.to_string()),
            })
            .collect();
        let expected = [
            (2, "a, ]\""),
            (3, "broken JSON at column 13: expected a value"),
            (4, "expected a JSON object, got number `7`"),
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
        assert_eq!(first.solution, "<answer> [1, 2, 3, 4] </answer>");
        assert_eq!(first.columns["x"], 1);
    }

    #[test]
    fn lines_are_read_one_by_one() {
        let good = r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "[1, 2, 3, 4]"}]}"#;
        let rows = load("val.jsonl", &format!("{good}\n\n{{\n{good}\n")).expect("lines");
        let lines: Vec<(usize, bool)> = rows
            .iter()
            .map(|row| match row {
                Ok(example) => (example.source.line, true),
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
        let rows = load("val.json", "[{\"problem\": \"a\", \"solution\": [1,2,3,4]}, {\"pro");
        let rows = rows.expect("a torn list");
        assert_eq!(rows.iter().filter(|row| row.is_ok()).count(), 1);
        assert_eq!(rows.len(), 2);
    }
}
