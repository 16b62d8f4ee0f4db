//! The contents of `rollouts/`: a row for each completion with all reward inputs, so that it can be scored again, and a line of the index
//! for each group.

use std::sync::Arc;

use base::run_folder::LoggedGroup;
use base::{Completion, Example, FinishReason, PreparedImage};
use rewards::RewardSet;
use serde_json::{Map, Value, json};

use crate::algorithm::advantage::mean_and_std;
use crate::ranks::Place;
use crate::rollout::ScoredGroup;
use crate::step_scores::GroupScores;

/// A row of each completion of this rank.
pub(crate) fn rows(groups: &[ScoredGroup], rewards: &RewardSet, step: u64) -> Vec<(Place, Value)> {
    groups.iter().flat_map(|scored| rows_of_group(scored, rewards, step)).collect()
}

fn rows_of_group(scored: &ScoredGroup, rewards: &RewardSet, step: u64) -> Vec<(Place, Value)> {
    let (group, example) = (&scored.group, &scored.example);
    let completions = group.completions.iter().enumerate();
    let rows = completions.map(|(i, completion)| {
        let each = rewards.names().zip(&scored.per_reward);
        let scored_completion = ScoredCompletion {
            place: (scored.index, scored.first + i),
            text: &scored.texts[i],
            completion,
            rewards: each.map(|(name, list)| (name.into(), json!(list[i]))).collect(),
            reward: group.rewards[i],
            advantage: group.advantages[i],
        };
        (scored_completion.place, row(step, example, &group.prompt.images, scored_completion))
    });
    rows.collect()
}

/// The groups of a step, from the rows of all ranks by place.
pub(crate) fn logged_groups(rows: Vec<(Place, Value)>, all: &[GroupScores]) -> Vec<LoggedGroup> {
    let mut rows = rows.into_iter().peekable();
    let logged = all.iter().enumerate().map(|(index, scores)| {
        let next = || rows.next_if(|((group, _), _)| *group == index).map(|(_, row)| row);
        let completions: Vec<Value> = std::iter::from_fn(next).collect();
        let sample = completions.first().map_or(Value::Null, |row| row["sample"].clone());
        LoggedGroup { completions, summary: summary(sample, scores) }
    });
    logged.collect()
}

/// A completion and its scores.
struct ScoredCompletion<'a> {
    place: Place,
    text: &'a str,
    completion: &'a Completion,
    rewards: Map<String, Value>,
    reward: f64,
    advantage: f64,
}

/// One row.
fn row(
    step: u64,
    example: &Example,
    images: &[Arc<PreparedImage>],
    scored_completion: ScoredCompletion<'_>,
) -> Value {
    json!({
        "step": step,
        "group": scored_completion.place.0,
        "completion_index": scored_completion.place.1,
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
        place: (0, 0),
        text: "",
        completion: &completion,
        rewards: rewards.iter().map(|name| (name.clone(), json!(number))).collect(),
        reward: number,
        advantage: number,
    };
    row(0, example, images, scored_completion).to_string().len()
}

/// What the index says of a group.
fn summary(sample: Value, scores: &GroupScores) -> Map<String, Value> {
    let rewards = &scores.rewards;
    let (mean, std) = mean_and_std(rewards);
    let least = rewards.iter().copied().reduce(f64::min);
    let most = rewards.iter().copied().reduce(f64::max);
    let count = rewards.len();
    let tokens: usize = scores.lens.iter().sum();
    let cut_off = scores.cut_off.iter().filter(|is_cut_off| **is_cut_off).count();
    let mut line = Map::new();
    let mut set = |key: &str, value: Value| line.insert(key.to_owned(), value);
    set("sample", sample);
    set("n", json!(count));
    set("reward_mean", json!(mean));
    set("reward_std", json!(std));
    set("min", json!(least));
    set("max", json!(most));
    set("zero_spread", json!(scores.is_zero_spread()));
    set("cut_off", json!(cut_off));
    set("tokens_mean", json!(tokens as f64 / count.max(1) as f64));
    line
}
