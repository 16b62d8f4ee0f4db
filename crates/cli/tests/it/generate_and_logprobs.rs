//! `generate` and `logprobs` on the tiny checkpoints of the parity tests.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{checkpoint, golden};

use crate::program::{CallResult, call};

fn rows(result: &CallResult) -> Vec<Value> {
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    result.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn model() -> String {
    checkpoint("nested").display().to_string()
}

fn images() -> String {
    golden("parity/images").display().to_string()
}

fn input(dir: &TempDir, rows: &[Value]) -> String {
    let path = dir.path().join("rows.jsonl");
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, text.concat()).unwrap();
    path.display().to_string()
}

#[test]
fn graphs_without_a_gpu_are_refused() {
    let line = format!("generate --model {} --prompt x --device cpu --cuda_graphs true", model());
    let result = call(&line);
    assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""));
    assert!(
        result.stderr.contains("CUDA graphs: expected a GPU, got cpu\nhint: --cuda_graphs false"),
        "{}",
        result.stderr
    );
}

#[test]
fn sampled_and_given_completions_have_the_same_logprobs() {
    let dir = TempDir::new().unwrap();
    let image = fs::read_dir(images()).unwrap().next().unwrap().unwrap().file_name();
    let image = image.to_str().unwrap();
    let questions = input(
        &dir,
        &[
            json!({"images": [image], "prompt": "Where is it?", "mine": 1}),
            json!({"prompt": "How many?"}),
        ],
    );
    let common = format!("--model {} --image_folder {} --device cpu", model(), images());
    let line = format!(
        "generate {common} --json --input {questions} --num_generations 8 --max_new_tokens 1 --seed 3 --temperature 0.7"
    );
    let completions = rows(&call(&line));
    assert_eq!(completions.len(), 16);
    assert_eq!(completions[0]["mine"], 1);
    // Rounding follows the batch size, the draws do not.
    let few = rows(&call(&format!("{line} --max_concurrent_completions 3")));
    let ids = |rows: &[Value]| -> Vec<Value> {
        rows.iter().map(|row| row["completion_ids"].clone()).collect()
    };
    assert_eq!(ids(&completions), ids(&few));
    let given: Vec<Value> = completions
        .iter()
        .map(|row| json!({"images": row.get("images").unwrap_or(&json!([])), "prompt": row["prompt"], "completion": row["completion"]}))
        .collect();
    let scored = rows(&call(&format!(
        "logprobs {common} --input {} --temperature 0.7",
        input(&dir, &given)
    )));
    let mut compared = 0;
    for (completion, scored) in completions.iter().zip(&scored) {
        assert_eq!(completion["prompt_ids"], scored["prompt_ids"]);
        let lengths =
            (numbers(&scored["completion_ids"]).len(), numbers(&scored["logprobs"]).len());
        assert_eq!(lengths.0, lengths.1);
        // A token of half a character has no text of its own.
        if completion["completion_ids"][0] == scored["completion_ids"][0] {
            let (sampled, given) =
                (numbers(&completion["logprobs"])[0], numbers(&scored["logprobs"])[0]);
            assert!((sampled - given).abs() < 1e-4, "{sampled} {given}");
            compared += 1;
        }
    }
    assert!(compared >= 6, "only {compared} completions could be compared");
}

#[test]
fn greedy_completions_do_not_depend_on_the_seed() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("out.jsonl");
    let ask = |more: &str| {
        let mut command = crate::program::command();
        command.args([
            "generate",
            "--model",
            &model(),
            "--prompt",
            "Where is it?",
            "--temperature",
            "0",
        ]);
        command.args(["--max_new_tokens", "8", "--device", "cpu"]);
        crate::program::call_result(command.args(more.split_whitespace()).output().unwrap())
    };
    let first = rows(&ask("--json --seed 1"));
    assert_eq!(first, rows(&ask("--json --seed 2")));
    // People read the text alone.
    let text = ask("--seed 1");
    let completion = first[0]["completion"].as_str().unwrap();
    assert_eq!(text.stdout, format!("{}\n", base::console::printable(completion)));
    let several = ask("--seed 1 --num_generations 2");
    for heading in ["command line, completion 1 of 2:\n", "command line, completion 2 of 2:\n"] {
        assert!(several.stdout.contains(heading), "{}", several.stdout);
    }
    assert_eq!(first.len(), 1);
    let result = ask(&format!("--output {}", output.display()));
    assert_eq!((result.code, result.stdout.as_str()), (Some(0), ""));
    let written: Value = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
    assert_eq!(written, first[0]);
    let long = rows(&ask("--json --min_completion_length 8"));
    assert_eq!(
        (numbers(&long[0]["completion_ids"]).len(), &long[0]["finish_reason"]),
        (8, &json!("length"))
    );
}

