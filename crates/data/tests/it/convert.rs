//! Other people's data as rows: golden files as their libraries write them, and sources made here.

use std::fs;
use std::path::PathBuf;

use base::run_folder::StopFlag;
use config::{DataFormat, RowPer};
use data::convert::{Columns, ConvertError, ConvertOptions, ConvertReport, convert};
use serde_json::{Value, json};
use tempfile::TempDir;

use testing::golden;

mod odd;
mod parquet;

fn options(format: DataFormat, input: PathBuf) -> ConvertOptions {
    ConvertOptions {
        format,
        input: vec![input],
        annotations: None,
        split: None,
        image_folder: None,
        follow_links: false,
        image_prefix: String::new(),
        row_per: RowPer::Sentence,
        negatives: [1, 3],
        none_share: 0.0,
        all_categories: None,
        columns: Columns::default(),
        seed: 42,
    }
}

/// Splits and rows, and what was left out.
type Converted = (Vec<(String, Value)>, ConvertReport);

fn run(options: &ConvertOptions) -> Result<Converted, ConvertError> {
    let mut rows = Vec::new();
    let mut write = |split: &str, row: &Value| {
        rows.push((split.to_owned(), row.clone()));
        Ok(())
    };
    let report = convert(options, &StopFlag::new(), &mut write)?;
    assert_eq!(report.kept, rows.len() as u64);
    Ok((rows, report))
}

fn converted(options: &ConvertOptions) -> Converted {
    run(options).unwrap_or_else(|error| panic!("{error}"))
}

fn failure(options: &ConvertOptions) -> String {
    match run(options) {
        Ok((rows, _)) => panic!("converted: {rows:?}"),
        Err(error) => error.to_string(),
    }
}

fn question(row: &Value) -> &str {
    row["conversations"][0]["value"].as_str().expect("a question")
}

fn answer(row: &Value) -> &Value {
    &row["conversations"][1]["value"]
}

fn reasons(report: &ConvertReport) -> Vec<(&str, u64)> {
    let each = report.skipped.iter();
    each.map(|left| (left.reason.as_str(), left.count)).collect()
}

fn refcoco(protocol: u32) -> ConvertOptions {
    let refs = golden(format!("sources/refs_protocol_{protocol}.p"));
    ConvertOptions {
        annotations: Some(golden("sources/instances.json")),
        ..options(DataFormat::RefCoco, refs)
    }
}

#[test]
fn refcoco_reads_the_same_from_every_protocol() {
    let (rows, report) = converted(&refcoco(2));
    let splits: Vec<&str> = rows.iter().map(|(split, _)| split.as_str()).collect();
    assert_eq!(splits, ["train", "train", "val", "testA", "testA", "testA"]);
    assert_eq!(
        rows[0].1,
        json!({
            "id": 0,
            "image": "COCO_train2014_000000000001.jpg",
            "conversations": [
                {"from": "human", "value": "<image>Please provide the bounding box coordinate of the region this sentence describes: the red cup."},
                {"from": "gpt", "value": "[10, 21, 111, 71]"},
            ],
            "width": 640,
            "height": 480,
            "normal_caption": "the red cup",
        })
    );
    // Over the edge of its image, and cut there.
    assert_eq!(answer(&rows[2].1), "[600, 400, 640, 480]");
    assert!(question(&rows[2].1).ends_with("describes: caf\u{e9} table."));
    assert_eq!(reasons(&report), [("bad_row", 2)]);
    let examples = &report.skipped[0].examples;
    assert!(examples[0].ends_with("ref 4: no annotation 103"), "{examples:?}");
    assert!(examples[1].contains("ref 5: a box without area"), "{examples:?}");
    for protocol in [0, 4] {
        assert_eq!(converted(&refcoco(protocol)).0, rows, "{protocol}");
    }
}

