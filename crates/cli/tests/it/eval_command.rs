//! `eval` as a user calls it: tasks, files, kills, pages, comparisons and what is refused.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{checkpoint, golden, read_json};

use crate::program::{CallResult, call, command};

fn model() -> String {
    checkpoint("nested").display().to_string()
}

fn images() -> String {
    golden("parity/images").display().to_string()
}

fn write(dir: &Path, name: &str, text: impl ToString) -> String {
    let path = dir.join(name);
    fs::write(&path, text.to_string()).unwrap();
    path.display().to_string()
}

/// `rows` questions as VLM-R1's evaluation files have them.
fn rec_file(dir: &Path, rows: usize) -> String {
    let names = ["scene.png", "small.png", "grey.png", "rgba.png"];
    let row = |index: usize| {
        json!({
            "image": names[index % 4],
            "problem": format!("Please provide the bounding box coordinate of the region this sentence describes: thing {index}."),
            "solution": [1, 2, 30, 4 + index],
            "dataset": "refcoco",
        })
    };
    let rows: Vec<Value> = (0..rows).map(row).collect();
    write(dir, "val.json", json!(rows))
}

fn line(task: &str, file: &str, output: &Path, more: &str) -> String {
    format!(
        "eval --model {} --task {task} --data_file_paths {file} --image_folders {} --output_dir {} \
         --device cpu --num_threads 1 --max_new_tokens 6 {more}",
        model(),
        images(),
        output.display()
    )
}

fn done(line: &str) -> CallResult {
    let result = call(line);
    assert_eq!(result.code, Some(0), "{line}\n{}", result.stderr);
    result
}

#[test]
fn rec_writes_the_fields_of_vlm_r1_and_a_page() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let file = rec_file(dir.path(), 12);
    let result = done(&line("rec", &file, &out, "--shuffle_seed 42 --limit 10"));
    assert_eq!(result.stdout.trim(), out.join("summary.json").display().to_string());
    assert!(result.stderr.contains("accuracy") && result.stderr.contains("10 questions"));
    let results = read_json::<Value>(out.join("results.json"));
    assert!(results["accuracy"].is_number());
    let rows = results["results"].as_array().unwrap();
    // `random.seed(42)` leaves 12 items so; the first ten are asked.
    let order = [7, 5, 2, 8, 9, 6, 11, 3, 4, 0];
    let asked: Vec<String> =
        rows.iter().map(|row| row["question"].as_str().unwrap().to_owned()).collect();
    for (asked, index) in asked.iter().zip(order) {
        assert!(asked.ends_with(&format!("thing {index}.")), "{asked}: {index}");
    }
    let first = &rows[0];
    assert_eq!(first["image"], "rgba.png");
    assert_eq!(first["ground_truth"], json!([1.0, 2.0, 30.0, 11.0]));
    assert_eq!(first["extracted_answer"], json!([0.0, 0.0, 0.0, 0.0]));
    assert_eq!(first["correct"], 0);
    for key in ["input_size", "image_size"] {
        assert_eq!(first[key].as_array().unwrap().len(), 2, "{key}");
    }
    assert!(first["model_output"].is_string());
    let summary = read_json::<Value>(out.join("summary.json"));
    assert_eq!(summary["metrics"]["accuracy"]["mean"], 0.0);
    assert!(summary["sampling"]["boundary_draws"].is_number());
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("All 10 completions.") && page.contains("data:image/png;base64"));
    assert!(
        page.contains("data-tags=\"1 3 4\""),
        "wrong completions can be chosen, those cut off and those that were not read"
    );
}

