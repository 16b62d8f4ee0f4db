//! Rows that would be trained on otherwise than meant are refused or told, whichever way they are read.

use std::fs;
use std::path::Path;

use data::{
    DataFile, DataFiles, LoadReport, OnBadRow, RowChecks, load_items, load_rows, notices_of,
};
use serde_json::{Value, json};

fn file(dir: &Path, rows: &[Value]) -> DataFile {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let path = dir.join("train.jsonl");
    fs::write(&path, lines.join("\n")).expect("writes");
    DataFile {
        path,
        image_folder: Some(dir.to_owned()),
        reward_method: None,
    }
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
        let expected = format!(
            "train.jsonl:2: `{key}` holds pictures but is not read, and there is no `image`"
        );
        assert!(
            error.contains(&expected) && error.contains("\nhint: name"),
            "{error}"
        );
        assert!(error.contains("data convert"), "{error}");
    }
    let film = load(&[json!({"videos": ["a.mp4"], "conversations": turns("q", "a")})]);
    assert!(
        film.is_err_and(|error| error.contains("`videos` is not read: rows show pictures only"))
    );
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
            error.contains(&format!(
                "missing key `conversations`; `{key}` is not read\nhint: "
            )),
            "{error}"
        );
    }
    let roles = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let error = load(&[json!({ "conversations": roles })]).expect_err("roles");
    assert!(
        error.contains("`conversations[].from`; `role` is not read"),
        "{error}"
    );
    let dir = tempfile::tempdir().expect("a folder");
    let items = file(
        dir.path(),
        &[
            json!({"problem": "q", "solutions": "a"}),
            json!({"problem": "q", "solution": "a", "images": ["a.png"]}),
        ],
    );
    let rows = load_items(&items, &RowChecks::default()).expect("items");
    let causes: Vec<String> = rows
        .into_iter()
        .map(|row| row.expect_err("bad").to_string())
        .collect();
    assert!(
        causes[0].contains("missing key `solution`; `solutions` is not read"),
        "{causes:?}"
    );
    assert!(
        causes[1].contains("train.jsonl:2: `images` holds pictures but is not read"),
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
    assert_eq!(
        starts("warning: the answer holds `<bbox>`, which is read as text: 100 rows: "),
        1
    );
    assert_eq!(
        starts("warning: the answer holds `<image>`, which is read as text: 1 row: "),
        1
    );
    assert_eq!(
        starts("warning: `tools` is not read, though it changes what is asked or taught: 1 row: "),
        1
    );
    let places = lines.iter().filter(|line| line.contains("train.jsonl:1, "));
    assert!(
        places.clone().count() == 3
            && places
                .into_iter()
                .all(|line| line.contains("train.jsonl:3, ..."))
    );
}