#[test]
fn refcoco_by_split_and_by_object() {
    let wanted = ConvertOptions { split: Some("testA".to_owned()), ..refcoco(4) };
    let (rows, report) = converted(&wanted);
    assert_eq!((rows.len(), reasons(&report)[1]), (3, ("other_split", 3)));
    let mut drawn = Vec::new();
    for seed in 0..20 {
        let by_object = ConvertOptions { row_per: RowPer::Object, seed, ..refcoco(4) };
        let (rows, _) = converted(&by_object);
        assert_eq!(rows.len(), 3);
        assert_eq!(converted(&by_object).0, rows);
        drawn.push(question(&rows[2].1).to_owned());
    }
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 3, "{drawn:?}");
}

fn write(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("writes");
    path
}

#[test]
fn hostile_pickles_are_refused_with_their_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = fs::read(golden("sources/refs_protocol_4.p")).expect("reads");
    let with =
        |bytes: &[u8]| ConvertOptions { input: vec![write(&dir, "refs.p", bytes)], ..refcoco(4) };
    for length in (0..whole.len()).step_by(97) {
        let error = failure(&with(&whole[..length]));
        assert!(error.contains("refs.p: byte ") && error.contains("of the pickle"), "{error}");
    }
    let error = failure(&with(b"cos\nsystem\n(S'touch hacked'\ntR."));
    assert!(
        error.contains("byte 0 of the pickle: `os.system`: only plain data is read"),
        "{error}"
    );
    let error = failure(&with(b"not a pickle"));
    assert!(error.contains("not a pickle?"), "{error}");
    let error = failure(&with(b"}."));
    assert!(error.contains("expected a list of expressions"), "{error}");
    let error = failure(&options(DataFormat::RefCoco, golden("sources/refs_protocol_4.p")));
    assert!(error.starts_with("`annotations` is missing"), "{error}");
}

fn coco(images: Value, annotations: Value) -> Value {
    let categories: Vec<Value> = ["cat", "dog", "cup", "kite", "bus", "pen"]
        .iter()
        .enumerate()
        .map(|(index, name)| json!({"id": index + 1, "name": name}))
        .collect();
    json!({"images": images, "annotations": annotations, "categories": categories})
}

fn crowd_and_boxes() -> Value {
    coco(
        json!([
            {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.jpg", "width": 100, "height": 80},
            {"id": 3, "file_name": "../c.jpg", "width": 100, "height": 80},
        ]),
        json!([
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 30]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 200, 20]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [50, 10, 5, 5]},
            {"id": 4, "image_id": 1, "category_id": 3, "bbox": [0, 0, 90, 70], "iscrowd": 1},
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [50, 10, 0.2, 5]},
            {"id": 6, "image_id": 9, "category_id": 1, "bbox": [50, 10, 5, 5]},
            {"id": 7, "image_id": 3, "category_id": 1, "bbox": [50, null, 5, 5]},
        ]),
    )
}

/// The names that a question asks for.
fn asked(question: &str) -> Vec<String> {
    let list = question.split("objects: [").nth(1).and_then(|rest| rest.split(']').next());
    let names = list.expect("a list").split(", ");
    names.map(|name| name.trim_matches('\'').to_owned()).collect()
}