#[test]
fn a_killed_evaluation_goes_on_without_repeating_a_completion() {
    let dir = TempDir::new().unwrap();
    let file = rec_file(dir.path(), 40);
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let more = "--max_new_tokens 48 --max_concurrent_completions 1 --html_rows 1";
    done(&line("rec", &file, &whole, more));
    let completions = killed.join("answers.jsonl");
    let lines = || fs::read_to_string(&completions).map_or(0, |text| text.lines().count());
    let mut child = command()
        .args(line("rec", &file, &killed, more).split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while lines() < 4 {
        assert!(start.elapsed() < Duration::from_secs(120), "no completions");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = fs::read_to_string(&completions).unwrap();
    let kept = &kept[..kept.rfind('\n').unwrap() + 1];
    let before = kept.lines().count();
    assert!(before < 40, "it was over before it was killed");
    assert!(!killed.join("results.json").exists());
    fs::write(&completions, format!("{kept}{{\"row\": 39, \"sa")).unwrap();
    done(&line("rec", &file, &killed, more));
    let after = fs::read_to_string(&completions).unwrap();
    assert!(after.starts_with(kept));
    assert_eq!(after.lines().count(), 40);
    assert_eq!(
        read_json::<Value>(killed.join("results.json")),
        read_json::<Value>(whole.join("results.json"))
    );
}

#[test]
fn a_comparison_says_what_flipped() {
    let dir = TempDir::new().unwrap();
    let file = rec_file(dir.path(), 8);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    done(&line("rec", &file, &a, ""));
    done(&line("rec", &file, &b, "--seed 5 --temperature 1"));
    // A random model is never right: two completions of B are made so; nor does it end: those of both are made to.
    for folder in [&a, &b] {
        let path = folder.join("results.json");
        let mut results = read_json::<Value>(path.clone());
        for row in results["results"].as_array_mut().unwrap() {
            row["finish_reason"] = json!("stop");
        }
        fs::write(path, results.to_string()).unwrap();
    }
    let mut results = read_json::<Value>(b.join("results.json"));
    for row in [2, 5] {
        results["results"][row]["correct"] = json!(1);
        results["results"][row]["score"] = json!(0.9);
    }
    fs::write(b.join("results.json"), results.to_string()).unwrap();
    let page = dir.path().join("compare.html");
    let result =
        done(&format!("eval --compare {} {} --html {}", a.display(), b.display(), page.display()));
    let json: Value = serde_json::from_str(&result.stdout).unwrap();
    assert_eq!(json["metrics"]["accuracy"]["difference"], 0.25);
    assert_eq!((&json["b_better_on"], &json["b_worse_on"]), (&json!(2), &json!(0)));
    // 2 * (1/2)^2
    assert_eq!(json["sign_test_p"], 0.5);
    let rows: Vec<&Value> =
        json["became_right"].as_array().unwrap().iter().map(|f| &f["row"]).collect();
    assert_eq!(rows, [&json!(2), &json!(5)]);
    assert!(result.stderr.contains("cannot be told"), "{}", result.stderr);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("became right") && page.contains("data-tags=\"0 1\""));
    assert_eq!(page.matches("data-tags=\"0 1\"").count(), 2);
}

#[test]
fn the_other_tasks_score_by_their_rules() {
    let dir = TempDir::new().unwrap();
    let turns = |question: &str, answer: Value| json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    let row = |answer: Value| json!({"image": "small.png", "conversations": turns("<image>What?", answer)});
    let text = json!({"conversations": turns("How many?", json!(3))});
    let cases = [
        ("mcq", vec![row(json!("B")), text.clone()]),
        ("yes_no", vec![row(json!("yes")), text.clone()]),
        ("math", vec![row(json!("\\frac{1}{2}")), text.clone()]),
        ("match", vec![row(json!("a cup")), text.clone()]),
        ("gui", vec![row(json!("[1, 2, 30, 40]"))]),
        ("reward", vec![row(json!("a cup")), text]),
    ];
    for (task, rows) in cases {
        let rows: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
        let file = write(dir.path(), &format!("{task}.jsonl"), rows.concat());
        let out = dir.path().join(task);
        let more = match task {
            "reward" => "--reward_funcs accuracy format --num_samples 2 --temperature 1",
            _ => "",
        };
        done(&line(task, &file, &out, more));
        let summary = read_json::<Value>(out.join("summary.json"));
        assert_eq!(summary["num_questions"], rows.len(), "{task}: {summary}");
        assert_eq!(summary["num_bad"], 0, "{task}: {summary}");
        assert!(summary["metrics"]["accuracy"]["mean"].is_number(), "{task}");
        assert_eq!(summary["metrics"]["pass@2"].is_object(), task == "reward");
        assert_eq!(summary["metrics"]["rewards/format"].is_object(), task == "reward");
    }
}

#[test]
fn detection_reads_coco_files() {
    let dir = TempDir::new().unwrap();
    let coco = json!({
        "images": [
            {"id": 7, "file_name": "scene.png", "text": ["red cup"], "neg_text": ["blue cup"]},
            {"id": 3, "file_name": "small.png", "text": ["red cup", "dog"]},
            {"id": 9, "file_name": "nowhere.png", "text": ["dog"]},
            {"id": 11, "file_name": "grey.png", "text": ["dog"]},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 10]},
            {"image_id": 3, "category_id": 2, "bbox": [1, 2, 10, 10]},
            {"image_id": 9, "category_id": 2, "bbox": [1, 2, 10, 10]},
            {"image_id": 11, "category_id": 2, "bbox": [1, 2, -10, 10]},
            {"image_id": 77, "category_id": 2, "bbox": [1, 2, 10, 10]},
        ],
        "categories": [{"id": 1, "name": "red cup"}, {"id": 2, "name": "dog"}, {"id": 4, "name": "blue cup"}],
    });
    let file = write(dir.path(), "material.json", coco);
    let out = dir.path().join("ovdeval");
    let result = done(&line("ovdeval", &file, &out, ""));
    assert!(result.stderr.contains("image 9 (nowhere.png)"), "{}", result.stderr);
    assert!(result.stderr.contains("1 annotations of images"), "{}", result.stderr);
    let results = read_json::<Value>(out.join("results.json"));
    let question = results["results"][0]["question"].as_str().unwrap().to_owned();
    assert!(question.contains("objects: ['red cup', 'blue cup']."), "{question}");
    let summary = read_json::<Value>(out.join("summary.json"));
    assert_eq!((&summary["num_questions"], &summary["num_bad"]), (&json!(4), &json!(2)));
    assert_eq!(summary["metrics"]["nms_ap"]["mean"], 0.0);
    let all = dir.path().join("ovd");
    done(&line("ovd", &file, &all, "--exclude_bad true"));
    let results = read_json::<Value>(all.join("results.json"));
    let question = results["results"][0]["question"].as_str().unwrap();
    assert!(question.contains("['red cup', 'dog', 'blue cup']"), "{question}");
    assert_eq!(read_json::<Value>(all.join("summary.json"))["num_questions"], 2);
}

