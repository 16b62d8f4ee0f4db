//! Rows that `reward` reads: those of a run's `rollouts/`, and files of any form.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::call;
use crate::reward::lines;

/// A row as a run writes it to `rollouts/`.
fn rollout_row() -> Value {
    json!({
        "step": 3, "group": 0, "completion_index": 0, "sample": "train.jsonl:1", "images": ["images/1.png"],
        "image_sizes": [[100, 100]], "input_sizes": [[56, 112]], "image_grid_thw": [[1, 8, 4]], "prompt": "Where?",
        "solution": "<answer> [0, 0, 50, 50] </answer>",
        "completion": "<think></think><answer>{\"bbox\": [0, 0, 28, 56]}</answer>", "tokens": 9, "finish_reason": "stop",
        "rewards": {"accuracy": 1.0, "format": 1.0}, "reward": 2.0, "advantage": 0.0, "accu_reward_method": "all_match",
        "columns": {"mine": 7, "image": "1.png"}
    })
}

/// Rewards see of a row of `rollouts/` what they saw in the run.
#[test]
fn rows_of_rollouts_are_read_as_the_run_showed_them() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("run/rollouts");
    fs::create_dir_all(&folder).unwrap();
    fs::write(dir.path().join("run/env.json"), "{\"cwd\": \"/runs/there\"}").unwrap();
    let reward = dir.path().join("told.py");
    let file = folder.join("step_3.jsonl");
    let told = |row: &Value, wanted: &Value, flags: &str| {
        fs::write(&file, format!("{row}\n")).unwrap();
        let check = format!(
            "import json\ndef told(**kwargs):\n    wanted = json.loads({:?})\n    for key, value in wanted.items():\n        \
             got = kwargs.get(key)\n        got = got[0] if isinstance(got, list) else got\n        \
             assert got == value, (key, got, value)\n    return [1.0]\n",
            wanted.to_string()
        );
        fs::write(&reward, check).unwrap();
        call(&format!(
            "reward --input {} --reward_funcs {}:told {flags}",
            file.display(),
            reward.display()
        ))
    };
    let wanted = json!({
        "problem": "Where?", "sample": "train.jsonl:1", "step": 3, "mine": 7, "image": "1.png",
        "image_path": ["/runs/there/images/1.png"], "image_size": [[100, 100]], "image_grid_thw": [[1, 8, 4]],
        "accu_reward_method": "all_match", "advantage": null,
    });
    let row = rollout_row();
    let result = told(&row, &wanted, "");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    // Patches of another side would scale every box, in silence.
    let result = told(&row, &wanted, "--patch_size 16");
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.contains("56 px in 4 patches, of 14 px each, and `patch_size` is 16"),
        "{}",
        result.stderr
    );
    assert!(result.stderr.contains("hint: --patch_size 14"), "{}", result.stderr);
    // An older run: the grid follows from the size, the names from where we are.
    let mut old = row;
    for key in ["step", "image_grid_thw", "accu_reward_method", "columns"] {
        old.as_object_mut().unwrap().remove(key);
    }
    fs::write(dir.path().join("run/env.json"), "{}").unwrap();
    let wanted = json!({
        "image_path": ["images/1.png"], "image_grid_thw": [[1, 8, 4]], "problem": "Where?", "step": null,
    });
    let result = told(&old, &wanted, "");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let result = told(&old, &wanted, "--patch_size 16");
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.contains("56 x 112 px are no whole patches of 16 px"),
        "{}",
        result.stderr
    );
    let rec = "--task_type rec --is_reward_customized_from_vlm_module true";
    let rescore = |flags: &str| call(&format!("reward --input {} {flags}", file.display()));
    let result = rescore(&format!("--reward_funcs accuracy format {rec}"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let scored = &lines(&result.stdout)[0]["rewards"];
    assert_eq!(*scored, json!({"accuracy": 1.0, "format": 1.0}));
    let result = rescore("--reward_funcs accuracy");
    assert_eq!(result.code, Some(1));
    assert!(
        result.stderr.contains("step_3.jsonl:1: missing key `accu_reward_method`"),
        "{}",
        result.stderr
    );
    assert_eq!(rescore("--reward_funcs accuracy --reward_method default").code, Some(0));
}

/// VLM-R1's solutions may be lists; Python's JSON may hold what RFC 8259 does not.
#[test]
fn rows_of_any_form_and_true_answers_of_any_type_are_scored() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("rows.json");
    let rows = r#"[{"completion": "<think>a</think><answer>{\"b\": [1, 2, 3, 4]}</answer>", "solution": [1, 2, 3, 4], "x": NaN},
        {"completion": "<answer>7</answer>", "solution": 7, "x": "\ud83d"}]"#;
    fs::write(&input, rows).unwrap();
    let scored =
        |more: &str| call(&format!("reward --input {} --patch_size 14 {more}", input.display()));
    let result = scored(
        "--reward_funcs accuracy --family internvl --task_type rec --is_reward_customized_from_vlm_module true",
    );
    assert!(result.stderr.contains("item 2"), "a number is no box: {}", result.stderr);
    let result = scored("--reward_funcs accuracy");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let rewards: Vec<Value> =
        result.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&rewards[1]["reward"], &rewards[0]["x"]), (&json!(1.0), &Value::Null));
    for told in [
        "`x` holds `NaN`, read as null: 1 row: ",
        "`x` holds half of a surrogate pair",
        "the answers of 1 of 2 rows are boxes",
    ] {
        assert!(result.stderr.contains(told), "{told}\n{}", result.stderr);
    }
    fs::write(&input, "{\"completion\": \"a\", \"solution\": Infinity}").unwrap();
    let result = scored("");
    assert!(
        result.stderr.contains("rows.json:1: `solution` holds `Infinity`"),
        "{}",
        result.stderr
    );
    fs::write(&input, "{\"completion\": \"a b\", \"solution\": \"a\"}").unwrap();
    let result = scored("--reward_funcs repetition");
    assert!(
        result.stdout.contains("\"reward\":0.0") && !result.stdout.contains("-0.0"),
        "{}",
        result.stdout
    );
}