#[test]
fn coco_asks_for_what_is_there_and_for_drawn_absent_categories() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = write(&dir, "instances.json", crowd_and_boxes().to_string());
    let (mut counts, mut orders) = ([0; 4], Vec::new());
    for seed in 0..40 {
        let options = ConvertOptions { seed, ..options(DataFormat::Coco, input.clone()) };
        let (rows, report) = converted(&options);
        assert_eq!(converted(&options).0, rows, "the same seed draws the same");
        let names = asked(question(&rows[0].1));
        assert!(["cat", "dog"].iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
        // A crowd is there, but no box describes it: neither asked for nor absent.
        assert!(!names.iter().any(|name| name == "cup"), "{names:?}");
        counts[names.len() - 2] += 1;
        orders.push(names[0].clone());
        assert_eq!(
            answer(&rows[0].1),
            "```json\n[\n{\"bbox_2d\": [10, 10, 30, 40], \"label\": \"cat\"},\n{\"bbox_2d\": [0, 0, 100, 20], \"label\": \"dog\"},\n{\"bbox_2d\": [50, 10, 55, 15], \"label\": \"cat\"}\n]\n```"
        );
        assert_eq!(answer(&rows[1].1), "None");
        assert!((1..=3).contains(&asked(question(&rows[1].1)).len()));
        assert_eq!(rows.len(), 2);
        assert_eq!(reasons(&report), [("image_outside", 1)]);
        let boxes = report.boxes_left_out.iter().map(|left| (left.reason.as_str(), left.count));
        assert_eq!(boxes.collect::<Vec<_>>(), [("crowd", 1), ("no_area", 2), ("unknown", 1)]);
    }
    assert!(counts[0] == 0 && counts[1..].iter().all(|count| *count >= 5), "{counts:?}");
    assert!(orders.iter().any(|name| name == "cat") && orders.iter().any(|name| name != "cat"));
}

