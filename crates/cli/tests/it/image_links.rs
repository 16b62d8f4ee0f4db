//! Image folders of links, as clusters have them: one rule in every command that reads rows.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use testing::{checkpoint, golden};

use crate::program::call;

/// Rows of all commands over `images/coco`, a link to `data/`; by the name of a file.
fn cluster() -> TempDir {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("images")).unwrap();
    fs::create_dir_all(at("data")).unwrap();
    fs::copy(golden("parity/images/scene.png"), at("data/a.png")).unwrap();
    symlink(at("data"), at("images/coco")).unwrap();
    let absolute = at("data/a.png").display().to_string();
    for (file, image) in [
        ("linked", "coco/a.png"),
        ("absolute", absolute.as_str()),
        ("climbing", "coco/../data/a.png"),
    ] {
        let row = json!({
            "image": image, "images": [image], "image_path": image, "prompt": "Where?",
            "completion": "a", "solution": "<answer> a </answer>", "accu_reward_method": "all_match",
            "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "[1, 2, 3, 4]"}],
        });
        fs::write(at(&format!("{file}.jsonl")), format!("{row}\n{row}\n")).unwrap();
        let item = json!([{"image": image, "problem": "Where?", "solution": "a"}]);
        fs::write(at(&format!("{file}.json")), item.to_string()).unwrap();
    }
    dir
}

fn commands(dir: &Path, file: &str) -> Vec<String> {
    let at = dir.display();
    let model = checkpoint("nested");
    let model = model.display();
    let images = format!("{at}/images");
    let own = "--device cpu --num_threads 1";
    let run = format!(
        "--model_name_or_path {model} --data_file_paths {at}/{file}.jsonl --image_folders {images} --max_steps 1 --per_device_train_batch_size 2 {own}"
    );
    vec![
        format!("sft {run} --output_dir {at}/sft-{file}"),
        format!(
            "grpo {run} --output_dir {at}/grpo-{file} --num_generations 2 --max_completion_length 2 --reward_method all_match"
        ),
        format!(
            "eval --model {model} --task rec --data_file_paths {at}/{file}.jsonl --image_folders {images} --output_dir {at}/eval-{file} --max_new_tokens 2 {own}"
        ),
        format!(
            "generate --model {model} --input {at}/{file}.jsonl --image_folder {images} --max_new_tokens 2 {own}"
        ),
        format!("logprobs --model {model} --input {at}/{file}.jsonl --image_folder {images} {own}"),
        format!("reward --input {at}/{file}.jsonl --image_folder {images}"),
        format!("data check --data_file_paths {at}/{file}.jsonl --image_folders {images}"),
        format!("data convert --from vlm-r1-json --input {at}/{file}.json --image_folder {images}"),
    ]
}

#[test]
fn every_command_follows_links_where_that_is_asked_and_only_there() {
    let dir = cluster();
    let link = "/images/coco` is a link to `";
    for line in commands(dir.path(), "linked") {
        let refused = call(&line);
        let told = format!("{}{}", refused.stdout, refused.stderr);
        assert_ne!(refused.code, Some(0), "{line}\n{told}");
        assert!(told.contains(link) && told.contains("--follow_links true"), "{line}\n{told}");
    }
    // By either name, in turns.
    let lines = commands(dir.path(), "linked").into_iter().zip(commands(dir.path(), "absolute"));
    for (index, (linked, absolute)) in lines.enumerate() {
        let line = if index % 2 == 0 { linked } else { absolute };
        let followed = call(&format!("{line} --follow_links true"));
        let told = format!("{}{}", followed.stdout, followed.stderr);
        assert_eq!(followed.code, Some(0), "{line}\n{told}");
    }
    // Rows of training, of evaluation and of the others.
    for line in commands(dir.path(), "climbing").into_iter().skip(4) {
        let refused = call(&format!("{line} --follow_links true"));
        let told = format!("{}{}", refused.stdout, refused.stderr);
        assert_ne!(refused.code, Some(0), "{line}\n{told}");
        assert!(
            told.contains("leaves its image folder") || told.contains("image_outside"),
            "{line}\n{told}"
        );
    }
}