/// The rows that were trained on are evaluated too.
#[test]
fn detection_reads_the_rows_of_training() {
    let dir = TempDir::new().unwrap();
    let row = |image: &str, answer: Value| {
        let question = "Detect the following objects: ['red cup', 'dog'].";
        json!({"image": image, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]})
    };
    let boxed = json!([{"bbox_2d": [1, 2, 11, 12], "label": "red cup"}]);
    let fenced = format!("```json\n{boxed}\n```");
    let rows = [
        row("scene.png", json!(fenced)),
        row("small.png", boxed),
        row("grey.png", json!("None")),
        row("scene.png", json!("a red cup")),
    ];
    let lines: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    let file = write(dir.path(), "train.jsonl", lines.concat());
    let out = dir.path().join("out");
    let result = done(&line("ovd", &file, &out, ""));
    assert!(result.stderr.contains("the answer is no list of boxes"), "{}", result.stderr);
    let summary = read_json::<Value>(out.join("summary.json"));
    let counts = (&summary["num_questions"], &summary["num_bad"]);
    assert_eq!(counts, (&json!(4), &json!(1)));
    assert_eq!(summary["metrics"]["ap"]["mean"], 0.0);
    let results = read_json::<Value>(out.join("results.json"));
    let truth = &results["results"][1]["truths"][0];
    assert_eq!(truth["bbox_2d"], json!([1.0, 2.0, 11.0, 12.0]));
    assert_eq!(truth["label"], "red cup");
    let result = call(&line("ovd", &file, &dir.path().join("x"), "--labels all"));
    assert!(result.stderr.contains("`labels`: is for files of COCO's form"), "{}", result.stderr);
}

