//! `data check`, as a user calls it: what it says, writes and ends with.

use std::fs;
use std::path::Path;

use image::RgbImage;
use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{checkpoint, golden};

use crate::program::{CallResult, call};

fn write(dir: &Path, rows: &[Value]) {
    fs::create_dir_all(dir.join("images")).unwrap();
    let shown_image = RgbImage::from_fn(100, 100, |x, y| image::Rgb([x as u8, y as u8, 90]));
    shown_image.save(dir.join("images/1.png")).unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    fs::write(dir.join("train.jsonl"), lines.join("\n")).unwrap();
}

fn row(question: &str, answer: &str) -> Value {
    let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    json!({"image": "1.png", "conversations": turns})
}

fn check(dir: &Path, more: &str) -> CallResult {
    call(&format!(
        "data check --data_file_paths {data} --image_folders {images} {more}",
        data = dir.join("train.jsonl").display(),
        images = dir.join("images").display(),
    ))
}

const REC: &str = "--task_type rec --is_reward_customized_from_vlm_module true";

#[test]
fn good_rows_pass_and_are_summed_up() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &[row("Where?", "[10, 20, 60, 90]"), row("And?", "[10, 20, 20, 30]")]);
    let result = check(dir.path(), REC);
    assert_eq!((result.code, result.stderr.as_str()), (Some(0), ""), "{}", result.stdout);
    for line in [
        "train.jsonl: 2 rows, 2 without errors\n",
        "images: 1 different one\n",
        "true answers are scored by: accuracy\n",
        "boxes in a row: 1: 2\n",
        "share of the image: 1-10 %: 1, 10-50 %: 1\n",
        "\n0 errors, 0 warnings\n",
    ] {
        assert!(result.stdout.contains(line), "{line}\n{}", result.stdout);
    }
}

#[test]
fn errors_fail_and_warnings_only_where_strict() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &[row("Where?", "[10, 20, 60, 90]"), row("Where?", "[10, 20, 60, 90]")]);
    let result = check(dir.path(), REC);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert!(
        result.stdout.contains("duplicate_row: 1 - expected each row once\n"),
        "{}",
        result.stdout
    );
    let result = check(dir.path(), &format!("{REC} --strict true"));
    assert_eq!(result.code, Some(1));
    assert_eq!(result.stderr, "error: 0 errors and 1 warning in the data\n");
    write(dir.path(), &[row("Where?", "[10, 20, 60, 90]"), row("Where?", "[60, 20, 10, 90]")]);
    let result = check(dir.path(), REC);
    assert_eq!(result.code, Some(1), "{}", result.stdout);
    assert!(result.stdout.contains("train.jsonl:2: the answer holds no box"), "{}", result.stdout);
}

#[test]
fn true_answers_that_earn_little_are_told() {
    let dir = TempDir::new().unwrap();
    // Rounded to whole pixels of the model's input, two pixels are not much.
    write(dir.path(), &[row("Where?", "[10, 20, 60, 90]"), row("Small?", "[10, 10, 12, 12]")]);
    let result =
        check(dir.path(), &format!("{REC} --reward_funcs accuracy point_in_box click giou"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let told = "train.jsonl:2: `accuracy` gives the true answer 0.";
    assert!(result.stdout.contains(told), "{}", result.stdout);
    assert!(!result.stdout.contains("train.jsonl:1:"), "{}", result.stdout);
    assert!(result.stdout.contains("scored by: accuracy, point_in_box, giou, click\n"));
    // A solution that the method cannot read is an error, one that scores low a warning.
    let boxes = "```json\n[{\"bbox_2d\": [1, 2, 30, 40], \"label\": \"a\"}]\n```";
    write(
        dir.path(),
        &[row("a?", boxes), row("b?", "```json\n[{\"bbox\": 1}]\n```"), row("c?", "None")],
    );
    let result = check(dir.path(), "--reward_method odLength");
    assert_eq!(result.code, Some(1), "{}", result.stdout);
    assert!(result.stdout.contains("unscorable: 1 - "), "{}", result.stdout);
    assert!(!result.stdout.contains("low_true_score"), "{}", result.stdout);
}

#[test]
fn prompts_are_counted_with_a_model() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &[row("Where?", "[10, 20, 60, 90]")]);
    let model = checkpoint("nested");
    let flags = format!("{REC} --model_name_or_path {} --max_prompt_length 8", model.display());
    let result = check(dir.path(), &flags);
    assert_eq!(result.code, Some(1), "{}", result.stdout);
    assert!(result.stdout.contains("prompt_too_long: 1 - "), "{}", result.stdout);
    assert!(result.stdout.contains("\nprompts: "), "{}", result.stdout);
}

