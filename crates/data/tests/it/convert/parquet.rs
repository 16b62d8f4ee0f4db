//! Rows from Parquet files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use config::DataFormat;
use data::convert::{Columns, ConvertOptions};
use data::{DataFile, DataFiles, OnBadRow, RowChecks, load_rows};
use serde_json::json;

use super::{answer, converted, failure, options, question, reasons, run, write};
use testing::golden;

fn parquet(name: &str, folder: &Path) -> ConvertOptions {
    ConvertOptions {
        image_folder: Some(folder.to_owned()),
        ..options(DataFormat::Parquet, golden(format!("sources/{name}.parquet")))
    }
}

#[test]
fn parquet_images_are_written_once_under_names_of_their_content() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("new/images");
    let keeping = ConvertOptions {
        columns: Columns { kept: vec!["level".to_owned()], ..Columns::default() },
        ..parquet("one_image", &folder)
    };
    let (rows, report) = converted(&keeping);
    assert_eq!((rows.len(), report.images_written), (3, 2));
    assert_eq!(rows[0].1["image"], rows[2].1["image"]);
    assert_eq!(
        (question(&rows[0].1), question(&rows[1].1)),
        ("<image>What colour?", "<image>What colour is it?")
    );
    assert_eq!((answer(&rows[1].1), &rows[2].1["level"]), (&json!("blue"), &json!(3)));
    let path = folder.join(rows[0].1["image"].as_str().expect("a name"));
    let red = data::image::decode_file(&path, 10_000).expect("an image");
    assert_eq!(red.pixels()[..3], [200, 10, 10]);
    assert_eq!(fs::read_dir(&folder).expect("lists").count(), 2);
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode();
    assert_eq!(mode(&path), mode(&write(&dir, "any", "x")));
    // Again: the same rows, and nothing to write.
    let (again, report) = converted(&keeping);
    assert_eq!((again, report.images_written), (rows, 0));
    let (rows, report) = converted(&parquet("many_images", &folder));
    assert_eq!(rows[0].1["image"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer(&rows[0].1), "[1.0, 2.0, 3.5, 4.0]");
    assert_eq!((rows.len(), reasons(&report)), (1, vec![("no_image", 1)]));
    let (rows, report) = converted(&parquet("odd_rows", &folder));
    assert_eq!((rows.len(), reasons(&report)), (0, vec![("broken_image", 1), ("no_image", 2)]));
}

/// They became rows without an image, trained blind.
#[test]
fn rows_whose_image_is_null_are_left_out_and_a_table_of_text_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let answers = |rows: &[(String, serde_json::Value)]| -> Vec<i64> {
        let rows = rows.iter();
        rows.map(|(_, row)| answer(row).as_i64().expect("a number")).collect()
    };
    let (rows, report) = converted(&parquet("absent_image", dir.path()));
    assert_eq!(answers(&rows), [2, 6]);
    assert_eq!(reasons(&report), [("broken_image", 1), ("no_image", 3)]);
    assert!(
        report.skipped[1].examples[0]
            .ends_with(": no image in a column that has images in other rows")
    );
    let (rows, report) = converted(&parquet("absent_images", dir.path()));
    assert_eq!(answers(&rows), [6]);
    assert_eq!(reasons(&report), [("no_image", 5)]);
    let (rows, report) = converted(&parquet("text_alone", dir.path()));
    assert_eq!((answers(&rows), reasons(&report)), (vec![1, 2], vec![]));
    let unnamed = failure(&parquet("image_1", dir.path()));
    assert!(unnamed.contains("no column for the images among image_1, question, answer\nhint: name it, `--image_column`"), "{unnamed}");
}

#[test]
fn parquet_columns_and_files_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let with = |columns| ConvertOptions { columns, ..parquet("one_image", dir.path()) };
    let columns =
        |question: &str| Columns { question: Some(question.to_owned()), ..Columns::default() };
    let error = failure(&with(columns("text")));
    assert!(error.contains("no column for the question among image, problem, answer, level\nhint: name it, `--question_column`"), "{error}");
    // A column of another type is no error of the file, but of each row.
    let (rows, report) = converted(&with(columns("level")));
    assert_eq!((rows.len(), reasons(&report)), (0, vec![("bad_row", 3)]));
    let whole = fs::read(golden("sources/one_image.parquet")).expect("reads");
    for length in (0..whole.len()).step_by(41) {
        let input = write(&dir, "cut.parquet", &whole[..length]);
        assert!(failure(&options_for(input, dir.path())).contains("cut.parquet: "));
    }
    // Any byte turned over: an error or rows, but neither a hang nor a crash.
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        let input = write(&dir, "turned.parquet", &bytes);
        let _ = run(&options_for(input, dir.path()));
    }
    let empty = tempfile::tempdir().expect("a folder");
    let error = failure(&options_for(empty.path().to_owned(), dir.path()));
    assert!(error.contains("no `.parquet` file"), "{error}");
}

fn options_for(input: PathBuf, folder: &Path) -> ConvertOptions {
    ConvertOptions { image_folder: Some(folder.to_owned()), ..options(DataFormat::Parquet, input) }
}

#[test]
fn a_folder_of_parquet_files_is_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().expect("a folder");
    for (from, to) in [("one_image", "b.parquet"), ("many_images", "a.parquet")] {
        fs::copy(golden(format!("sources/{from}.parquet")), dir.path().join(to)).expect("copies");
    }
    fs::write(dir.path().join("notes.txt"), "x").expect("writes");
    let (rows, _) = converted(&options_for(dir.path().to_owned(), &dir.path().join("images")));
    let splits: Vec<&str> = rows.iter().map(|(split, _)| split.as_str()).collect();
    assert_eq!(splits, ["a", "b", "b", "b"]);
}

#[test]
fn rows_are_such_as_training_takes() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("images");
    let (rows, _) = converted(&parquet("one_image", &folder));
    let lines: Vec<String> = rows.iter().map(|(_, row)| row.to_string()).collect();
    let path = write(&dir, "train.jsonl", lines.join("\n"));
    let files = DataFiles {
        files: vec![DataFile { path, image_folder: Some(folder), reward_method: None }],
    };
    let loaded = load_rows(&files, &RowChecks::default(), OnBadRow::Stop).expect("good rows");
    assert_eq!(loaded.rows.len(), 3);
}