#[test]
fn completions_that_a_lower_limit_cut_off_are_asked_again() {
    let dir = TempDir::new().unwrap();
    let file = rec_file(dir.path(), 3);
    let out = dir.path().join("out");
    let completions = || -> Vec<Value> {
        let text = fs::read_to_string(out.join("answers.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    done(&line("rec", &file, &out, "--max_new_tokens 2"));
    let cut = completions().iter().filter(|row| row["finish_reason"] == "length").count();
    assert!(cut > 0, "{:?}", completions());
    let longer = line("rec", &file, &out, "--max_new_tokens 9 --allow_changed true");
    let result = done(&longer);
    assert!(
        result.stderr.contains(&format!(
            "{cut} of 3 completions cut off by a lower --max_new_tokens than 9: asked again"
        )),
        "{}",
        result.stderr
    );
    let again = completions();
    assert_eq!(again.len(), 3);
    // Those that are cut off now are so by the new limit.
    for row in again.iter().filter(|row| row["finish_reason"] == "length") {
        assert_eq!(row["tokens"], 9, "{row}");
    }
    // A process that was killed has not counted what its completions took.
    let tokens =
        || read_json::<Value>(out.join("summary.json"))["sampling"]["tokens"].as_u64().unwrap();
    assert!(tokens() > 0);
    fs::remove_file(out.join("sampling.jsonl")).unwrap();
    done(&longer);
    let told: u64 = again
        .iter()
        .map(|row| row["tokens"].as_u64().unwrap() + u64::from(row["finish_reason"] == "stop"))
        .sum();
    assert_eq!(tokens(), told);
    // With the limit as it was asked there is nothing to do, nor with a lower one.
    assert!(!done(&longer).stderr.contains(": asked again"));
    assert_eq!(completions(), again);
    done(&line("rec", &file, &out, "--max_new_tokens 4 --allow_changed true"));
    assert_eq!(completions(), again);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let dir = TempDir::new().unwrap();
    let file = rec_file(dir.path(), 2);
    let out = dir.path().join("out");
    let refuse = |code: i32, line: &str, expected: &[&str]| {
        let result = call(line);
        assert_eq!(result.code, Some(code), "{line}\n{}", result.stderr);
        for text in expected {
            assert!(result.stderr.contains(text), "{line}: {}", result.stderr);
        }
    };
    refuse(2, "eval", &["`model`", "compare"]);
    refuse(2, "eval --compare a", &["two folders"]);
    refuse(2, "eval --task rex", &["rec", "ovdeval"]);
    refuse(2, &line("rec", &file, &out, "--num_samples 4"), &["temperature"]);
    refuse(1, "eval --compare a b", &["no results", "hint:"]);
    let dry = line("rec", "none.json", &out, "--model nowhere --image_folders no/folder --dry_run");
    refuse(
        1,
        &dry,
        &["3 problems", "`nowhere` does not exist", "`none.json`", "no folder `no/folder`"],
    );
    refuse(1, &line("rec", "none.json", &out, ""), &["none.json"]);
    refuse(1, &line("ovd", &file, &out, ""), &["val.json"]);
    refuse(1, &line("reward", &file, &out, "--reward_funcs acuracy"), &["did you mean `accuracy`"]);
    refuse(
        1,
        &line("rec", &file, &out, "--cuda_graphs true"),
        &["CUDA graphs: expected a GPU", "hint: --cuda_graphs false"],
    );
    assert!(!out.exists(), "nothing was begun");
    done(&line("rec", &file, &out, ""));
    refuse(
        1,
        &line("rec", &file, &out, "--max_new_tokens 9"),
        &["`max_new_tokens`: was 6, is 9", "--allow_changed"],
    );
    fs::write(out.join("answers.jsonl"), "{}\n").unwrap();
    refuse(1, &line("rec", &file, &out, ""), &["answers.jsonl:1", "hint:"]);
}
