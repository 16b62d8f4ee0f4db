//! A reward of one's own in Rust: the shorter the answer, the better, from 1 down to 0 at 200 characters.

use rewards::{Reward, RewardError, RewardInput, RewardSet};
use serde_json::Map;

struct Brevity;

impl Reward for Brevity {
    fn name(&self) -> &str {
        "brevity"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let length = |row: &RewardInput<'_>| row.completion.chars().count().min(200);
        Ok(rows
            .iter()
            .map(|row| Some(1.0 - length(row) as f64 / 200.0))
            .collect())
    }
}

fn main() -> Result<(), RewardError> {
    // Training takes such a set by `train::train_grpo_with_rewards`.
    let rewards = RewardSet::new(vec![Box::new(Brevity)], None)?;
    let columns = Map::new();
    let row = RewardInput {
        completion: "<answer>yes</answer>",
        solution: "<answer> yes </answer>",
        problem: None,
        accu_reward_method: None,
        images: &[],
        image_sizes: &[],
        image_grid_thw: &[],
        columns: &columns,
        sample: None,
        step: None,
        completion_tokens: None,
    };
    println!("{:?}", rewards.score(&[row])?.total);
    Ok(())
}
