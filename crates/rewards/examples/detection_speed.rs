//! Time of `odLength` and `format` over 1,000 completions of 20 boxes, and of each detection method over
//! 100,000 characters; one core, best of ten.
//!
//! `cargo run --release -p rewards --example detection_speed [rows.jsonl]`; with a file, the rows are
//! written there for another program to be timed on.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rewards::{
    BoxUnits, Family, OverlongOptions, PluginOptions, RewardInput, RewardOptions, RewardSet,
    accuracy_methods,
};
use serde_json::{Map, json};

const NUM_COMPLETIONS: usize = 1000;
const NUM_BOXES: usize = 20;
const NUM_TRUTHS: usize = 10;
const LABELS: [&str; 4] = ["person", "traffic light", "dog", "red car"];

/// Boxes of a scene, moved by up to a few pixels that differ with `shift`.
fn boxes(count: usize, shift: usize) -> String {
    let items: Vec<String> = (0..count)
        .map(|n| {
            let (x, y) = (37 * n % 900 + shift * n % 5, 91 * n % 700 + shift % 3);
            let label = LABELS[n % LABELS.len()];
            let (right, bottom) = (x + 60 + n, y + 90);
            format!("{{\"bbox_2d\": [{x}, {y}, {right}, {bottom}], \"label\": \"{label}\"}}")
        })
        .collect();
    format!("```json\n[{}]\n```", items.join(", "))
}

fn row<'a>(
    completion: &'a str,
    solution: &'a str,
    method: &'a str,
    columns: &'a Map<String, serde_json::Value>,
) -> RewardInput<'a> {
    RewardInput {
        completion,
        solution,
        problem: None,
        accu_reward_method: Some(method),
        images: &[] as &[PathBuf],
        image_sizes: &[],
        image_grid_thw: &[],
        columns,
        sample: None,
        step: None,
        completion_tokens: None,
    }
}

fn best_of_ten(
    set: &RewardSet,
    rows: &[RewardInput<'_>],
) -> Result<(Duration, f64), Box<dyn Error>> {
    let mut best = Duration::MAX;
    let mut mean = 0.0;
    for _ in 0..10 {
        let start = Instant::now();
        let scores = set.score(rows)?;
        best = best.min(start.elapsed());
        mean = scores.total.iter().sum::<f64>() / rows.len() as f64;
    }
    Ok((best, mean))
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = RewardOptions {
        family: Family::Qwen2_5Vl,
        task_type: None,
        is_reward_customized_from_vlm_module: false,
        patch_size: 14,
        box_units: BoxUnits::default(),
        plugins: PluginOptions::default(),
        overlong: OverlongOptions::default(),
    };
    let names = ["accuracy".to_owned(), "format".to_owned()];
    let set = RewardSet::build(&names, None, &options)?;
    let columns = Map::new();
    let solution = format!("<answer> {} </answer>", boxes(NUM_TRUTHS, 0));
    let completions: Vec<String> = (0..NUM_COMPLETIONS)
        .map(|n| {
            let thought = "There are a few things here; let me look at them one by one. ".repeat(8);
            let boxes = boxes(NUM_BOXES, n);
            format!("<think>{thought}</think>\n<answer>{boxes}</answer>")
        })
        .collect();
    if let Some(path) = std::env::args_os().nth(1) {
        let line = |text: &String| json!({"completion": text, "solution": solution}).to_string();
        let lines: Vec<String> = completions.iter().map(line).collect();
        std::fs::write(path, lines.join("\n") + "\n")?;
    }
    let rows: Vec<RewardInput<'_>> = completions
        .iter()
        .map(|completion| row(completion, &solution, "odLength", &columns))
        .collect();
    let (took, mean) = best_of_ten(&set, &rows)?;
    println!("{NUM_COMPLETIONS} completions, odLength + format: {took:.2?} (mean total {mean:.6})");

    let item = "{\"bbox_2d\": [1, 2, 61, 92], \"label\": \"person\"}, ";
    let items = item.repeat(100_000 / item.len());
    let long = format!("<think>t</think><answer>```json\n[{items}0]\n```</answer>");
    for method in accuracy_methods() {
        if set.check(0, &solution, Some(method)).is_ok() {
            let (took, _) = best_of_ten(&set, &[row(&long, &solution, method, &columns)])?;
            println!("100,000 characters, {method} + format: {took:.2?}");
        }
    }
    Ok(())
}
