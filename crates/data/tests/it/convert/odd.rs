//! Sources that are broken in places, or hold what only Python's JSON has.

use std::fs;

use config::DataFormat;
use data::convert::ConvertOptions;
use serde_json::{Value, json};

use super::{answer, converted, failure, options, question, reasons, write};
use testing::golden;

/// Whatever a message says of a broken entry, it says in the file's words.
#[test]
fn odd_coco_files_are_read_entry_by_entry_and_told_in_plain_words() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::copy(golden("text/images/one.png"), dir.path().join("a.png")).expect("copies");
    let text = r#"{"images": [
            {"id": "a", "file_name": "a.png", "width": 640, "height": 480}, {"id": "b", "file_name": "b.png", "width": 100, "height": 80}, {"id": 3}],
        "annotations": [
            {"id": 0, "image_id": "a", "category_id": 1.0, "bbox": [10, 20, 30, 40], "area": NaN, "iscrowd": false},
            {"id": 1, "image_id": "a", "category_id": true, "bbox": [600, 400, 100, 100.5], "iscrowd": 0.0},
            {"id": "n", "image_id": "a", "category_id": 1, "bbox": null},
            {"id": 3, "image_id": "a", "category_id": 1, "bbox": [60, 80, -50, -0.0]},
            {"id": 4, "image_id": "b", "category_id": "1", "bbox": [1, 2, 3, 4]},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}, {"id": 1, "name": "cup"}]}"#;
    let input = write(&dir, "odd.json", format!("\u{feff}{text}"));
    let odd = ConvertOptions {
        image_folder: Some(dir.path().to_owned()),
        ..options(DataFormat::Coco, input)
    };
    let (rows, report) = converted(&odd);
    assert_eq!(rows.len(), 1);
    let boxes = answer(&rows[0].1).as_str().expect("text");
    assert!(
        boxes.contains("[10, 20, 40, 60]") && boxes.contains("[600, 400, 640, 480]"),
        "{boxes}"
    );
    assert_eq!(reasons(&report), [("bad_row", 2)]);
    let left = report.boxes_left_out.iter().chain(&report.skipped);
    let told: Vec<&str> = left.flat_map(|left| &left.examples).map(String::as_str).collect();
    let told = told.join("\n");
    for text in [
        "cup: annotation \"n\": `bbox` is null, expected [x, y, width, height]",
        "cup: a box without area: [60, 80, -50, 0]",
        "annotation 4: no category \"1\", but 1: \"1\" is a text, 1 a number",
        "annotation 5: no image 7",
        "image 3 of the list: image 3: no `file_name`, expected a name",
    ] {
        assert!(told.contains(text), "{text}\n{told}");
    }
    let notes = report.notes.join("\n");
    for text in [
        "boxes that reach over the edge of their image are cut there: 1: ",
        "[600, 400, 100, 100.5]",
        "images of another size than the source says: 1: ",
        ", stated 640 x 480",
        "category 1 stands there again",
    ] {
        assert!(notes.contains(text), "{text}\n{notes}");
    }
    let all = told + &notes;
    for word in ["Some(", "None:", ": None", "Number(", "Text(", "Ok(", "Err("] {
        assert!(!all.contains(word), "{all}");
    }
}

#[test]
fn objects_of_ms_swift_may_be_json_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let row = |objects: Value| {
        json!({
            "messages": [{"role": "user", "content": "<image>Where is <ref-object>?"}, {"role": "assistant", "content": "<bbox>"}],
            "images": ["a.png"],
            "objects": objects,
        })
    };
    let objects = json!({"ref": ["the cup"], "bbox": [[1, 2, 3, 4]]});
    let source =
        json!([row(objects.clone()), row(json!(objects.to_string())), row(json!("{oops"))]);
    let input = write(&dir, "swift.json", source.to_string());
    let (rows, report) = converted(&options(DataFormat::LlamaFactory, input));
    assert_eq!(rows.len(), 2);
    for (_, row) in &rows {
        assert_eq!(
            (question(row), answer(row)),
            ("<image>Where is the cup?", &json!("[1, 2, 3, 4]"))
        );
    }
    let told = &report.skipped[0].examples[0];
    assert!(told.contains("`objects`: broken JSON at column 2: expected a key"), "{told}");
}

#[test]
fn a_broken_item_leaves_the_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = r#"{"problem": "q", "solution": [[1, 2], null], "score": NaN}"#;
    let text = format!("[{good},\n{{oops}},\n{{\"problem\": \"q\", \"solution\": NaN}}]");
    let input = write(&dir, "val.json", text);
    let (rows, report) = converted(&options(DataFormat::VlmR1Json, input));
    assert_eq!(rows.len(), 1);
    assert_eq!(answer(&rows[0].1), "[[1, 2], None]");
    assert_eq!(reasons(&report), [("bad_row", 2)]);
    let examples = report.skipped[0].examples.join("\n");
    assert!(
        examples.contains("item 2: broken JSON at column 2")
            && examples.contains("item 3: `solution` holds `NaN`"),
        "{examples}"
    );
    assert!(report.notes.join("\n").contains("`score` holds `NaN`, read as null"));
}

/// An image with an object of no known category would be asked as if nothing of any category were there.
#[test]
fn images_whose_objects_are_not_known_are_not_asked_as_empty() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::copy(golden("text/images/one.png"), dir.path().join("a.png")).expect("copies");
    let with = |annotation: &str| {
        let text = format!(
            r#"{{"images": [{{"id": 1, "file_name": "a.png"}}], "annotations": [{annotation}],
            "categories": [{{"id": 1, "name": "cup"}}, {{"id": 2, "name": "dog"}}]}}"#
        );
        let input = write(&dir, "doubt.json", text);
        ConvertOptions {
            image_folder: Some(dir.path().to_owned()),
            ..options(DataFormat::Coco, input)
        }
    };
    for category in ["\"cat\"", "7", "null"] {
        let annotation = format!(
            r#"{{"id": 1, "image_id": 1, "category_id": {category}, "bbox": [1, 2, 3, 4]}}"#
        );
        let (rows, report) = converted(&with(&annotation));
        assert!(rows.is_empty(), "{category}: {rows:?}");
        assert_eq!(reasons(&report), [("bad_row", 1)], "{category}");
    }
    let elsewhere = r#"{"id": 1, "image_id": "1", "category_id": 1, "bbox": [1, 2, 3, 4]}"#;
    let error = failure(&with(elsewhere));
    assert!(error.contains("no annotation belongs to an image of the file"), "{error}");
}
