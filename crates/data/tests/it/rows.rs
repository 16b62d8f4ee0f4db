//! Training files: what is read, and how each bad row is named.

use std::fs;
use std::path::Path;

use base::{Example, SourceLine};
use data::{
    DataError, DataFile, DataFiles, ImageFolder, LoadReport, OnBadRow, RowChecks, Rows, index_rows,
    load_rows, parse_row, split,
};
use proptest::prelude::*;
use python::json::Lost;
use tempfile::TempDir;

use testing::golden;

/// A folder with two images under `img/` and one beside it.
fn data_folder() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(dir.path().join("img/sub")).expect("creates");
    for (from, to) in [("one", "img/a.png"), ("wide", "img/sub/b.png"), ("tiny", "secret.png")] {
        fs::copy(golden("text/images").join(format!("{from}.png")), dir.path().join(to))
            .expect("copies");
    }
    dir
}

fn row(image: &str, question: &str, answer: &str) -> String {
    let image = if image.is_empty() { String::new() } else { format!("\"image\": {image}, ") };
    format!(
        r#"{{{image}"conversations": [{{"from": "human", "value": "{question}"}}, {{"from": "gpt", "value": {answer}}}]}}"#
    )
}

fn load(
    dir: &Path,
    bytes: &[u8],
    checks: &RowChecks,
    policy: OnBadRow,
) -> Result<LoadReport, DataError> {
    let path = dir.join("train.jsonl");
    fs::write(&path, bytes).expect("writes");
    let files = vec![DataFile { path, image_folder: Some(dir.join("img")), reward_method: None }];
    load_rows(&DataFiles { files }, checks, policy)
}

/// The message for a file with one bad row, without the folder and the closing hint.
fn message(dir: &Path, bad: &str) -> String {
    let error = load(dir, bad.as_bytes(), &RowChecks::default(), OnBadRow::Stop).expect_err(bad);
    let text = error.to_string().replace(&format!("{}/", dir.display()), "");
    text.split("\nhint: ").next().unwrap_or_default().to_owned()
}

