//! Training on the device: as on the CPU, again from a checkpoint, with little memory, and with evaluations.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use testing::{checkpoint, golden, read_jsonl};

use crate::{call_with, device, done, done_with};

/// Questions whose boxes a random model earns in parts.
pub fn evaluation_questions(dir: &Path) -> String {
    let path = dir.join("val.json");
    let names = ["scene.png", "small.png", "grey.png"];
    let row = |index: usize| json!({"image": names[index % 3], "problem": format!("Where is thing {index}?"), "solution": [1, 2, 30, 4 + index]});
    let rows: Vec<Value> = (0..6).map(row).collect();
    fs::write(&path, json!(rows).to_string()).unwrap();
    path.display().to_string()
}

fn data(dir: &Path) -> String {
    let path = dir.join("train.jsonl");
    let images = ["scene.png", "small.png", "grey.png", "rgba.png", "small.png"];
    let row = |(index, image): (usize, &str)| {
        let turns = json!([
            {"from": "human", "value": format!("<image>Where is thing {index}?")},
            {"from": "gpt", "value": format!("[1, 2, 3, {}]", 4 + index)},
        ]);
        format!("{}\n", json!({"image": image, "conversations": turns}))
    };
    let rows: Vec<String> = images.into_iter().enumerate().map(row).collect();
    fs::write(&path, rows.concat()).unwrap();
    path.display().to_string()
}

/// A short run of `grpo` or `sft`. `accuracy` pays random completions in parts, so that GRPO has a gradient.
pub fn line(method: &str, dir: &Path, run: &str, device: &str, more: &str) -> String {
    line_of("nested", method, dir, run, device, more)
}

/// The same of a tiny checkpoint.
pub fn line_of(
    model: &str,
    method: &str,
    dir: &Path,
    run: &str,
    device: &str,
    more: &str,
) -> String {
    let own = match method {
        "grpo" => {
            "--num_generations 4 --per_device_train_batch_size 8 --max_completion_length 8 --reward_funcs accuracy --beta 0.04"
        }
        _ => "--per_device_train_batch_size 2 --lr_scheduler_type constant",
    };
    format!(
        "{method} --model_name_or_path {model} --data_file_paths {data} --image_folders {images} --output_dir {output} \
         --learning_rate 1e-3 --adam_epsilon 1e-3 --save_steps 0 --device {device} --num_threads 1 {own} {more}",
        model = checkpoint(model).display(),
        images = golden("parity/images").display(),
        data = data(dir),
        output = dir.join(run).display(),
    )
}

pub fn metrics(folder: &Path) -> Vec<Value> {
    read_jsonl(folder.join("metrics.jsonl"))
}

pub fn computed(folder: &Path) -> Vec<Value> {
    let mut rows = metrics(folder);
    for row in &mut rows {
        base::metrics::remove_measured(row.as_object_mut().unwrap());
    }
    rows
}

/// Bit for bit: the device's sums have one order here.
#[test]
fn a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped() {
    let dir = TempDir::new().unwrap();
    let models = testing::nested_checkpoints();
    let first = models[0];
    let offloaded = "--bf16 true --offload_optimizer true --offload_reference true";
    let mut runs = vec![
        (first, "plain", "grpo", ""),
        (first, "half", "grpo", "--bf16 true --cuda_graphs true"),
        (first, "offloaded", "grpo", offloaded),
        (first, "eight", "grpo", "--optim adamw_8bit"),
        (first, "adapter", "grpo", "--use_peft true --lora_dropout 0.1"),
        (first, "taught", "sft", "--bf16 true --gradient_checkpointing true"),
    ];
    runs.extend(
        models[1..].iter().map(|model| (*model, *model, "grpo", "--bf16 true --cuda_graphs true")),
    );
    for (model, name, method, more) in runs {
        let name = name.replace('/', "-");
        let more = format!("{more} --max_steps 4 --save_steps 2 --save_optimizer_limit 9");
        let run = || done(&line_of(model, method, dir.path(), &name, &device(), &more));
        let folder = dir.path().join(&name);
        let last = folder.join("checkpoint-4");
        let file =
            if name == "adapter" { "adapter_model.safetensors" } else { "model.safetensors" };
        let weights = || fs::read(last.join(file)).unwrap();
        run();
        let whole = (computed(&folder), weights());
        // The folder as it was after step 2.
        fs::remove_dir_all(&last).unwrap();
        let said = run().stderr;
        assert!(said.contains("resuming after step 2"), "{name}: {said}");
        assert_eq!(computed(&folder), whole.0, "{name}");
        assert!(weights() == whole.1, "{name}: other weights");
    }
}

