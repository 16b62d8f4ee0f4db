//! `plan` on a tiny checkpoint: its arithmetic shows in what it prints.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use testing::{checkpoint, golden};

use crate::program::{CallResult, call};

fn plan(dir: &Path, more: &str) -> CallResult {
    let data = dir.join("train.jsonl");
    let turns = json!([{"from": "human", "value": "<image>Where is it?"}, {"from": "gpt", "value": "[1, 2, 3, 4]"}]);
    let row = |image: &str| format!("{}\n", json!({"image": image, "conversations": turns}));
    fs::write(&data, row("scene.png") + &row("small.png")).unwrap();
    call(&format!(
        "plan --model_name_or_path {model} --data_file_paths {data} --image_folders {images} --output_dir {output} \
         --num_generations 4 --per_device_train_batch_size 8 --max_completion_length 16 --max_steps 10 \
         --device cpu --num_threads 1 {more}",
        model = checkpoint("nested").display(),
        data = data.display(),
        images = golden("parity/images").display(),
        output = dir.join("out").display(),
    ))
}

/// The three cells of each line that has a name of words and then cells.
fn cells(result: &CallResult) -> HashMap<String, [f64; 3]> {
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let rows = result.stdout.lines().filter_map(|line| {
        let (name, cells) = line.split_at_checked(28)?;
        let cells: Vec<f64> =
            cells.split_whitespace().map(|cell| cell.parse().ok()).collect::<Option<_>>()?;
        Some((name.trim().to_owned(), cells.try_into().ok()?))
    });
    rows.collect()
}

#[test]
fn memory_time_and_cost_of_three_ways() {
    let dir = TempDir::new().unwrap();
    let result = plan(
        dir.path(),
        "--memory 1GiB 1000B 1000000000000000000B --cost_per_hour 3600000 --eval_steps 5 --eval_config evals.yaml",
    );
    assert!(result.stdout.contains("\nevaluations take time"), "{}", result.stdout);
    assert!(
        result.stdout.contains("\nrollouts on disk: at most ")
            && result.stdout.contains(" MiB for all 10 steps (4 bytes a token), and "),
        "{}",
        result.stdout
    );
    let rows = cells(&result);
    let of = |name: &str| rows[name];
    let [full, frozen, lora] = of("parameters trained");
    assert!(full > frozen && frozen > lora && lora > 0.0, "{rows:?}");
    let mebibyte = f64::from(1 << 20);
    for (name, bytes) in [("moments", 8.0), ("gradients", 4.0)] {
        for (cell, trained) in of(name).into_iter().zip([full, frozen, lora]) {
            let expected = trained * bytes / mebibyte;
            assert!((cell - expected).abs() <= 0.06, "{name}: {cell}, {expected}");
        }
    }
    let always = ["weights", "adapters", "f32 masters", "moments", "reference", "feature cache"];
    for (way, peak) in of("peak").into_iter().enumerate() {
        let held: f64 = always.iter().map(|name| of(name)[way]).sum();
        let least = of("gradients")[way].max(of("activations")[way] + of("logits, a chunk")[way]);
        assert!(peak + 0.5 > held + least, "{way}: {rows:?}");
    }
    assert!(of("peak")[0] > of("peak")[1], "{rows:?}");
    assert_eq!(of("reference")[2], 0.0);
    assert!(of("reference")[0] > 0.0, "{rows:?}");
    // 1000 a second, ten steps.
    for (secs, cost) in of("a step, s").into_iter().zip(of("cost")) {
        assert!(cost > 0.0 && (secs * 1e4 - cost).abs() < 5.1, "{secs} {cost}");
    }
    let line = |name: &str| result.stdout.lines().find(|line| line.starts_with(name));
    // Of a checkpoint in f32 the state is three times the model: weights and two moments.
    let (model, state) = (of("the model"), of("what going on needs"));
    assert!((state[0] - 3.0 * model[0]).abs() < 0.21, "{}", result.stdout);
    assert!(line("1000B, kept").unwrap().ends_with("none"), "{}", result.stdout);
    assert!(line("1GiB, kept").unwrap().ends_with(')'), "{}", result.stdout);
    // However wide a name or a number is, columns stand apart.
    let wide = line("1000000000000000000B, recomputed").unwrap();
    let columns = wide.split("  ").filter(|cell| !cell.trim().is_empty());
    assert_eq!(columns.count(), 4, "{wide}");
    assert!(!dir.path().join("out").exists(), "a plan writes no run folder");
}