#[test]
fn lists_pair_up() {
    let files =
        DataFiles::from_lists("a.jsonl:b.jsonl", Some("x:y"), Some("math:default")).expect("pairs");
    assert_eq!(files.files.len(), 2);
    assert_eq!(files.files[1].image_folder.as_deref(), Some(Path::new("y")));
    assert_eq!(files.files[0].reward_method.as_deref(), Some("math"));
    for (paths, folders, methods, text) in [
        ("a:b", "x", None, "`data_file_paths` lists 2 entries but `image_folders` lists 1"),
        ("a", "x", Some("m:n"), "`data_file_paths` lists 1 entries but `reward_method` lists 2"),
        ("a::b", "x:y:z", None, "`data_file_paths`: entry 2 of the `:`-separated list is empty"),
    ] {
        let error =
            DataFiles::from_lists(paths, Some(folders), methods).expect_err(text).to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn good_rows_become_samples() {
    let dir = data_folder();
    let lines = [
        row(r#""a.png""#, "<image>Where?", r#""<answer>[1, 2, 3, 4]</answer>""#),
        row(r#"["a.png", "sub/b.png"]"#, "<image><image>Differ?", r#""yes""#),
        row(r#"["a.png", "sub/../a.png"]"#, "No marks?", "3"),
        row("", "Text only?", "0.5"),
        row("null", "Null image?", r#""x""#),
    ];
    // A byte order mark, Windows line ends, blank lines, no newline at the end.
    let bytes = format!(
        "\u{feff}{}\r\n\r\n{}\n  \n{}\n{}\r\n{}",
        lines[0], lines[1], lines[2], lines[3], lines[4]
    );
    let report = load(dir.path(), bytes.as_bytes(), &RowChecks::default(), OnBadRow::Stop)
        .expect("good rows");
    assert!(report.skipped.is_empty());
    let seen: Vec<_> = report
        .rows
        .iter()
        .map(|s| (s.source.line, s.images.len(), s.problem.as_str(), s.solution.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (1, 1, "Where?", "<answer> [1, 2, 3, 4] </answer>"),
            (3, 2, "Differ?", "<answer> yes </answer>"),
            (5, 2, "No marks?", "<answer> 3 </answer>"),
            (6, 0, "Text only?", "<answer> 0.5 </answer>"),
            (7, 0, "Null image?", "<answer> x </answer>"),
        ]
    );
    assert_eq!(report.rows[0].images[0], dir.path().join("img/a.png"));
}

#[test]
fn each_bad_row_is_named() {
    let dir = data_folder();
    let path = dir.path();
    fs::write(path.join("img/text.png"), "no image at all").expect("writes");
    fs::write(path.join("img/empty.png"), "").expect("writes");
    let ok = r#""x""#;
    for (bad, text) in [
        ("{", "1: broken JSON at column 2: it ends too early"),
        ("\n\n[1]", "3 (item 1): expected a JSON object, got number `1`"),
        ("{}", "1: missing key `conversations`"),
        (r#"{"conversations": {}}"#, "1: `conversations`: expected a list, got an object"),
        (
            r#"{"conversations": []}"#,
            "1: `conversations`: expected one question and one answer, got 0 turns",
        ),
        (
            r#"{"conversations": [{"from": "gpt", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            "1: `conversations`: turn 1 is from `gpt`, expected `human`",
        ),
        (
            r#"{"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}"#,
            "1: missing key `conversations[].value`",
        ),
        (
            &row("5", "q", ok),
            "1: `image`: expected a file name or a list of file names, got number `5`",
        ),
        (
            &row(r#"["a.png", 1]"#, "q", ok),
            "1: `image`: expected a file name or a list of file names, got number `1`",
        ),
        (
            &row(r#"["a.png", "a.png"]"#, "<image><image><image>q", ok),
            "1: 3 <image> marks but 2 images",
        ),
        (&row("", "<image>q", ok), "1: 1 <image> mark but 0 images"),
        (&row(r#""a.png""#, "<image>", ok), "1: the question is empty"),
        (
            &row("", "a <|image_pad|> b", ok),
            "1: the question holds the literal token `<|image_pad|>`",
        ),
        (
            &row("", "<|vision_start|>", ok),
            "1: the question holds the literal token `<|vision_start|>`",
        ),
        (&row("", "q", r#""a<|im_end|>""#), "1: the answer holds the literal token `<|im_end|>`"),
        (
            &row("", "q", "[1, NaN]"),
            "1: `conversations[1].value[1]` holds `NaN`, expected a finite number or a text",
        ),
        (&row(r#""none.png""#, "q", ok), "1: image `none.png` is not in `img`"),
        (&row(r#""sub""#, "q", ok), "1: image `sub`: not a regular file"),
        (
            &row(r#""../secret.png""#, "q", ok),
            "1: image `../secret.png` leaves its image folder `img`",
        ),
        (
            &row(r#""../nothing.png""#, "q", ok),
            "1: image `../nothing.png` leaves its image folder `img`",
        ),
        (&row(r#""/dev/null""#, "q", ok), "1: image `/dev/null` leaves its image folder `img`"),
    ] {
        let text = text.replace("`img`", &format!("`{}`", path.join("img").display()));
        let text = text.replace(&format!("{}/", path.display()), "");
        assert_eq!(message(path, bad), format!("train.jsonl:{text}"));
    }
    for (name, text) in [("text.png", "not an image"), ("empty.png", "empty file")] {
        let message = message(path, &row(&format!("\"{name}\""), "q", ok));
        assert!(message.starts_with(&format!("train.jsonl:1: img/{name}: {text}")), "{message}");
    }
    let method = row("", "q", ok).replacen('{', "{\"accu_reward_method\": 1, ", 1);
    assert!(message(path, &method).contains("`accu_reward_method`: expected a string"));
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_refused() {
    let dir = data_folder();
    let link = dir.path().join("img/link.png");
    std::os::unix::fs::symlink(dir.path().join("secret.png"), &link).expect("links");
    let text = message(dir.path(), &row(r#""link.png""#, "q", "1"));
    assert!(text.contains("image `link.png` leaves its image folder"), "{text}");
    // A link that stays inside is as good as its target.
    fs::remove_file(&link).expect("removes");
    std::os::unix::fs::symlink(dir.path().join("img/a.png"), &link).expect("links");
    let good = row(r#""link.png""#, "q", "1");
    load(dir.path(), good.as_bytes(), &RowChecks::default(), OnBadRow::Stop).expect("stays inside");
}

#[test]
fn invalid_utf8_is_named() {
    let dir = data_folder();
    let bytes = [row("", "q", "1").as_bytes(), b"\n{\"a\": \"\xff\"}\n"].concat();
    let error =
        load(dir.path(), &bytes, &RowChecks::default(), OnBadRow::Stop).expect_err("not UTF-8");
    assert!(
        error.to_string().contains("train.jsonl:2: not UTF-8 at byte 7 of the line"),
        "{error}"
    );
}

#[test]
fn stop_lists_and_skip_goes_on() {
    let dir = data_folder();
    let mut lines = vec!["broken".to_owned(); 13];
    lines.insert(2, row("", "q", "1"));
    let bytes = lines.join("\n");
    let checks = RowChecks::default();
    let error =
        load(dir.path(), bytes.as_bytes(), &checks, OnBadRow::Stop).expect_err("13 bad rows");
    let text = error.to_string();
    assert!(text.contains("train.jsonl:1: broken JSON"), "{text}");
    assert!(text.contains("\n12 more bad rows:\n"), "{text}");
    assert!(text.contains("train.jsonl:12:") && !text.contains("train.jsonl:13:"), "{text}");
    assert!(text.contains("\n  ... and 2 more\nhint: `--on_bad_row skip`"), "{text}");

    let report = load(dir.path(), bytes.as_bytes(), &checks, OnBadRow::Skip).expect("one good row");
    assert_eq!((report.rows.len(), report.skipped.len()), (1, 13));
    assert_eq!(report.rows[0].source.line, 3);
    assert_eq!(report.skipped[2].source_line.line, 4);
}

#[test]
fn files_without_rows_are_errors() {
    let dir = data_folder();
    let checks = RowChecks::default();
    for policy in [OnBadRow::Stop, OnBadRow::Skip] {
        for empty in ["", "\n \n"] {
            let error = load(dir.path(), empty.as_bytes(), &checks, policy).expect_err("no rows");
            assert!(
                error.to_string().ends_with("train.jsonl: no rows: the file is empty"),
                "{error}"
            );
        }
    }
    let error =
        load(dir.path(), b"{}\n{}", &checks, OnBadRow::Skip).expect_err("all bad").to_string();
    assert!(
        error.contains("no usable row: all 2 are bad") && error.contains("train.jsonl:1: missing"),
        "{error}"
    );
    let files = DataFiles::from_lists("/nowhere.jsonl", None, None).expect("pairs");
    let error = load_rows(&files, &checks, OnBadRow::Skip).expect_err("missing").to_string();
    assert!(error.starts_with("/nowhere.jsonl: "), "{error}");
}

#[test]
fn a_missing_image_folder_matters_only_to_images() {
    let dir = data_folder();
    let path = dir.path().join("train.jsonl");
    let load = |folder: Option<&str>| {
        let file = DataFile {
            path: path.clone(),
            image_folder: folder.map(Into::into),
            reward_method: None,
        };
        load_rows(&DataFiles { files: vec![file] }, &RowChecks::default(), OnBadRow::Stop)
    };
    for (folder, text) in [
        (Some("/no/such/folder"), ":1: the image folder `/no/such/folder` is not there"),
        (None, ":1: the row names an image but no image folder is given\nhint: `--image_folders`"),
    ] {
        fs::write(&path, row("", "q", "1")).expect("writes");
        load(folder).expect("text only");
        fs::write(&path, row(r#""a.png""#, "q", "1")).expect("writes");
        let error = load(folder).expect_err("no folder").to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn rec_wants_boxes() {
    let dir = data_folder();
    let checks = RowChecks { expect_box: true, ..RowChecks::default() };
    let bytes =
        format!("{}\n{}", row("", "q", r#""[1, 2, 3, 4]""#), row("", "q", r#""on the left""#));
    let error = load(dir.path(), bytes.as_bytes(), &checks, OnBadRow::Stop).expect_err("no box");
    assert!(error.to_string().contains("train.jsonl:2: the answer holds no box"), "{error}");
}

#[test]
fn a_split_is_exact_and_repeatable() {
    let dir = data_folder();
    let bytes: String = (0..10).map(|i| row("", &format!("q{i}"), "1") + "\n").collect();
    let load = || index(dir.path(), bytes.as_bytes(), &mut |_, _| true);
    let (train, validation) = split(load(), 0.25, 42).expect("splits");
    assert_eq!((train.len(), validation.len()), (7, 3));
    let lines = |part: &Rows| {
        let lines = part.iter().map(|row| row.expect("a row").source.line);
        lines.collect::<Vec<_>>()
    };
    assert!(lines(&train).is_sorted() && lines(&validation).is_sorted());
    let mut all = [lines(&train), lines(&validation)].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=10));
    assert_eq!(lines(&split(load(), 0.25, 42).expect("splits").1), lines(&validation));
    assert_eq!(split(load(), 0.0, 42).expect("splits").1.len(), 0);
    for bad in [1.0, -0.1, f64::NAN, 0.95] {
        assert!(split(load(), bad, 42).is_err(), "{bad}");
    }
}

/// The rows of a file with this content, without those that are not kept.
fn index(dir: &Path, bytes: &[u8], keep: &mut dyn FnMut(&Example, &[Lost]) -> bool) -> Rows {
    let path = dir.join("train.jsonl");
    fs::write(&path, bytes).expect("writes");
    let file = DataFile {
        path,
        image_folder: Some(dir.join("img")),
        reward_method: Some("math".to_owned()),
    };
    let files = DataFiles { files: vec![file] };
    let report = index_rows(&files, &RowChecks::default(), OnBadRow::Stop, keep);
    report.expect("good rows").rows
}

#[test]
fn indexed_rows_are_those_that_were_read() {
    let dir = data_folder();
    let rows = [
        row(r#""a.png""#, "<image>Where?", "[1, 2, 3, 4]"),
        row(r#"["sub/b.png", "a.png"]"#, "no", "3"),
        row("", "Text only, \\u00e9?", "0.5"),
    ];
    let list = format!("[{},\n{}, {}]", rows[0], rows[1], rows[2]);
    let pretty = rows.concat().replace(", \"conversations", ",\n\n\"conversations");
    for bytes in [rows.join("\r\n\n"), list, pretty] {
        let mut seen = Vec::new();
        let indexed = index(dir.path(), bytes.as_bytes(), &mut |example, _| {
            seen.push(serde_json::to_value(example).expect("JSON"));
            example.problem != "no"
        });
        // Images may go; they are missed when they are decoded.
        fs::remove_file(dir.path().join("img/a.png")).expect("removes");
        let read: Vec<_> = indexed
            .iter()
            .map(|example| serde_json::to_value(example.expect("a row")).expect("JSON"))
            .collect();
        assert_eq!(read, [seen[0].clone(), seen[2].clone()], "{bytes}");
        assert_eq!(read[0]["accu_reward_method"], "math");
        fs::copy(golden("text/images/one.png"), dir.path().join("img/a.png")).expect("copies");
    }
}

#[test]
fn a_file_that_changes_under_a_run_is_noticed() {
    let dir = data_folder();
    let line = |question: &str| row("", question, "1") + "\n";
    let before = line("one") + &line("two");
    let rows = index(dir.path(), before.as_bytes(), &mut |_, _| true);
    let path = dir.path().join("train.jsonl");
    let changed = |rows: &Rows, index: usize| rows.get(index).map_err(|error| error.to_string());
    // Written anew under its name: the run goes on with what it began with.
    fs::write(dir.path().join("new"), line("three")).expect("writes");
    fs::rename(dir.path().join("new"), &path).expect("renames");
    assert_eq!(changed(&rows, 1).expect("the old row").problem, "two");
    let rows = index(dir.path(), before.as_bytes(), &mut |_, _| true);
    fs::write(&path, line("one") + &line("owt")).expect("writes");
    assert_eq!(changed(&rows, 0).expect("unchanged").problem, "one");
    let error = changed(&rows, 1).expect_err("another row");
    assert!(
        error.contains("train.jsonl:2: the file was changed since the run began\nhint: "),
        "{error}"
    );
    fs::write(&path, line("one")).expect("writes");
    assert!(changed(&rows, 1).is_err_and(|error| error.contains("was changed")));
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        template in prop::sample::select(vec![
            row(r#""a.png""#, "<image>q", r#""[1, 2, 3, 4]""#),
            row(r#"["a.png", "b"]"#, "q", "3.5"),
        ]),
        cut in 0usize..150,
    ) {
        // Random bytes, and good rows with random bytes in the middle.
        let source = || SourceLine::new("f", 1);
        let checks = RowChecks { expect_box: true, ..RowChecks::default() };
        let folder = ImageFolder::new(Some(Path::new("/none")));
        let _ = parse_row(&bytes, source(), &folder, None, &checks);
        let cut = cut.min(template.len());
        let (head, tail) = template.as_bytes().split_at(cut);
        let spliced = [head, &bytes[..bytes.len().min(4)], tail].concat();
        let _ = parse_row(&spliced, source(), &folder, None, &checks);
    }
}
