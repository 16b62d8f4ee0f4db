use std::fs;

use super::*;

/// What is read of a file: line, item and text of each row, or why none is.
fn read(bytes: &[u8]) -> Result<Vec<(usize, Option<usize>, String)>, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("rows.jsonl");
    fs::write(&path, bytes).expect("a file");
    let texts = RowTexts::open(&path).map_err(|error| {
        let text = error.to_string();
        text.replace(&format!("{}: ", path.display()), "")
    })?;
    let whole = fs::read(&path).expect("a file");
    let row = |text: Result<RowText, DataError>| {
        let row = text.expect("readable");
        let text = match row.text {
            Ok(text) => {
                let start = row.offset as usize;
                assert_eq!(&whole[start..start + text.len()], text, "found where it stands");
                String::from_utf8_lossy(&text).into_owned()
            }
            Err(cause) => format!("! {cause}").split('\n').next().unwrap_or_default().to_owned(),
        };
        (row.line, row.item, text)
    };
    Ok(texts.map(row).collect())
}

fn rows(text: &str) -> Vec<(usize, Option<usize>, String)> {
    read(text.as_bytes()).expect(text)
}

fn told(text: &str) -> Vec<String> {
    let told = |(line, item, text): (usize, Option<usize>, String)| match item {
        Some(item) => format!("{line}/{item} {text}"),
        None => format!("{line} {text}"),
    };
    rows(text).into_iter().map(told).collect()
}

#[test]
fn rows_are_lines_items_or_objects() {
    for (text, expected) in [
        (
            "\u{feff}{\"a\": 1}\r\n\r\n {\"b\": \"\\n\"} \n{}",
            vec!["1 {\"a\": 1}", "3  {\"b\": \"\\n\"} ", "4 {}"],
        ),
        (
            "\u{feff}[{\"a\": \"x, ]\\\"\"},\n\n {\"b\":\n [1, {}]} ,\n7]\n",
            vec!["1/1 {\"a\": \"x, ]\\\"\"}", "3/2 {\"b\":\n [1, {}]}", "5/3 7"],
        ),
        (
            "{\n  \"a\": 1\n}\n{\n  \"b\": [\n1]}\n",
            vec!["1/1 {\n  \"a\": 1\n}", "4/2 {\n  \"b\": [\n1]}"],
        ),
        (
            "{\"a\": 1} {\"a\": 2}\n{\"a\": 3}",
            vec!["1/1 {\"a\": 1}", "1/2 {\"a\": 2}", "2/3 {\"a\": 3}"],
        ),
        ("{\"a\": 1}\r{\"a\": 2}", vec!["1/1 {\"a\": 1}", "1/2 {\"a\": 2}"]),
        // Lines, of which one is broken.
        ("{\n{\"a\": 1}\n", vec!["1 {", "2 {\"a\": 1}"]),
        ("{\"a\": [{\"b\"\n{\"a\": 1}]}\n{}", vec!["1 {\"a\": [{\"b\"", "2 {\"a\": 1}]}", "3 {}"]),
        ("{\"a\": 1},\n{\"a\": 2}\n", vec!["1 {\"a\": 1},", "2 {\"a\": 2}"]),
        ("[1]\n{\"a\": 1}", vec!["1 [1]", "2 {\"a\": 1}"]),
        ("oops\n{\"a\": 1}", vec!["1 oops", "2 {\"a\": 1}"]),
        ("", vec![]),
        ("\n \n", vec![]),
        ("[]", vec![]),
        ("[ , ]\n", vec![]),
    ] {
        assert_eq!(told(text), expected, "{text:?}");
    }
}

#[test]
fn a_list_that_breaks_off_says_so_once() {
    let end = "! the list has no end: the file breaks off, rows are missing";
    for (text, last) in [
        ("[{\"a\": 1}, {\"b\": 2}", format!("1/3 {end}")),
        ("[{\"a\": 1}, {\"b\": 2},", format!("1/3 {end}")),
        ("[{\"a\": 1}, {\"b\": 2}, {\"c\"", "1/3 {\"c\"".to_owned()),
        ("[{\"a\": 1}, {\"b\": 2}]\nrest", "2 rest".to_owned()),
    ] {
        let told = told(text);
        assert_eq!((told.len(), told.last()), (3, Some(&last)), "{text}");
    }
    assert_eq!(told("["), [format!("1/1 {end}")]);
}

#[test]
fn what_is_no_file_of_rows_is_named_once() {
    let utf_16 = |text: &str, mark: &[u8]| {
        let units = text.encode_utf16().flat_map(u16::to_le_bytes);
        [mark, &units.collect::<Vec<u8>>()].concat()
    };
    let parquet = b"PAR1\x15\x04\x15".to_vec();
    for (bytes, what, hint) in [
        (b"\x1f\x8b\x08\0\0".to_vec(), "gzip", "gunzip"),
        (parquet, "Parquet", "data convert --from parquet"),
        (utf_16("{\"a\": 1}\n", b"\xff\xfe"), "UTF-16", "iconv"),
        (utf_16("{\"a\": 1}\n", b""), "UTF-16", "iconv"),
        (b"\x28\xb5\x2f\xfd..".to_vec(), "Zstandard", "unzstd"),
        (b"PK\x03\x04....".to_vec(), "a ZIP", "unzip"),
        (b"\x89PNG\r\n".to_vec(), "an image", "--image_folders"),
        (
            b"image,question,answer\na.png,q,1\n".to_vec(),
            "CSV, as it seems: it begins with `image,question,answer`",
            "data convert",
        ),
        (b"image\tanswer\na.png\t1\n".to_vec(), "CSV", "data convert"),
        (
            b"datasets:\n  - a\n".to_vec(),
            "no JSON objects: it begins with `datasets:`",
            "data convert",
        ),
        (b"<!DOCTYPE html>\n<html>".to_vec(), "a web page", "the file itself"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid x\n".to_vec(),
            "a Git LFS",
            "git lfs pull",
        ),
        (b"\x80\x04\x95\0\0".to_vec(), "no text", "data convert"),
    ] {
        let error = read(&bytes).expect_err(what);
        assert!(error.starts_with(what), "{error}, expected {what}");
        let (_, told) = error.split_once("\nhint: ").expect("a hint");
        assert!(told.contains(hint), "{error}");
    }
}

/// Items are found over the bounds of the blocks that are read.
#[test]
fn long_rows_are_whole() {
    let long = "x".repeat(3 * HEAD_BYTES);
    let list = format!("[{{\"a\": \"{long}\"}},\n{{\"a\": 2}}]");
    let lines = format!("{{\"a\": \"{long}\"}}\n{{\"a\": 2}}\n");
    let pretty = format!("{{\n\"a\": \"{long}\"\n}}\n{{\"a\":\n2}}\n");
    for (text, places) in [(list, [1, 2]), (lines, [1, 2]), (pretty, [1, 4])] {
        let rows = rows(&text);
        let lines: Vec<usize> = rows.iter().map(|row| row.0).collect();
        assert_eq!(lines, places);
        assert!(rows[0].2.len() > long.len() && rows[1].2.ends_with("2}"));
    }
}
