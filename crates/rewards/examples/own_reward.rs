//! A reward of one's own in Rust: the shorter the answer, the better, from 1 down to 0 at 200 characters.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement, not the program")]

use rewards::{Reward, RewardError, RewardInput, RewardSet};
use serde_json::Map;

struct Brevity;

impl Reward for Brevity {
    fn name(&self) -> &str {
        "brevity"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let length = |row: &RewardInput<'_>| row.completion.chars().count().min(200) as f64;
        Ok(rows.iter().map(|row| Some(1.0 - length(row) / 200.0)).collect())
    }
}

fn main() -> Result<(), RewardError> {
    // Training takes such a set by `train::train_grpo_with_rewards`.
    let rewards = RewardSet::new(vec![Box::new(Brevity)], None)?;
    let columns = Map::new();
    let row = RewardInput::new("<answer>yes</answer>", "<answer> yes </answer>", &columns);
    println!("{:?}", rewards.score(&[row])?.total);
    Ok(())
}
