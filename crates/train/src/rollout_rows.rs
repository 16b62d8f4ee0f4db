//! The contents of `rollouts/`: a row for each completion with all reward inputs, so that it can be scored again, and a line of the index
//! for each group.

use std::sync::Arc;

use base::run_folder::LoggedGroup;
use base::{Completion, Example, FinishReason, PreparedImage};
use rewards::RewardSet;
use serde_json::{Map, Value, json};

use crate::algorithm::advantage::mean_and_std;
use crate::rollout::ScoredGroup;

/// The groups of a step.
pub(crate) fn logged_groups(
    groups: &[ScoredGroup],
    rewards: &RewardSet,
    step: u64,
) -> Vec<LoggedGroup> {
    let logged = groups.iter().enumerate().map(|(index, scored)| LoggedGroup {
        completions: rows(scored, rewards, (step, index)),
        summary: summary(scored),
    });
    logged.collect()
}

/// A row of each completion; `place` is step and group.
fn rows(scored: &ScoredGroup, rewards: &RewardSet, place: (u64, usize)) -> Vec<Value> {
    let (group, example) = (&scored.group, &scored.example);
    let completions = group.completions.iter().enumerate();
    let rows = completions.map(|(i, completion)| {
        let each = rewards.names().zip(&scored.per_reward);
        let scored_completion = ScoredCompletion {
            index: i,
            text: &scored.texts[i],
            completion,
            rewards: each.map(|(name, list)| (name.into(), json!(list[i]))).collect(),
            reward: group.rewards[i],
            advantage: group.advantages[i],
        };
        row(place, example, &group.prompt.images, scored_completion)
    });
    rows.collect()
}

/// A completion and its scores.
struct ScoredCompletion<'a> {
    index: usize,
    text: &'a str,
    completion: &'a Completion,
    rewards: Map<String, Value>,
    reward: f64,
    advantage: f64,
}

/// One row.
fn row(
    (step, group): (u64, usize),
    example: &Example,
    images: &[Arc<PreparedImage>],
    scored_completion: ScoredCompletion<'_>,
) -> Value {
    json!({
        "step": step,
        "group": group,
        "completion_index": scored_completion.index,
        "sample": example.source.to_string(),
        "images": example.images,
        "image_sizes": images.iter().map(|i| i.original_size).collect::<Vec<_>>(),
        "input_sizes": images.iter().map(|i| i.input_size).collect::<Vec<_>>(),
        "image_grid_thw": images.iter().map(|i| i.layout.tiles[0]).collect::<Vec<_>>(),
        "prompt": example.problem,
        "solution": example.solution,
        "completion": scored_completion.text,
        "tokens": scored_completion.completion.ids.len(),
        "finish_reason": scored_completion.completion.finish_reason,
        "rewards": scored_completion.rewards,
        "reward": scored_completion.reward,
        "advantage": scored_completion.advantage,
        "accu_reward_method": example.accu_reward_method,
        "columns": example.columns,
    })
}

/// Bytes of a row but for the completion's text, with one number a reward.
pub(crate) fn empty_row_bytes(
    example: &Example,
    images: &[Arc<PreparedImage>],
    rewards: &[String],
) -> usize {
    let completion = Completion {
        ids: Vec::new(),
        sampled_logprobs: Vec::new(),
        finish_reason: FinishReason::Length,
    };
    // Numbers of most rows are that long.
    let number = std::f64::consts::FRAC_1_SQRT_2;
    let scored_completion = ScoredCompletion {
        index: 0,
        text: "",
        completion: &completion,
        rewards: rewards.iter().map(|name| (name.clone(), json!(number))).collect(),
        reward: number,
        advantage: number,
    };
    row((0, 0), example, images, scored_completion).to_string().len()
}

/// What the index says of a group.
fn summary(scored: &ScoredGroup) -> Map<String, Value> {
    let (group, example) = (&scored.group, &scored.example);
    let rewards = &group.rewards;
    let (mean, std) = mean_and_std(rewards);
    let least = rewards.iter().copied().reduce(f64::min);
    let most = rewards.iter().copied().reduce(f64::max);
    let count = group.completions.len();
    let tokens: usize = group.completions.iter().map(|c| c.ids.len()).sum();
    let cut_off = group.completions.iter();
    let cut_off = cut_off.filter(|c| c.finish_reason == FinishReason::Length);
    let mut line = Map::new();
    let mut set = |key: &str, value: Value| line.insert(key.to_owned(), value);
    set("sample", json!(example.source.to_string()));
    set("n", json!(count));
    set("reward_mean", json!(mean));
    set("reward_std", json!(std));
    set("min", json!(least));
    set("max", json!(most));
    set("zero_spread", json!(scored.is_zero_spread()));
    set("cut_off", json!(cut_off.count()));
    set("tokens_mean", json!(tokens as f64 / count.max(1) as f64));
    line
}