/// What `generate` writes is what `reward` reads, boxes in pixels of the model's input included.
#[test]
fn completions_can_be_scored() {
    let dir = TempDir::new().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let question = json!({
        "images": ["small.png"], "prompt": "Where is it?", "solution": "<answer> [1, 2, 30, 40] </answer>"
    });
    fs::write(&input, question.to_string()).unwrap();
    let images = golden("parity/images");
    let result = call(&format!(
        "generate --model {} --input {} --image_folder {} --output {} --max_new_tokens 6 --device cpu",
        model(),
        input.display(),
        images.display(),
        output.display()
    ));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let mut row: Value = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
    // The small model names no box: this is the true one in pixels of its input, 84 x 56 for 31 x 29.
    assert_eq!(row["image_grid_thw"], json!([[1, 4, 6]]));
    row["completion"] = json!("<think></think><answer>{\"bbox\": [3, 4, 81, 77]}</answer>");
    fs::write(&output, row.to_string()).unwrap();
    let result = call(&format!(
        "reward --input {} --image_folder {} --reward_funcs accuracy overlong --task_type rec \
         --is_reward_customized_from_vlm_module true",
        output.display(),
        images.display()
    ));
    let scored = rows(&result);
    assert!(scored[0]["rewards"]["accuracy"].as_f64() > Some(0.5), "{}", scored[0]);
    assert_eq!(scored[0]["rewards"]["overlong"], 0.0);
}

#[test]
fn bad_questions_are_named() {
    let dir = TempDir::new().unwrap();
    for (row, cause) in [
        (json!({"images": ["none.png"], "prompt": "a"}), "no such file"),
        (json!({"images": ["../manifest.json"], "prompt": "a"}), "leaves its image folder"),
        (
            json!({"images": [1], "prompt": "a"}),
            "`images`: got number `1`, expected a list of texts",
        ),
        (json!({"images": []}), "missing key `prompt`"),
        (json!({"prompt": "<|image_pad|>"}), "1 image placeholders but 0 images"),
    ] {
        let input = input(&dir, &[row]);
        let result = call(&format!(
            "generate --model {} --image_folder {} --input {input}",
            model(),
            images()
        ));
        assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""), "{}", result.stderr);
        assert!(result.stderr.starts_with(&format!("error: {input}:1: ")), "{}", result.stderr);
        assert!(result.stderr.contains(cause), "{cause}: {}", result.stderr);
    }
}

/// They were answered without their images.
#[test]
fn rows_that_would_be_answered_blind_are_refused() {
    let dir = TempDir::new().unwrap();
    for (row, cause) in [
        (
            json!({"image": "a.png", "prompt": "a"}),
            "`image` holds images but is not read, and there is no `images`",
        ),
        (
            json!({"image_path": ["a.png"], "prompt": "a"}),
            "`image_path` holds images but is not read",
        ),
        (
            json!({"messages": [{"content": [{"type": "image"}]}], "prompt": "a"}),
            "`messages` holds images",
        ),
        (json!({"video": "a.mp4", "prompt": "a"}), "`video` is not read: rows show images only"),
        (
            json!({"question": "a"}),
            "missing key `prompt`; `question` is not read\nhint: rename it to `prompt`",
        ),
    ] {
        let input = input(&dir, &[json!({"prompt": "a", "id": 1}), row]);
        let result = call(&format!("generate --model {} --input {input}", model()));
        assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""), "{}", result.stderr);
        let expected = format!("error: {input}:2: {cause}");
        assert!(result.stderr.starts_with(&expected), "{expected}\n{}", result.stderr);
    }
    let input = input(&dir, &[json!({"img": "a.png", "prompt": "a", "completion": "b"})]);
    let result = call(&format!("logprobs --model {} --input {input}", model()));
    assert!(
        result.stderr.starts_with(&format!("error: {input}:1: `img` holds images")),
        "{}",
        result.stderr
    );
}