#[test]
fn little_memory_halves_micro_batches_and_changes_no_result() {
    let dir = TempDir::new().unwrap();
    let run = |name: &str| line("grpo", dir.path(), name, &device(), "--max_steps 2");
    done(&run("free"));
    let free = metrics(&dir.path().join("free"));
    let peak = free.iter().map(|row| row["peak_live_bytes"].as_u64().unwrap()).max().unwrap();
    let held = free.last().unwrap()["live_bytes"].as_u64().unwrap();
    let limit = (peak - (peak - held) / 4).to_string();
    let result = done_with(&run("tight"), &[("VLM_R1_STAND_IN_MEMORY", &limit)]);
    assert!(result.stderr.contains("memory"), "{}", result.stderr);
    let tight = metrics(&dir.path().join("tight"));
    assert!(tight.iter().any(|row| row["oom_retries"].as_f64() > Some(0.0)), "{tight:?}");
    for (tight, free) in tight.iter().zip(&free) {
        for key in ["loss", "grad_norm", "entropy"] {
            let (a, b) = (tight[key].as_f64().unwrap(), free[key].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{key}: {a}, {b}");
        }
    }
    // Less than the weights: an error that says so.
    let none = call_with(&run("none"), &[("VLM_R1_STAND_IN_MEMORY", "100000")]);
    assert_eq!(none.code, Some(1), "{}", none.stderr);
    assert!(none.stderr.contains("CUDA out of memory"), "{}", none.stderr);
    assert!(!none.stderr.contains("panicked"), "{}", none.stderr);
}

#[test]
fn a_run_evaluates_its_policy_as_on_the_cpu() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("evals.yaml");
    let text = format!(
        "val:\n  task: rec\n  data_file_paths: {}\n  image_folders: {}\n  max_new_tokens: 6\n",
        evaluation_questions(dir.path()),
        golden("parity/images").display()
    );
    fs::write(&file, text).unwrap();
    let more = format!(
        "--max_steps 2 --eval_steps 1 --eval_on_start true --eval_config {}",
        file.display()
    );
    for (name, device) in [("device", device()), ("cpu", "cpu".to_owned())] {
        done(&line("sft", dir.path(), name, &device, &more));
    }
    let answers = |name: &str, step: usize| {
        let folder = dir.path().join(name).join(format!("eval/step_{step:06}/val"));
        testing::read(folder.join("answers.jsonl"))
    };
    for step in 0..=2 {
        assert_eq!(answers("device", step), answers("cpu", step), "after step {step}");
    }
}

/// An adapter that was trained on the device merges into weights that compute the same there.
#[test]
fn an_adapter_merges() {
    let dir = TempDir::new().unwrap();
    done(&line("sft", dir.path(), "run", &device(), "--max_steps 2 --use_peft true"));
    let adapter = dir.path().join("run/checkpoint-2");
    let merged = dir.path().join("merged");
    done(&format!("merge --adapter {} --output_dir {}", adapter.display(), merged.display()));
    let ids = |model: &Path| {
        let prompt = dir.path().join("prompt.jsonl");
        fs::write(&prompt, "{\"prompt\": \"How many?\"}\n").unwrap();
        let line = format!(
            "generate --model {} --json --input {} --max_new_tokens 8 --temperature 0 --device {}",
            model.display(),
            prompt.display(),
            device()
        );
        let row: Value = serde_json::from_str(done(&line).stdout.lines().next().unwrap()).unwrap();
        row["completion_ids"].clone()
    };
    assert_eq!(ids(&adapter), ids(&merged));
}

/// The demo's first steps; the whole of it is `make demo`.
#[test]
fn the_demo_begins() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("demo");
    let mut child = crate::program::command()
        .args(["demo", "--out", &out.display().to_string(), "--device", &device()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    let trained = || {
        let runs = fs::read_dir(&out).into_iter().flatten().flatten();
        runs.map(|run| run.path().join("metrics.jsonl"))
            .any(|file| fs::read_to_string(file).is_ok_and(|text| text.lines().count() >= 3))
    };
    while !trained() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        assert!(started.elapsed().as_secs() < 300, "no third step in five minutes");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let sent = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let ended = crate::program::call_result(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
}
