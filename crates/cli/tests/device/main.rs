//! The commands end to end on the device that `VLM_R1_TEST_DEVICE` names, against the CPU: `make test-device`.

mod fast_paths;
mod options;
#[path = "../it/program.rs"]
mod program;
mod runs;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{checkpoint, golden, read_json};

use crate::program::{CallResult, call_result, command};

/// `cuda:0`.
pub fn device() -> String {
    std::env::var("VLM_R1_TEST_DEVICE").expect("started by `cargo xtask test-device`")
}

pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

/// Calls the program with more variables of the environment.
pub fn call_with(line: &str, variables: &[(&str, &str)]) -> CallResult {
    let mut command = command();
    command.args(words(line)).envs(variables.iter().copied());
    call_result(command.output().unwrap())
}

/// A call that succeeds.
pub fn done(line: &str) -> CallResult {
    done_with(line, &[])
}

pub fn done_with(line: &str, variables: &[(&str, &str)]) -> CallResult {
    let result = call_with(line, variables);
    assert_eq!(result.code, Some(0), "{line}\n{}", result.stderr);
    for word in ["panicked", "deprecated", "Warning:"] {
        assert!(!result.stderr.contains(word), "{word}: {line}\n{}", result.stderr);
    }
    result
}

fn rows(result: &CallResult) -> Vec<Value> {
    result.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn common(model: &str) -> String {
    format!(
        "--model {} --image_folder {}",
        checkpoint(model).display(),
        golden("parity/images").display()
    )
}

fn questions(dir: &Path) -> String {
    let path = dir.join("questions.jsonl");
    let rows = [
        json!({"images": ["scene.png"], "prompt": "Where is it?"}),
        json!({"images": ["small.png", "grey.png"], "prompt": "Which of these is larger?"}),
        json!({"prompt": "How many?"}),
    ];
    fs::write(&path, rows.map(|row| format!("{row}\n")).concat()).unwrap();
    path.display().to_string()
}

/// Tokens equal the CPU's in f32, whatever filters choose among them, by both forms of decoding.
#[test]
fn completions_equal_the_cpus() {
    let dir = TempDir::new().unwrap();
    let input = questions(dir.path());
    let (mut tokens, mut largest) = (0, 0f64);
    let models = testing::nested_checkpoints();
    let first = models[0];
    let mut calls = vec![
        (first, ""),
        (first, "--temperature 0"),
        (first, "--top_k 40 --top_p 0.9 --min_p 0.01 --repetition_penalty 1.2"),
        (first, "--max_concurrent_completions 5 --temperature 0.7"),
    ];
    calls.extend(models[1..].iter().map(|model| (*model, "")));
    for (model, sampling) in calls {
        let line = format!(
            "generate {} --json --input {input} --num_generations 6 --max_new_tokens 24 --seed 4 {sampling}",
            common(model)
        );
        let expected = rows(&done(&format!("{line} --device cpu")));
        for graphs in ["false", "true"] {
            let found =
                rows(&done(&format!("{line} --device {} --cuda_graphs {graphs}", device())));
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(
                    found["completion_ids"], expected["completion_ids"],
                    "{model}, {sampling}, graphs {graphs}"
                );
                for (a, b) in numbers(&found["logprobs"]).iter().zip(numbers(&expected["logprobs"]))
                {
                    largest = largest.max((a - b).abs());
                    tokens += 1;
                }
            }
        }
    }
    println!("{tokens} tokens, log-probabilities within {largest:.1e}");
    assert!(tokens > 1000 && largest < 1e-5, "{tokens} tokens, {largest}");
}

/// In bf16 the device takes kernels of its own: equal within the type's rounding.
#[test]
fn logprobs_are_the_cpus() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("given.jsonl");
    let given = [
        json!({"images": ["scene.png"], "prompt": "Where is it?", "completion": "Here, [1, 2, 30, 40]."}),
        json!({"prompt": "How many?", "completion": "There are seven of them, or eight."}),
    ];
    fs::write(&input, given.map(|row| format!("{row}\n")).concat()).unwrap();
    let kinds = [("float32", 1e-5), ("bfloat16", 0.1)];
    let models = testing::nested_checkpoints();
    let cases = models.iter().flat_map(|model| kinds.map(|kind| (model, kind)));
    for (model, (kind, tolerance)) in cases {
        let line = format!("logprobs {} --input {} --dtype {kind}", common(model), input.display());
        let found = rows(&done(&format!("{line} --device {}", device())));
        let expected = rows(&done(&format!("{line} --device cpu")));
        assert_eq!(found.len(), 2);
        for (found, expected) in found.iter().zip(&expected) {
            for (a, b) in numbers(&found["logprobs"]).iter().zip(numbers(&expected["logprobs"])) {
                assert!((a - b).abs() < tolerance, "{model}, {kind}: {a}, {b}");
            }
        }
    }
}

#[test]
fn an_evaluation_scores_as_on_the_cpu() {
    let dir = TempDir::new().unwrap();
    let questions = runs::evaluation_questions(dir.path());
    let summary = |name: &str, device: &str| -> Value {
        let out = dir.path().join(name);
        done(&format!(
            "eval --model {} --task rec --data_file_paths {questions} --image_folders {} --output_dir {} \
             --max_new_tokens 12 --device {device}",
            checkpoint("nested").display(),
            golden("parity/images").display(),
            out.display()
        ));
        let answers = testing::read(out.join("answers.jsonl"));
        json!([read_json::<Value>(out.join("summary.json"))["metrics"], answers])
    };
    assert_eq!(summary("device", &device()), summary("cpu", "cpu"));
}

#[test]
fn a_plan_times_its_probe_on_the_device() {
    let dir = TempDir::new().unwrap();
    let line = runs::line("grpo", dir.path(), "run", &device(), "");
    let line = format!("{} --memory 24GB", line.replacen("grpo", "plan", 1));
    let result = done(&line);
    assert!(result.stdout.contains("peak"), "{}", result.stdout);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let result = call_with(
        &format!("generate {} --prompt x --device cuda:2", common("nested")),
        &[("VLM_R1_STAND_IN_DEVICES", "2")],
    );
    assert_eq!(result.code, Some(1));
    assert!(result.stderr.contains("cuda:2"), "{}", result.stderr);
}

/// What fails in a graph ends the call with a way out.
#[test]
fn a_graph_that_fails_is_an_error() {
    let line = format!(
        "generate {} --prompt x --max_new_tokens 9 --device {}",
        common("nested"),
        device()
    );
    let asked = format!("{line} --cuda_graphs true --fast_paths none");
    let result = call_with(&asked, &[("VLM_R1_STAND_IN_WRONG", "graph:throw")]);
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    let expected = "error: CUDA graphs: stand-in: graph was told to fail\nhint: --cuda_graphs false decodes without them";
    assert!(result.stderr.contains(expected), "{}", result.stderr);
    assert!(!result.stderr.contains("Exception raised"), "{}", result.stderr);
}

/// On the second of two devices nothing falls back to the first.
#[test]
fn another_device_than_the_first_will_do() {
    let dir = TempDir::new().unwrap();
    let line = format!(
        "generate {} --json --input {} --num_generations 2 --max_new_tokens 8 --seed 3",
        common("nested"),
        questions(dir.path())
    );
    let found = rows(&done(&format!("{line} --device cuda:1 --cuda_graphs true")));
    let expected = rows(&done(&format!("{line} --device cpu")));
    let ids = |rows: &[Value]| -> Vec<Value> {
        rows.iter().map(|row| row["completion_ids"].clone()).collect()
    };
    assert_eq!(ids(&found), ids(&expected));
}
