//! Rows that would be trained on otherwise than meant are refused or told, whichever way they are read.

use std::fs;
use std::path::Path;

use data::{
    DataFile, DataFiles, LoadReport, Notices, OnBadRow, ReadKeys, RowChecks, index_rows,
    load_eval_rows, load_rows, notices_of,
};
use serde_json::{Value, json};

fn file(dir: &Path, rows: &[Value]) -> DataFile {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let path = dir.join("train.jsonl");
    fs::write(&path, lines.join("\n")).expect("writes");
    DataFile { path, image_folder: Some(dir.to_owned()), reward_method: None }
}

fn turns(question: &str, answer: &str) -> Value {
    json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}])
}

fn load(rows: &[Value]) -> Result<LoadReport, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let files = vec![file(dir.path(), rows)];
    let loaded = load_rows(&DataFiles { files }, &RowChecks::default(), OnBadRow::Stop);
    loaded.map_err(|error| error.to_string())
}

#[test]
fn a_row_that_would_be_trained_blind_is_refused_with_its_place_and_key() {
    for key in ["images", "image_path", "Image", "img", "pictures"] {
        let good = json!({"conversations": turns("q", "a")});
        let blind = json!({key: ["a.png"], "conversations": turns("q", "a")});
        let error = load(&[good, blind]).expect_err("blind");
        let expected =
            format!("train.jsonl:2: `{key}` holds images but is not read, and there is no `image`");
        assert!(error.contains(&expected) && error.contains("\nhint: name"), "{error}");
        assert!(error.contains("data convert"), "{error}");
    }
    let film = load(&[json!({"videos": ["a.mp4"], "conversations": turns("q", "a")})]);
    assert!(film.is_err_and(|error| error.contains("`videos` is not read: rows show images only")));
    let [text, null] =
        [json!({"id": "7.png"}), json!({"image": null, "images": []})].map(|mut row| {
            row["conversations"] = turns("q", "a");
            row
        });
    assert_eq!(load(&[text, null]).expect("text rows").rows.len(), 2);
}

#[test]
fn a_key_that_is_missing_is_told_by_the_name_it_has() {
    for (key, value) in [
        ("Conversations", turns("q", "a")),
        ("converations", turns("q", "a")),
        ("messages", json!([{"role": "user"}])),
    ] {
        let error = load(&[json!({ key: value })]).expect_err("no conversation");
        assert!(
            error.contains(&format!("missing key `conversations`; `{key}` is not read\nhint: ")),
            "{error}"
        );
    }
    let roles = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let error = load(&[json!({ "conversations": roles })]).expect_err("roles");
    assert!(error.contains("`conversations[].from`; `role` is not read"), "{error}");
    let dir = tempfile::tempdir().expect("a folder");
    let items = file(
        dir.path(),
        &[
            json!({"problem": "q", "solutions": "a"}),
            json!({"problem": "q", "solution": "a", "images": ["a.png"]}),
        ],
    );
    let rows = load_eval_rows(&items, &RowChecks::default(), &mut |_, _| {}).expect("items");
    let causes: Vec<String> =
        rows.into_iter().map(|row| row.expect_err("bad").to_string()).collect();
    assert!(causes[0].contains("missing key `solution`; `solutions` is not read"), "{causes:?}");
    assert!(
        causes[1].contains("train.jsonl:2: `images` holds images but is not read"),
        "{causes:?}"
    );
}

#[test]
fn what_is_odd_about_rows_is_told_once_with_its_number() {
    let mut rows = vec![
        json!({"accu_reward_methods": "math", "conversations": turns("Where is <ref-object>?", "at <bbox>")});
        100
    ];
    rows.push(json!({"tools": [{"name": "f"}], "conversations": turns("q", "see <image>")}));
    rows.push(json!({"meta": {"split": "val"}, "task": "rec", "conversations": turns("q", "a")}));
    let loaded = load(&rows).expect("rows that can be read");
    let lines = notices_of(&loaded.rows, false);
    let starts = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert_eq!(
        starts(
            "warning: `accu_reward_methods` is not read, but `accu_reward_method` is: 100 rows: "
        ),
        1
    );
    assert_eq!(
        starts("warning: the question holds `<ref-object>`, which is read as text: 100 rows: "),
        1
    );
    assert_eq!(starts("warning: the answer holds `<bbox>`, which is read as text: 100 rows: "), 1);
    assert_eq!(starts("warning: the answer holds `<image>`, which is read as text: 1 row: "), 1);
    assert_eq!(
        starts("warning: `tools` is not read, though it changes what is asked or taught: 1 row: "),
        1
    );
    let places = lines.iter().filter(|line| line.contains("train.jsonl:1, "));
    assert!(
        places.clone().count() == 3
            && places.into_iter().all(|line| line.contains("train.jsonl:3, ..."))
    );
}

