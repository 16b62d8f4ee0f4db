//! Time of one reward over the rows of a file, within the process, on one core.
//!
//! `cargo run --release -p rewards --example reward_speed ROWS.jsonl RULE PASSES`: a rule is a reward, a method of
//! `accuracy`, `FAMILY/accuracy` or `FAMILY/format`; `A+B` is both, one after the other. Prints one line of JSON:
//! the milliseconds of each pass and the scores. `benchmarks/rewards.py` runs it beside VLM-R1's functions.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement, not the program")]

use std::error::Error;
use std::time::Instant;

use rewards::{
    BoxUnits, OverlongOptions, PluginOptions, RewardFamily, RewardInput, RewardOptions, RewardSet,
    accuracy_methods, family_of,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Row {
    completion: String,
    solution: String,
    tokens: Option<usize>,
    image_size: Option<[u32; 2]>,
    image_grid_thw: Option<[usize; 3]>,
}

/// What a rule means: a set of one reward, and the method of the rows where it is `accuracy`.
struct Rule {
    set: RewardSet,
    method: String,
}

impl Rule {
    fn new(rule: &str) -> Result<Self, Box<dyn Error>> {
        let (family, name) = match rule.split_once('/') {
            Some((family, name)) => (Some(family_of(family)), name),
            None if accuracy_methods().any(|method| method == rule) => (None, "accuracy"),
            None => (None, rule),
        };
        let options = RewardOptions {
            family: family.unwrap_or(RewardFamily::WITHOUT_MODEL),
            task_type: Some("rec".to_owned()),
            is_reward_customized_from_vlm_module: family.is_some(),
            patch_size: 14,
            box_units: BoxUnits::default(),
            plugins: PluginOptions::default(),
            overlong: OverlongOptions::default(),
        };
        // `length` of a list of boxes asks for its accuracy by this method.
        let method = if name == rule { "weighted_sum" } else { rule };
        Ok(Self {
            set: RewardSet::build(&[name.to_owned()], None, &options)?,
            method: method.to_owned(),
        })
    }

    fn score(
        &self,
        rows: &[Row],
        columns: &Map<String, Value>,
    ) -> Result<Vec<f64>, Box<dyn Error>> {
        let inputs: Vec<RewardInput<'_>> = rows
            .iter()
            .map(|row| RewardInput {
                accu_reward_method: Some(&self.method),
                image_sizes: row.image_size.as_slice(),
                image_grid_thw: row.image_grid_thw.as_slice(),
                completion_tokens: row.tokens,
                ..RewardInput::new(&row.completion, &row.solution, columns)
            })
            .collect();
        Ok(self.set.score(&inputs)?.total)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, names, passes] = arguments.as_slice() else {
        return Err("expected: ROWS.jsonl RULE PASSES".into());
    };
    let rows: Vec<Row> = std::fs::read_to_string(path)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let rules: Vec<Rule> = names.split('+').map(Rule::new).collect::<Result<_, _>>()?;
    let columns = Map::new();
    let mut scores = vec![0.0; rows.len()];
    let mut pass_ms = Vec::new();
    for _ in 0..passes.parse::<usize>()? {
        scores.fill(0.0);
        let start = Instant::now();
        for rule in &rules {
            for (sum, score) in scores.iter_mut().zip(rule.score(&rows, &columns)?) {
                *sum += score;
            }
        }
        pass_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    println!("{}", json!({"pass_ms": pass_ms, "scores": scores}));
    Ok(())
}