#[test]
fn several_ranks_have_a_larger_step_and_a_part_of_the_state() {
    let dir = TempDir::new().unwrap();
    let on_card = "--device H200 --bf16 true --cost_per_hour 3600000";
    let one = plan(dir.path(), on_card);
    assert!(!one.stdout.contains("ranks"), "{}", one.stdout);
    let four = plan(dir.path(), &format!("{on_card} --ranks 4"));
    assert!(four.stdout.contains("\na step: 8 prompts, 32 completions;"), "{}", four.stdout);
    let said = "\n4 ranks: 8 completions on each; exact weights, moments, summed gradients and reference in shards \
                (stage 2); memory and time are those of one rank\n";
    assert!(four.stdout.contains(said), "{}", four.stdout);
    let (alone, rank) = (cells(&one), cells(&four));
    for name in ["moments", "f32 masters", "gradients", "reference"] {
        // All weights are in shards, adapters are not.
        assert!((alone[name][0] / 4.0 - rank[name][0]).abs() < 0.06, "{name}: {alone:?} {rank:?}");
        assert_eq!(alone[name][2], rank[name][2], "{name}");
    }
    assert_eq!(alone["weights"], rank["weights"]);
    let (zero, two) = (rank["peak, stage 0"], rank["peak, stage 2"]);
    assert_eq!([two[0], two[1], zero[2]], rank["peak"]);
    assert!(zero[0] > two[0] && zero[1] > two[1], "{rank:?}");
    // 3 quarters of 4 bytes of sums, and 2 each of weights and reference, in one round.
    let sent = rank["parameters trained"][0] * 8.0 * 0.75 / f64::from(1 << 20);
    assert!((rank["sent by a rank a step, MiB"][0] - sent).abs() < 0.2, "{sent} {rank:?}");
    for network in ["NVLink", "200 Gbit/s"] {
        let of = |name: String| rank[&name];
        let (step, alone) = (of(format!("a step, {network}, s")), of(format!("{network}, s")));
        let phases =
            ["prefill", "decoding", "reference", "policy forward", "policy backward", "update"];
        let sum: f64 = phases.iter().map(|name| rank[&format!("{name}, s")][0]).sum();
        assert!((sum + alone[0] - step[0]).abs() < 0.005, "{network}: {}", four.stdout);
        let cost = of(format!("cost, {network}"))[0];
        assert!((step[0] * 1e4 - cost).abs() < 5.1, "{network}: {}", four.stdout);
    }
    let whole = plan(dir.path(), &format!("{on_card} --ranks 4 --zero_stage 0"));
    assert!(whole.stdout.contains("nothing in shards (stage 0)"), "{}", whole.stdout);
    assert_eq!(cells(&whole)["moments"], alone["moments"]);
}

#[test]
fn stage_3_runs_as_2_where_that_fits() {
    let dir = TempDir::new().unwrap();
    let asked = "--device H200 --bf16 true --ranks 8 --zero_stage 3 --memory 1GiB 1000B";
    let result = plan(dir.path(), asked);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let line = |start: &str| result.stdout.lines().find(|line| line.starts_with(start));
    let fits = line("1GiB: zero_stage 3 runs as 2: weights in shards are not built yet").unwrap();
    assert!(fits.ends_with(" GB of each of 8 ranks, which have 1.1 GB"), "{fits}");
    let not = result.stdout.split("\n1000B: ").nth(1).unwrap();
    assert!(
        not.contains("zero_stage") && not.contains("which have 0.0 GB\nhint: none of our"),
        "{not}"
    );
    let none = plan(dir.path(), "--device H200 --bf16 true --zero_stage 3");
    assert!(!none.stdout.contains("runs as 2"), "one rank has nothing to share: {}", none.stdout);
    let bad = plan(dir.path(), "--ranks 0");
    assert_eq!(bad.code, Some(2), "{}", bad.stderr);
}

#[test]
fn a_bad_amount_is_refused() {
    let dir = TempDir::new().unwrap();
    let result = plan(dir.path(), "--memory 24TB");
    assert_eq!(result.code, Some(2), "{}", result.stderr);
    assert!(result.stderr.contains("24TB"), "{}", result.stderr);
    let result = plan(dir.path(), "--use_peft true --lora_vision true");
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert!(result.stderr.contains("lora_vision"), "{}", result.stderr);
}

#[test]
fn a_card_that_is_not_here() {
    let dir = TempDir::new().unwrap();
    // The later flag counts.
    let result =
        plan(dir.path(), "--device h200 --bf16 true --cuda_graphs true --cost_per_hour 3600000");
    let rows = cells(&result);
    assert!(result.stdout.contains("predicted for one H200, not measured"), "{}", result.stdout);
    assert!(result.stdout.contains("decoding by CUDA graphs"), "{}", result.stdout);
    assert!(!result.stdout.contains("probe:"), "nothing is timed here: {}", result.stdout);
    let phases =
        ["prefill", "decoding", "reference", "policy forward", "policy backward", "update"];
    let sum: f64 = phases.iter().map(|name| rows[&format!("{name}, s")][0]).sum();
    let step = rows["a step, s"];
    assert!((sum - step[0]).abs() < 0.004 && step[0] > 0.0, "{}", result.stdout);
    let fits = result.stdout.lines().find(|line| line.starts_with("H200, 1/10 left free, kept"));
    assert!(fits.is_some_and(|line| line.ends_with(')')), "{}", result.stdout);
    let eager = cells(&plan(dir.path(), "--device H200 --bf16 true --cuda_graphs false"));
    assert!(eager["decoding, s"][0] > rows["decoding, s"][0], "{eager:?}");
    let other = plan(dir.path(), "--device rtx-4090 --bf16 true --cuda_graphs true");
    assert!(other.stdout.contains("predicted for one RTX4090"), "{}", other.stdout);
    // A tiny step is launches alone.
    assert!(cells(&other)["a step, s"][0] >= step[0], "{}", other.stdout);

    let result = plan(dir.path(), "--device H300");
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert!(
        result.stderr.contains("device `H300`: expected `auto`, `cpu`, `cuda` or `cuda:N`\nhint:")
            && result.stderr.contains("H200, H100, A100, RTX4090"),
        "{}",
        result.stderr
    );
}