#[test]
fn the_file_and_the_page_hold_what_was_found() {
    let dir = TempDir::new().unwrap();
    let evil = "<script>alert(1)</script>";
    write(dir.path(), &[row(evil, "[10, 20, 60, 90]"), row("Out?", "[10, 20, 160, 90]")]);
    let (json, html) = (dir.path().join("found.json"), dir.path().join("data.html"));
    let result =
        check(dir.path(), &format!("{REC} --json {} --html {}", json.display(), html.display()));
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    let found: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((&found["errors"], &found["warnings"]), (&json!(1), &json!(0)));
    let finding = &found["findings"][0];
    assert_eq!((&finding["kind"], &finding["level"]), (&json!("box_outside"), &json!("error")));
    assert!(finding["examples"][0]["place"].as_str().unwrap().ends_with("train.jsonl:2"));
    assert_eq!(found["answers"]["boxes_per_row"], json!([0, 2, 0, 0, 0, 0]));
    let page = fs::read_to_string(html).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>"));
    // The box of row 1: 100 px are drawn 320 wide.
    assert!(page.contains(r#"x="32.0" y="64.0" width="160.0" height="224.0""#));
    assert!(page.contains("Rows with findings") && page.contains("box_outside"));
    assert!(!page.contains("<th></th>") && !page.contains("<th class=\"number\"></th>"));
}

#[test]
fn a_training_configuration_can_be_taken_as_it_is() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &[row("Where?", "[10, 20, 60, 90]")]);
    let config = dir.path().join("run.yaml");
    let text = format!(
        "data_file_paths: {}\nimage_folders: {}\ntask_type: rec\nlearning_rate: 1e-5\nnum_generations: 4\noutput_dir: out\n",
        dir.path().join("train.jsonl").display(),
        dir.path().join("images").display()
    );
    fs::write(&config, text).unwrap();
    let result = call(&format!("data check --config {}", config.display()));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert!(result.stderr.starts_with("warning: no effect here: `--learning_rate` (of training)"));
    let result = call("data check --data_file_path x");
    let hint = "error: unknown flag `--data_file_path`\nhint: did you mean `--data_file_paths`?\n";
    assert_eq!((result.code, result.stderr.as_str()), (Some(2), hint));
    let result = call("data chek");
    assert_eq!(result.stderr, "error: unknown command `chek`\nhint: did you mean `check`?\n");
}

#[test]
fn boxes_that_no_reward_compares_are_told() {
    let dir = TempDir::new().unwrap();
    let boxes = ["[10, 20, 60, 90]", "[10, 20, 50, 70]"];
    write(dir.path(), &boxes.map(|answer| row("Where?", answer)));
    let told = "no_box_reward: 1 - expected a reward that compares boxes";
    for (more, rows) in [("--task_type rec", "2 rows: "), ("", "of 2 of 2 rows")] {
        let result = check(dir.path(), more);
        assert_eq!(result.code, Some(0), "{}", result.stderr);
        for text in [told, rows, "0.75"] {
            assert!(result.stdout.contains(text), "{more}: {text}\n{}", result.stdout);
        }
    }
    for more in [REC, "--task_type rec --reward_funcs giou", "--reward_funcs format"] {
        let result = check(dir.path(), more);
        assert!(!result.stdout.contains("no_box_reward"), "{more}\n{}", result.stdout);
    }
}