#[test]
fn none_rows_ask_only_for_what_is_absent() {
    let dir = tempfile::tempdir().expect("a folder");
    let images: Vec<Value> = (0..400)
        .map(|i| json!({"id": i, "file_name": format!("{i}.jpg"), "width": 100, "height": 80}))
        .collect();
    let boxes: Vec<Value> = (0..400)
        .map(|i| json!({"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 50, 50]}))
        .collect();
    let input = write(&dir, "instances.json", coco(json!(images), json!(boxes)).to_string());
    let with_none = ConvertOptions { none_share: 0.25, ..options(DataFormat::Coco, input.clone()) };
    let (rows, _) = converted(&with_none);
    let none: Vec<_> = rows.iter().filter(|(_, row)| answer(row) == "None").collect();
    assert!((70..=130).contains(&none.len()), "{} of 400", none.len());
    assert!(none.iter().all(|(_, row)| !asked(question(row)).contains(&"cat".to_owned())));
    let without = ConvertOptions { negatives: [0, 0], ..options(DataFormat::Coco, input) };
    let (rows, _) = converted(&without);
    assert!(rows.iter().all(|(_, row)| asked(question(row)) == ["cat"]));
}

#[test]
fn broken_json_is_refused_with_line_and_column() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = write(&dir, "x.json", "{\"images\": [\n{\"id\": 1, oops}]}");
    let error = failure(&options(DataFormat::Coco, input));
    assert!(error.contains("x.json:2:11: expected a key in double quotes"), "{error}");
    let input = write(&dir, "y.json", "[{\"a\": 1},\n");
    let error = failure(&options(DataFormat::LlamaFactory, input));
    assert!(error.contains("y.json: line 2: the list has no end"), "{error}");
}

#[test]
fn d3_reads_numpy_boxes_and_draws_hard_negatives_first() {
    let of = |protocol: u32| {
        let folder = golden(format!("sources/d3_protocol_{protocol}"));
        options(DataFormat::D3, folder)
    };
    let (rows, _) = converted(&of(4));
    assert_eq!(rows.len(), 2);
    let names = asked(question(&rows[0].1));
    assert!(names.contains(&"a dog on a lead".to_owned()), "{names:?}");
    // Of its group one description is absent: it comes before those of other groups.
    assert!(names.contains(&"a dog without a lead".to_owned()), "{names:?}");
    assert_eq!(
        answer(&rows[0].1),
        "```json\n[\n{\"bbox_2d\": [1, 2, 31, 42], \"label\": \"a dog on a lead\"},\n{\"bbox_2d\": [6, 7, 16, 17], \"label\": \"a dog on a lead\"},\n{\"bbox_2d\": [6, 7, 16, 17], \"label\": \"a red kite\"}\n]\n```"
    );
    assert_eq!((&rows[0].1["image"], &rows[0].1["width"]), (&json!("group0/0.jpg"), &json!(64)));
    assert_eq!(answer(&rows[1].1), "None");
    for protocol in [2, 5] {
        assert_eq!(converted(&of(protocol)).0, rows, "{protocol}");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let error = failure(&options(DataFormat::D3, dir.path().to_owned()));
    assert!(error.contains("sentences.pkl: "), "{error}");
}

#[test]
fn ovdeval_asks_for_texts_and_hard_negatives() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = coco(
        json!([
            {"id": 0, "file_name": "a.jpg", "height": 80, "width": 100, "text": ["cat"], "neg_text": ["dog", "cat"]},
            {"id": 1, "file_name": "b.jpg", "height": 80, "width": 100},
        ]),
        json!([{"id": 0, "bbox": [11, 17, 50, 40], "category_id": 1, "image_id": 0, "iscrowd": 0}]),
    );
    let color = write(&dir, "color.json", file.to_string());
    let (rows, report) = converted(&options(DataFormat::OvdEval, color));
    assert_eq!((rows.len(), rows[0].0.as_str()), (1, "color"));
    assert_eq!(asked(question(&rows[0].1)), ["cat", "dog"]);
    assert!(answer(&rows[0].1).as_str().expect("text").contains("[11, 17, 61, 57]"));
    assert_eq!(reasons(&report), [("nothing_to_ask", 1)]);
    let logo = write(&dir, "logo.json", file.to_string());
    let (rows, _) = converted(&options(DataFormat::OvdEval, logo));
    assert_eq!(asked(question(&rows[0].1)), ["cat", "dog", "cup", "kite", "bus", "pen"]);
    assert_eq!((rows.len(), answer(&rows[1].1)), (2, &json!("None")));
}

#[test]
fn llama_factory_takes_one_question_and_one_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let items = json!([
        {"messages": [turn("user", "<image>Who?"), turn("assistant", "A cat.")], "images": ["a.jpg"]},
        {"conversations": [{"from": "human", "value": "Sum?"}, {"from": "gpt", "value": "4"}]},
        {"messages": [turn("user", "Two?"), turn("assistant", "Yes")], "images": ["a.jpg", "b.jpg"]},
        {"messages": [turn("system", "Be good"), turn("user", "a"), turn("assistant", "b")]},
        {"messages": [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]},
        {"messages": [turn("assistant", "a"), turn("user", "b")]},
        {"messages": [turn("user", "<image><image>a"), turn("assistant", "b")], "images": ["a.jpg"]},
        {"messages": [turn("user", "<video>a"), turn("assistant", "b")], "videos": ["a.mp4"]},
        {"messages": [turn("user", "a"), turn("assistant", "b")], "images": ["/etc/a.jpg"]},
        {"messages": [turn("user", "<|im_end|>"), turn("assistant", "b")]},
        7,
    ]);
    let input = write(&dir, "list.json", items.to_string());
    let (rows, report) = converted(&options(DataFormat::LlamaFactory, input));
    let questions: Vec<&str> = rows.iter().map(|(_, row)| question(row)).collect();
    assert_eq!(questions, ["<image>Who?", "Sum?", "<image><image>Two?"]);
    assert_eq!(rows[2].1["image"], json!(["a.jpg", "b.jpg"]));
    assert!(rows[1].1.get("image").is_none());
    let expected = [
        ("bad_row", 1),
        ("image_marks", 1),
        ("image_outside", 1),
        ("other_media", 1),
        ("reserved_token", 1),
        ("system_turn", 1),
        ("turns", 2),
    ];
    assert_eq!(reasons(&report), expected);
    let lines: Vec<String> =
        items.as_array().expect("a list").iter().map(Value::to_string).collect();
    let input = write(&dir, "list.jsonl", lines.join("\n"));
    let by_line = converted(&options(DataFormat::LlamaFactory, input));
    assert_eq!(
        by_line.0.iter().map(|(_, row)| row).collect::<Vec<_>>(),
        rows.iter().map(|(_, row)| row).collect::<Vec<_>>()
    );
}

/// `<bbox>` was taught as text, and what a row has no place for was dropped without a word.
#[test]
fn marks_of_ms_swift_are_filled_and_what_changes_the_meaning_is_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let turns = |question: &str, answer: &str| json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
    let objects = json!({"ref": ["the cup"], "bbox": [[10, 20, 60, 80]]});
    let with = |key: &str, value: Value| json!({"messages": turns("a", "b"), key: value});
    let in_turn = |key: &str, value: Value| {
        let mut turns = turns("a", "b");
        turns[1][key] = value;
        json!({ "messages": turns })
    };
    let items = json!([
        {"messages": turns("<image>Find <ref-object>", "<bbox>"), "images": ["a.png"], "objects": objects},
        {"messages": turns("<bbox> or <bbox>?", "<ref-object>"), "objects": {"ref": ["b"], "bbox": [[1.5, 2], [3, 4]], "bbox_type": "real"}},
        {"messages": turns("a", "b"), "objects": objects, "kto_tag": true, "tools": "[]", "history": [], "label": 3},
        {"messages": turns("<image>a", "b"), "images": ["a.png"], "image": "a.png"},
        // All that follow are left out.
        {"messages": turns("<bbox>", "<bbox>"), "objects": objects},
        {"messages": turns("<ref-object>", "b")},
        {"messages": turns("a", "<bbox>"), "objects": {"bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}},
        {"messages": turns("a", "<bbox>"), "objects": {"bbox": [["x", 2]]}},
        {"messages": turns("<video>a", "b")},
        {"messages": turns("<image>a", "see <image>"), "images": ["a.png"]},
        {"messages": turns("<img>a.png</img>a", "b")},
        in_turn("reasoning_content", json!("I look.")),
        in_turn("loss", json!(false)),
        in_turn("weight", json!(0.5)),
        in_turn("tool_calls", json!([{"name": "f"}])),
        with("tools", json!([{"name": "f"}])),
        with("system", json!("Be brief.")),
        with("history", json!([["q", "a"]])),
        with("rejected_response", json!("c")),
        with("chosen", json!({"value": "c"})),
        with("kto_tag", json!(false)),
        with("label", json!(false)),
        with("image_path", json!("a.png")),
        with("Images", json!(["a.png"])),
        {"messages": turns("a", "b"), "images": ["a.png"], "image": "b.png"},
    ]);
    let input = write(&dir, "swift.json", items.to_string());
    let (rows, report) = converted(&options(DataFormat::LlamaFactory, input));
    let said: Vec<(&str, &Value)> =
        rows.iter().map(|(_, row)| (question(row), answer(row))).collect();
    let [first, second] = [json!("[10, 20, 60, 80]"), json!("b")];
    assert_eq!(said[0], ("<image>Find the cup", &first));
    assert_eq!(said[1], ("[1.5, 2] or [3, 4]?", &second));
    assert_eq!(rows.len(), 4);
    let expected = [
        ("bad_row", 1),
        ("hidden_media", 2),
        ("history", 1),
        ("loss", 2),
        ("placeholder", 7),
        ("preference", 2),
        ("reasoning", 1),
        ("system_turn", 1),
        ("tools", 2),
        ("unwanted_answer", 2),
    ];
    assert_eq!(reasons(&report), expected);
}

/// The copies of an image that is listed twice asked for what is there as if it were absent.
#[test]
fn images_and_boxes_that_are_listed_twice_count_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let image =
        |id: u32, name: &str| json!({"id": id, "file_name": name, "width": 100, "height": 100});
    let boxed = |id: u32, image: u32, x: u32| json!({"id": id, "image_id": image, "category_id": 1, "bbox": [x, 10, 20, 20]});
    let file = json!({
        "images": [image(1, "a.png"), image(2, "b.png"), image(1, "a.png"), image(2, "c.png")],
        "annotations": [boxed(1, 1, 10), boxed(1, 1, 10), boxed(2, 2, 10), boxed(2, 2, 30)],
        "categories": [{"id": 1, "name": "cup"}],
    });
    let coco = ConvertOptions {
        negatives: [0, 0],
        ..options(DataFormat::Coco, write(&dir, "twice.json", file.to_string()))
    };
    let (rows, report) = converted(&coco);
    let images: Vec<&Value> = rows.iter().map(|(_, row)| &row["image"]).collect();
    assert_eq!(images, ["a.png", "c.png"]);
    assert!(answer(&rows[1].1).as_str().is_some_and(|text| text.contains("[30, 10, 50, 30]")));
    assert_eq!(reasons(&report), [("repeated_image", 2)]);
    let left: Vec<(&str, u64)> =
        report.boxes_left_out.iter().map(|left| (left.reason.as_str(), left.count)).collect();
    assert_eq!(left, [("repeated_annotation", 2)]);
    assert!(
        report.skipped[0].examples[1]
            .ends_with("image 2 stands there again, otherwise: this one counts")
    );
}

#[test]
fn rows_whose_image_is_not_in_the_folder_are_left_out() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(dir.path().join("img/sub")).expect("creates");
    fs::copy(golden("text/images/one.png"), dir.path().join("img/sub/a.png")).expect("copies");
    let inside = dir.path().join("img/sub/a.png");
    let item = |image: &str| json!({"image": image, "problem": "Where?", "solution": [1, 2, 3, 4]});
    let items = json!([item("a.png"), item("b.png"), item("../sub/../../x.png")]);
    let input = write(&dir, "eval.json", items.to_string());
    let prefixed = ConvertOptions {
        image_folder: Some(dir.path().join("img")),
        image_prefix: "sub/".to_owned(),
        ..options(DataFormat::VlmR1Json, input)
    };
    let (rows, report) = converted(&prefixed);
    assert_eq!((rows.len(), &rows[0].1["image"]), (1, &json!("sub/a.png")));
    assert_eq!(reasons(&report), [("image_missing", 1), ("image_outside", 1)]);
    // An absolute path into the folder is made relative to it.
    let input =
        write(&dir, "absolute.json", json!([item(&inside.display().to_string())]).to_string());
    let absolute = ConvertOptions {
        image_folder: Some(dir.path().join("img")),
        ..options(DataFormat::VlmR1Json, input)
    };
    assert_eq!(converted(&absolute).0[0].1["image"], "sub/a.png");
}