/// Python's `json`, by which VLM-R1 and TRL read rows, takes all of these.
#[test]
fn what_python_reads_is_read_in_columns_of_ones_own_and_told() {
    let deep = "[".repeat(500) + &"]".repeat(500);
    let dir = tempfile::tempdir().expect("a folder");
    let write = |text: &str| {
        let path = dir.path().join("train.jsonl");
        fs::write(&path, text).expect("writes");
        DataFile { path, image_folder: None, reward_method: None }
    };
    let turns = |answer: &str| {
        format!(
            r#""conversations": [{{"from": "human", "value": "q"}}, {{"from": "gpt", "value": {answer}}}]"#
        )
    };
    for (value, told, refused) in [
        ("NaN", "`score` holds `NaN`, read as null", "`NaN`, expected"),
        ("Infinity", "holds `Infinity`", "`Infinity`, expected"),
        ("-Infinity", "holds `-Infinity`", "`-Infinity`, expected"),
        ("1e400", "holds `Infinity`, read as null", "`Infinity`, expected"),
        (
            "\"a \\ud83d\"",
            "holds half of a surrogate pair, read as U+FFFD",
            "half of a surrogate pair",
        ),
        (
            "123456789012345678901234567890",
            "holds whole numbers of more than 64 bits",
            "64 bits cannot hold",
        ),
        (deep.as_str(), "", ""),
    ] {
        let good = write(&format!("{{\"score\": {{\"a\": [0, {value}]}}, {}}}\n", turns("\"a\"")));
        let mut seen = Vec::new();
        let files = || DataFiles { files: vec![good.clone()] };
        let checks = RowChecks::default();
        let mut notices = Notices::new(ReadKeys::TRAINING, false);
        let rows = index_rows(&files(), &checks, OnBadRow::Stop, &mut |example, lost| {
            seen.push(example.columns["score"]["a"].clone());
            notices.look_at_example(example, lost);
            true
        });
        let again = rows.expect(value).rows.get(0).expect("the row");
        assert_eq!(again.columns["score"]["a"], seen[0]);
        assert_eq!(load_eval_rows(&good, &checks, &mut |_, _| {}).expect("items").len(), 1);
        let lines = notices.lines();
        assert_eq!(lines.len(), usize::from(!told.is_empty()), "{value}: {lines:?}");
        assert!(lines.iter().all(|line| line.contains(told)), "{lines:?}");
        for place in ["[1, 2, VALUE]", "VALUE"] {
            let bad = write(&format!("{{{}}}\n", turns(&place.replace("VALUE", value))));
            let loaded =
                load_rows(&DataFiles { files: vec![bad.clone()] }, &checks, OnBadRow::Stop);
            let item = load_eval_rows(&bad, &checks, &mut |_, _| {}).expect("items").remove(0);
            if refused.is_empty() {
                assert!(loaded.is_ok() && item.is_ok(), "{place}");
                continue;
            }
            for error in [loaded.expect_err(value).to_string(), item.expect_err(value).to_string()]
            {
                let expected = error.contains("train.jsonl:1: `conversations[1].value");
                assert!(expected && error.contains(refused), "{error}");
            }
        }
    }
    let null = write(&format!("{{{}}}", turns("null")));
    let row = load_rows(&DataFiles { files: vec![null] }, &RowChecks::default(), OnBadRow::Stop);
    let rows = row.expect("as VLM-R1 takes it").rows;
    assert_eq!(rows[0].solution, "<answer> None </answer>");
    let lines = notices_of(&rows, false);
    assert!(
        lines[0].starts_with("warning: the answer is null, taken for the text `None`: 1 row: "),
        "{lines:?}"
    );
}

#[test]
fn rows_that_stand_inside_another_are_told_with_the_way_out() {
    let row = json!({"conversations": turns("q", "a")});
    for (file, cause) in [
        (
            json!({"data": [row]}),
            "the rows stand in `data` of one object\nhint: `jq -c '.data[]' FILE > rows.jsonl`",
        ),
        (
            json!({"my rows": [{"problem": "q", "solution": "a"}], "version": 1}),
            "`jq -c '.[\"my rows\"][]' FILE",
        ),
        (
            json!({"images": [], "annotations": [{"bbox": [1]}]}),
            "COCO's form\nhint: `vlm-r1 data convert --from coco`",
        ),
    ] {
        let error = load(&[file]).expect_err(cause);
        assert!(error.contains("train.jsonl:1: ") && error.contains(cause), "{error}");
    }
}