/// A list, objects over several lines, and lists for answers are what people come with.
#[test]
fn rows_in_any_form_are_read_and_other_files_told_once() {
    let dir = TempDir::new().unwrap();
    let list = |answer: Value| {
        let mut row = row("Where?", "");
        row["conversations"][1]["value"] = answer;
        row
    };
    let rows = [list(json!([10, 20, 60, 90])), list(json!([10, 20, 20, 30]))];
    write(dir.path(), &rows);
    let pretty: Vec<String> = rows.iter().map(|row| format!("{row:#}")).collect();
    let path = dir.path().join("train.jsonl");
    let train = "train.jsonl: 2 rows, 2 without errors\n";
    for text in [json!(rows).to_string(), format!("{:#}", json!(rows)), pretty.join("\n")] {
        fs::write(&path, text).unwrap();
        let result = check(dir.path(), REC);
        assert!(result.stdout.contains(train) && result.code == Some(0), "{}", result.stdout);
    }
    for (bytes, told) in [
        (b"\x1f\x8b\x08\x00\x00".to_vec(), "train.jsonl: gzip\n"),
        (
            b"image,question\na.png,q\n".to_vec(),
            "CSV, as it seems: it begins with `image,question`",
        ),
        (
            json!({"data": rows}).to_string().into_bytes(),
            "train.jsonl:1: the rows stand in `data` of one object",
        ),
    ] {
        fs::write(&path, bytes).unwrap();
        let result = check(dir.path(), REC);
        assert!(
            result.stdout.contains(told) && result.stdout.contains("hint: "),
            "{}",
            result.stdout
        );
        assert!(result.stdout.contains("\n1 error, 0 warnings\n"), "{}", result.stdout);
    }
}

/// `REC` was any other task once, without a word.
#[test]
fn a_task_that_is_nearly_one_of_ours_is_refused_everywhere() {
    for (given, meant) in [
        ("REC", "rec"),
        ("odlength", "odLength"),
        ("od-length", "odLength"),
        ("sft-rec", "sft_rec"),
        ("odLenght", "odLength"),
    ] {
        for command in [
            "data check --data_file_paths a",
            "grpo --model_name_or_path m --data_file_paths a --output_dir o",
            "sft --model_name_or_path m --data_file_paths a --output_dir o",
            "reward --input a",
            "eval --model m --task reward --data_file_paths a --output_dir o",
        ] {
            let result = call(&format!("{command} --task_type {given}"));
            let told = format!("`task_type`: got {given}, expected {meant}");
            assert!(
                result.code == Some(2) && result.stderr.contains(&told),
                "{command}: {}",
                result.stderr
            );
        }
    }
}

/// A model folder with another `model_type`.
fn model(dir: &Path, model_type: &str) -> String {
    let folder = dir.join(model_type);
    fs::create_dir_all(&folder).unwrap();
    for file in fs::read_dir(golden("families/qwen3_vl/checkpoints/nested")).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "model.safetensors" {
            fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["model_type"] = json!(model_type);
    fs::write(&path, config.to_string()).unwrap();
    folder.display().to_string()
}

#[test]
fn the_models_family_says_how_boxes_are_taken() {
    let dir = TempDir::new().unwrap();
    let rows: Vec<Value> = (0..30)
        .map(|i| row(&format!("Number {i}?"), &format!("[{i}, 20, {}, 90]", 40 + i)))
        .collect();
    write(dir.path(), &rows);
    let looked = |model_type: &str, more: &str| {
        let folder = model(dir.path(), model_type);
        let result = check(dir.path(), &format!("{REC} --model_name_or_path {folder} {more}"));
        assert_eq!(result.code, Some(0), "{model_type}: {}{}", result.stdout, result.stderr);
        result
    };
    let converted = "boxes: taken for pixels of the image in the data, thousandths of the image in what the model";
    let result = looked("qwen3_vl", "");
    let expected = format!("{converted} (`qwen3_vl`) writes: rewards convert the model's; `sft`");
    assert!(result.stdout.contains(&expected), "{}", result.stdout);
    // The true answers, written in thousandths, are found.
    assert!(result.stdout.ends_with("\n0 errors, 0 warnings\n"), "{}", result.stdout);
    let result = looked("unheard_of", "");
    assert!(result.stdout.contains(converted), "{}", result.stdout);
    for note in ["`unheard_of` has no rewards of its own", "texts of family `unheard_of`"] {
        assert_eq!(result.stderr.matches(note).count(), 1, "{note}: {}", result.stderr);
    }
    let result = looked("internvl", "");
    assert!(result.stdout.contains("(`internvl`) writes: the same\n"), "{}", result.stdout);
    assert!(result.stdout.contains("`--solution_box_format absolute`"), "{}", result.stdout);
    let told = looked("internvl", "--solution_box_format absolute");
    assert!(told.stdout.ends_with("\n0 errors, 0 warnings\n"), "{}", told.stdout);
}