#[test]
fn vlm_r1_evaluation_files_keep_their_keys() {
    let dir = tempfile::tempdir().expect("a folder");
    let items = json!([
        {"image": "a.jpg", "problem": "Where?", "solution": [1.5, 2, 3, 4], "dataset": "refcoco_val", "normal_caption": "it"},
        {"image": "a.jpg", "problem": "How many?", "solution": 3},
        {"image": "a.jpg", "solution": 3},
        {"image": 7, "problem": "?", "solution": 3},
        {"problem": "?", "solution": null},
    ]);
    let input = write(&dir, "rec.json", items.to_string());
    let (rows, report) = converted(&options(DataFormat::VlmR1Json, input));
    assert_eq!(answer(&rows[0].1), "[1.5, 2, 3, 4]");
    assert_eq!((&rows[0].1["dataset"], answer(&rows[1].1)), (&json!("refcoco_val"), &json!(3)));
    assert_eq!((rows.len(), reasons(&report)), (2, vec![("bad_row", 3)]));
}

#[test]
fn being_stopped_is_an_error() {
    let stop = StopFlag::new();
    stop.raise();
    let result = convert(&refcoco(2), &stop, &mut |_, _| Ok(()));
    assert!(matches!(result, Err(ConvertError::Stopped)));
}
