//! What every rank knows of the groups of a step: rewards and lengths, not prompts and texts. Statistics over the step are taken of these, so
//! that they are the same on all ranks, and those of one rank.

use base::{Completion, FinishReason};
use rewards::RewardSet;
use serde_json::{Map, Value, json};

use crate::TrainError;
use crate::algorithm::advantage::{GroupRewards, is_zero_spread, mean_and_std};
use crate::rollout::ScoredGroup;
use crate::session::Session;

/// The scores of a whole group, and the lengths of its completions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GroupScores {
    /// `[G]`: weighted sums.
    pub rewards: Vec<f64>,
    /// `[rewards][G]`.
    pub per_reward: Vec<Vec<Option<f64>>>,
    /// `[G]`: tokens of each completion.
    pub lens: Vec<usize>,
    /// `[G]`: which completions met the limit.
    pub cut_off: Vec<bool>,
    /// `[G]`, once they are known.
    pub advantages: Vec<f64>,
}

impl GroupScores {
    /// What advantages are made of.
    pub fn rewards(&self) -> GroupRewards<'_> {
        GroupRewards { total: &self.rewards, per_reward: &self.per_reward }
    }

    /// Whether all rewards are equal.
    pub fn is_zero_spread(&self) -> bool {
        is_zero_spread(&self.rewards)
    }

    /// Completions that every reward scored 0.
    pub fn num_zero(&self) -> usize {
        let all_zero = |index: usize| {
            self.per_reward.iter().all(|of| of[index].is_none_or(|reward| reward == 0.0))
        };
        let totals = self.rewards.iter().enumerate();
        totals.filter(|(index, total)| **total == 0.0 && all_zero(*index)).count()
    }
}

/// Whether a completion met the limit.
pub(crate) fn is_cut_off(completion: &Completion) -> bool {
    completion.finish_reason == FinishReason::Length
}

/// The scores of `groups` groups of `size` completions, of which each rank has its own; in the order of one rank.
pub(crate) fn gather(
    session: &Session<'_>,
    own: &[ScoredGroup],
    (groups, size): (usize, usize),
) -> Result<Vec<GroupScores>, TrainError> {
    let values = |scored: &ScoredGroup, index: usize| {
        let completion = &scored.group.completions[index];
        let is_cut_off = f64::from(is_cut_off(completion));
        let first = [scored.group.rewards[index], completion.ids.len() as f64, is_cut_off];
        // Rewards are finite.
        let single = scored.per_reward.iter().map(|of| of[index].unwrap_or(f64::NAN));
        first.into_iter().chain(single).collect()
    };
    let all = gather_values(session, "scores", own, (groups, size), values)?;
    let scores = all.into_iter().map(|completions| {
        let column = |index: usize| completions.iter().map(move |of: &Vec<f64>| of[index]);
        let num_rewards = completions.first().map_or(0, |of| of.len() - 3);
        let single = |index| column(3 + index).map(|value| Some(value).filter(|v| !v.is_nan()));
        GroupScores {
            rewards: column(0).collect(),
            lens: column(1).map(|len| len as usize).collect(),
            cut_off: column(2).map(|is_cut_off| is_cut_off != 0.0).collect(),
            per_reward: (0..num_rewards).map(|index| single(index).collect()).collect(),
            advantages: vec![0.0; completions.len()],
        }
    });
    Ok(scores.collect())
}

/// `[groups][size]`: what `values` says of each completion, on the rank that has it.
pub(crate) fn gather_values(
    session: &Session<'_>,
    operation: &str,
    own: &[ScoredGroup],
    (groups, size): (usize, usize),
    values: impl Fn(&ScoredGroup, usize) -> Vec<f64>,
) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
    let mut sent = Vec::new();
    for scored in own {
        for index in 0..scored.group.completions.len() {
            let values = values(scored, index);
            sent.extend([scored.index as f64, (scored.first + index) as f64, values.len() as f64]);
            sent.extend(values);
        }
    }
    let mut all = vec![vec![None; size]; groups];
    for (rank, numbers) in
        session.ranks.world.gather_numbers(operation, &sent)?.into_iter().enumerate()
    {
        let lost = |what: &str| TrainError::State {
            cause: format!("{operation}: rank {rank} sent {what}"),
        };
        let mut rest = numbers.as_slice();
        while let Some(([group, completion, count], values)) = rest.split_first_chunk::<3>() {
            let values = values.split_at_checked(*count as usize);
            let (values, others) = values.ok_or_else(|| lost("a part of its numbers"))?;
            let place =
                all.get_mut(*group as usize).and_then(|of| of.get_mut(*completion as usize));
            *place.ok_or_else(|| lost("a completion that there is not"))? = Some(values.to_vec());
            rest = others;
        }
    }
    let whole = |of: Vec<Option<Vec<f64>>>| of.into_iter().collect::<Option<Vec<_>>>();
    let whole: Option<Vec<_>> = all.into_iter().map(whole).collect();
    whole.ok_or_else(|| TrainError::State {
        cause: format!("{operation}: of a completion no rank sent them"),
    })
}

/// Metrics: mean reward, spread, each reward's own mean and its counters since the start.
pub(crate) fn reward_metrics(groups: &[GroupScores], rewards: &RewardSet) -> Map<String, Value> {
    let all: Vec<f64> = groups.iter().flat_map(|group| group.rewards.clone()).collect();
    let spreads: Vec<f64> = groups.iter().map(|group| mean_and_std(&group.rewards).1).collect();
    let mut metrics = Map::new();
    // Of a step whose rows were all skipped there is no mean.
    let mean = |values: &[f64]| {
        if values.is_empty() { Value::Null } else { json!(mean_and_std(values).0) }
    };
    metrics.insert("reward".into(), mean(&all));
    metrics.insert("reward_std".into(), mean(&spreads));
    for (index, name) in rewards.names().enumerate() {
        let values: Vec<f64> = groups
            .iter()
            .flat_map(|group| group.per_reward[index].iter().flatten().copied())
            .collect();
        metrics.insert(format!("rewards/{name}"), mean(&values));
    }
    for (reward, counter, count) in rewards.counters() {
        metrics.insert(format!("rewards/{reward}/{counter}"), json!(count));
    }
    metrics
}
