//! Model folders that contradict themselves, and who may read what is written.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{CallResult, call, call_result};
use crate::training::line;

const WHOLE: &str = "model.safetensors";
const HEAD: &str = "lm_head.weight";

fn nested() -> PathBuf {
    testing::checkpoint("nested")
}

/// A copy of the tiny model, every file for its owner alone.
fn copy(dir: &Path) -> PathBuf {
    let to = dir.join("model");
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(nested()).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        fs::copy(path, &copy).unwrap();
        fs::set_permissions(copy, Permissions::from_mode(0o600)).unwrap();
    }
    to
}

/// Numbers of a tensor in a file of weights.
fn floats(file: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (numbers, _) = tensors.tensor(name).unwrap().data().as_chunks::<4>();
    numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A step of `method` from `model` into `run`.
fn a_step(method: &str, dir: &Path, model: &Path, more: &str) -> String {
    let more = format!("--max_steps 1 {more}");
    let from = nested().display().to_string();
    line(method, dir, "run", &more).replace(&from, &model.display().to_string())
}

fn done(result: CallResult) -> CallResult {
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    result
}

/// Permissions of all that lies in a folder, by path.
fn modes(folder: &Path, into: &mut Vec<(PathBuf, u32, bool)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_symlink() {
            continue;
        }
        into.push((path.clone(), found.permissions().mode() & 0o777, found.is_dir()));
        if found.is_dir() {
            modes(&path, into);
        }
    }
}

#[test]
fn all_that_is_written_follows_the_users_mask() {
    for mask in [0o022, 0o027] {
        let dir = TempDir::new().unwrap();
        let model = copy(dir.path());
        let cache = dir.path().join("features");
        let whole = a_step(
            "sft",
            dir.path(),
            &model,
            &format!("--freeze_vision_modules true --feature_cache_dir {}", cache.display()),
        );
        let lora = a_step("sft", dir.path(), &model, "--use_peft true").replace("/run ", "/lora ");
        let merged = dir.path().join("merged");
        let merge = format!(
            "merge --adapter {}/lora/checkpoint-1 --output_dir {}",
            dir.path().display(),
            merged.display()
        );
        for line in [whole, lora, merge] {
            let command = format!("umask {mask:03o}; exec \"$0\" \"$@\"");
            let output = Command::new("sh")
                .args(["-c", &command, env!("CARGO_BIN_EXE_vlm-r1")])
                .args(line.split_whitespace())
                .output();
            done(call_result(output.unwrap()));
        }
        let mut found = Vec::new();
        for folder in [dir.path().join("run"), dir.path().join("lora"), merged, cache] {
            modes(&folder, &mut found);
        }
        let weights = found.iter().filter(|(path, ..)| {
            path.extension().is_some_and(|extension| extension == "safetensors")
        });
        assert!(weights.count() >= 6, "{found:?}");
        for (path, mode, is_dir) in found {
            let all = if is_dir { 0o777 } else { 0o666 };
            assert_eq!(mode, all & !mask, "{}: {mode:o}", path.display());
        }
    }
}

#[test]
fn a_stored_head_that_differs_survives_a_run() {
    let dir = TempDir::new().unwrap();
    let model = copy(dir.path());
    edit(&model.join("config.json"), |c| c["tie_word_embeddings"] = json!(true));
    let result = done(call(&a_step("sft", dir.path(), &model, "").replace("1e-3", "1e-9")));
    let warning = "`lm_head.weight` differs from the embedding";
    assert_eq!(result.stderr.matches(warning).count(), 1, "{}", result.stderr);
    let checkpoint = dir.path().join("run/checkpoint-1");
    let [before, after] = [&model, &checkpoint].map(|folder| floats(&folder.join(WHOLE), HEAD));
    assert_eq!(before.len(), after.len());
    assert!(before.iter().zip(&after).all(|(before, after)| (before - after).abs() < 1e-6));
    let config = fs::read_to_string(checkpoint.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["tie_word_embeddings"], json!(false));
}

#[test]
fn what_a_folder_contradicts_is_said_once_by_a_run() {
    let dir = TempDir::new().unwrap();
    let model = copy(dir.path());
    let stale = "model-00001-of-00002.safetensors";
    let zero = TensorView::new(Dtype::F32, Vec::new(), &[0; 4]).unwrap();
    serialize_to_file([(HEAD, zero)], None, &model.join(stale)).unwrap();
    // `<|endoftext|>` alone; the chat template writes `<|im_end|>`.
    edit(&model.join("generation_config.json"), |c| c["eos_token_id"] = json!(536));
    // Policy and reference model read the same folder.
    let result = done(call(&a_step("grpo", dir.path(), &model, "--beta 0.04")));
    for text in [
        format!("not read: `{stale}`"),
        "files differ on where an answer ends; it ends at".to_owned(),
    ] {
        assert_eq!(result.stderr.matches(&text).count(), 1, "{}", result.stderr);
    }
}

#[test]
fn what_is_said_of_a_model_folder_stands_in_the_log_of_the_run() {
    let dir = TempDir::new().unwrap();
    let model = copy(dir.path());
    let file = model.join(WHOLE);
    let bytes = fs::read(&file).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.push(("score.weight".to_owned(), tensors[0].1.clone()));
    serialize_to_file(tensors, None, &file).unwrap();
    edit(&model.join("tokenizer_config.json"), |config| {
        config["chat_template"] = json!("another");
    });
    let result = done(call(&a_step("sft", dir.path(), &model, "")));
    let log = fs::read_to_string(dir.path().join("run/log.txt")).unwrap();
    for text in ["chat templates differ", "passed over, as in transformers: `score.weight`"] {
        assert!(result.stderr.contains(text), "{}", result.stderr);
        assert_eq!(log.matches(text).count(), 1, "{log}");
    }
}

#[test]
fn a_folder_that_is_no_model_is_named_with_one_that_is() {
    let dir = TempDir::new().unwrap();
    let inner = copy(dir.path());
    let packed = dir.path().join("packed");
    fs::create_dir(&packed).unwrap();
    fs::write(packed.join("model-q4.gguf"), "GGUF").unwrap();
    for (given, hint) in [
        (dir.path().to_owned(), format!("hint: there is one in `{}`", inner.display())),
        (inner.join(WHOLE), format!("hint: give its folder, `{}`", inner.display())),
        (packed, "hint: GGUF is not read".to_owned()),
    ] {
        for line in [
            format!("generate --model {} --prompt x --device cpu", given.display()),
            a_step("sft", dir.path(), &given, ""),
        ] {
            let result = call(&line);
            assert_eq!(result.code, Some(1), "{}", result.stderr);
            assert!(result.stderr.contains(&hint), "{line}\n{}", result.stderr);
        }
    }
}
