//! `reward` from rows to rows.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::run::say;

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn write(dir: &TempDir, rows: &[Value]) -> String {
    let path = dir.path().join("rows.jsonl");
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, text.concat()).unwrap();
    path.display().to_string()
}

#[test]
fn answers_are_scored_and_summed_up() {
    let dir = TempDir::new().unwrap();
    let input = write(
        &dir,
        &[
            json!({"completion": "<think>a</think> <answer>Cat.</answer>", "solution": "<answer> cat </answer>",
                   "accu_reward_method": "all_match", "mine": 7}),
            json!({"completion": "cat", "solution": "<answer> cat </answer>"}),
            json!({"completion": "<think></think><answer>dog</answer>", "solution": "<answer> cat </answer>"}),
        ],
    );
    let said = say(&format!(
        "reward --input {input} --reward_method all_match --reward_weights 1 0.5"
    ));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let rows = lines(&said.stdout);
    let scores: Vec<Value> = rows.iter().map(|row| row["rewards"].clone()).collect();
    let expected =
        [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)].map(|(a, f)| json!({"accuracy": a, "format": f}));
    assert_eq!(scores, expected);
    let totals: Vec<f64> = rows
        .iter()
        .map(|row| row["reward"].as_f64().unwrap())
        .collect();
    assert_eq!(totals, [1.5, 1.0, 0.5]);
    assert_eq!(rows[0]["mine"], 7);
    let summary = "accuracy: mean 0.6667, 0.0000 to 1.0000, 3 rows\n\
                   format: mean 0.6667, 0.0000 to 1.0000, 3 rows\n\
                   reward: mean 1.0000, 0.5000 to 1.5000, 3 rows\n";
    assert_eq!(said.stderr, summary);
}

#[test]
fn boxes_are_scaled_by_the_sizes_of_row_or_image() {
    let dir = TempDir::new().unwrap();
    // 8 x 4 patches of 14 px: the model saw 112 x 56 of an image of 224 x 112.
    image::RgbImage::new(224, 112)
        .save(dir.path().join("a.png"))
        .unwrap();
    let completion = "<think>t</think><answer>{\"bbox_2d\": [10, 10, 60, 50]}</answer>";
    let row = json!({"completion": completion, "solution": "<answer> [20, 20, 120, 100] </answer>", "image_grid_thw": [1, 4, 8]});
    let with = |key: &str, value: Value| {
        let mut row = row.clone();
        row[key] = value;
        row
    };
    let input = write(
        &dir,
        &[
            with("image_size", json!([224, 112])),
            with("image_path", json!(["a.png"])),
        ],
    );
    let output = dir.path().join("out.jsonl");
    let flags = "--task_type rec --is_reward_customized_from_vlm_module true --family qwen2_5_vl";
    let said = say(&format!(
        "reward --input {input} --output {} {flags}",
        output.display()
    ));
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), ""),
        "{}",
        said.stderr
    );
    for row in lines(&fs::read_to_string(&output).unwrap()) {
        assert_eq!(row["rewards"], json!({"accuracy": 1.0, "format": 1.0}));
    }
}

#[test]
fn bad_rows_are_named_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("out.jsonl");
    let good = json!({"completion": "a", "solution": "<answer> a </answer>", "accu_reward_method": "all_match"});
    for (row, cause) in [
        (json!([1]), "got a list of 1, expected a JSON object"),
        (json!({"solution": "a"}), "missing key `completion`"),
        (
            json!({"completion": "a", "solution": 5}),
            "`solution`: got number `5`, expected text",
        ),
        (
            json!({"completion": "a", "solution": "a", "image_size": [1, -2]}),
            "`image_size`: got a list of 2, expected 2 whole numbers",
        ),
        (
            json!({"completion": "a", "solution": "a", "accu_reward_method": "all_mach"}),
            "unknown accuracy method `all_mach`",
        ),
        (
            json!({"completion": "a", "solution": "a", "image_path": "../a.png"}),
            "leads out of the image folder",
        ),
        (
            json!({"completion": "a", "solution": "a", "image_path": "none.png"}),
            "no such file",
        ),
    ] {
        let input = write(&dir, &[good.clone(), row]);
        let said = say(&format!(
            "reward --input {input} --output {}",
            output.display()
        ));
        assert_eq!(said.code, Some(1), "{cause}");
        assert!(
            said.stderr.starts_with(&format!("error: {input}:2: ")),
            "{}",
            said.stderr
        );
        assert!(said.stderr.contains(cause), "{cause}: {}", said.stderr);
        assert!(!output.exists());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "something is left over"
        );
    }
    fs::write(dir.path().join("rows.jsonl"), "{\"completion\": \"a\"\n").unwrap();
    let said = say(&format!(
        "reward --input {}",
        dir.path().join("rows.jsonl").display()
    ));
    assert!(
        said.stderr.contains("rows.jsonl:1: broken JSON at column"),
        "{}",
        said.stderr
    );
}

#[test]
fn an_unknown_reward_is_refused_with_the_nearest() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, &[json!({"completion": "a", "solution": "a"})]);
    let said = say(&format!("reward --input {input} --reward_funcs acuracy"));
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr
            .starts_with("error: unknown reward `acuracy`\nhint: did you mean `accuracy`?"),
        "{}",
        said.stderr
    );
}
