//! Rewards that must see more at once than one rank has: completions travel to the rank that scores them, as on one rank, and the scores
//! come back.

use std::collections::BTreeMap;
use std::ops::Range;

use base::{Completion, Example, RolloutGroup};
use config::RewardBatch;
use rewards::{AskedScores, RewardInput, RewardSet};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::dataset::OwnPrompt;
use crate::reward_inbox::{Decoded, image_grids, image_sizes, name_sample};
use crate::rollout::{ScoredGroup, Scoring};
use crate::session::Session;

/// This rank's completions, those of a prompt after one another.
pub(crate) struct Unscored {
    pub prompts: Vec<OwnPrompt>,
    pub examples: Vec<Example>,
    pub completions: Vec<Completion>,
    pub texts: Vec<Decoded>,
}

/// A completion on its way to the rank that scores it.
#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    /// Place of the group in the step, and of the completion in the group.
    place: (usize, usize),
    example_index: usize,
    text: String,
    num_tokens: usize,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
}

/// A score on its way back.
#[derive(Debug, Serialize, Deserialize)]
struct Given {
    reward: usize,
    place: (usize, usize),
    score: Option<f64>,
}

impl Unscored {
    /// Each completion with its prompt.
    fn places(&self) -> impl Iterator<Item = (&OwnPrompt, (usize, usize))> {
        self.prompts.iter().flat_map(|own| {
            own.completions.clone().map(move |completion| (own, (own.index, completion)))
        })
    }

    fn sent(&self) -> Vec<Sent> {
        let sent = self.places().zip(&self.texts).map(|((own, place), decoded)| Sent {
            place,
            example_index: own.example_index,
            text: decoded.text.clone(),
            num_tokens: decoded.num_tokens,
            image_sizes: image_sizes(&own.prompt),
            image_grid_thw: image_grids(&own.prompt),
        });
        sent.collect()
    }

    /// Completions with their scores; advantages are not known yet.
    pub fn into_groups(self, rewards: &RewardSet, scores: Vec<AskedScores>) -> Vec<ScoredGroup> {
        // Without a completion there is no score.
        let scores = scores.into_iter().map(Option::unwrap_or_default).collect();
        let scores = rewards.summed(self.completions.len(), scores);
        let (mut completions, mut texts) = (self.completions.into_iter(), self.texts.into_iter());
        let mut first = 0;
        let groups = self.prompts.into_iter().zip(self.examples).map(|(own, example)| {
            let count = own.completions.len();
            let range = first..first + count;
            first = range.end;
            let per_reward = scores.per_reward.iter().map(|of| of[range.clone()].to_vec());
            ScoredGroup {
                index: own.index,
                first: own.completions.start,
                example,
                per_reward: per_reward.collect(),
                group: RolloutGroup {
                    example_index: own.example_index,
                    prompt: own.prompt,
                    completions: completions.by_ref().take(count).collect(),
                    advantages: vec![0.0; count],
                    rewards: scores.total[range].to_vec(),
                },
                texts: texts.by_ref().take(count).map(|decoded| decoded.text).collect(),
            }
        });
        groups.collect()
    }
}

/// `scores` with those of the shared rewards.
///
/// # Errors
/// Those of rewards, on all ranks.
pub(crate) fn score(
    session: &Session<'_>,
    scoring: &Scoring<'_>,
    unscored: &Unscored,
    mut scores: Vec<AskedScores>,
    is_shared: impl Fn(RewardBatch) -> bool,
) -> Result<Vec<AskedScores>, TrainError> {
    let world = session.ranks.world.as_ref();
    let own = serde_json::to_vec(&unscored.sent()).map_err(|error| unread(&error))?;
    let mut starts = Vec::new();
    let mut all: Vec<Sent> = Vec::new();
    for text in world.gather("completions to score", &own)? {
        starts.push(all.len());
        all.extend(serde_json::from_slice::<Vec<Sent>>(&text).map_err(|error| unread(&error))?);
    }
    // By place: those of a group after one another, as ranks have them.
    debug_assert!(all.is_sorted_by_key(|sent| sent.place));
    let rank = world.rank();
    let end = starts.get(rank + 1).copied().unwrap_or(all.len());
    let given = session
        .together("rewards", || give(scoring, &all, (starts[rank]..end, rank), &is_shared))?;
    let own = serde_json::to_vec(&given).map_err(|error| unread(&error))?;
    let mut given = BTreeMap::new();
    for text in world.gather("scores of shared rewards", &own)? {
        let of_rank: Vec<Given> = serde_json::from_slice(&text).map_err(|error| unread(&error))?;
        given.extend(of_rank.into_iter().map(|given| ((given.reward, given.place), given.score)));
    }
    for (reward, scores) in scores.iter_mut().enumerate() {
        if scores.is_none() {
            let of = |(_, place)| {
                given.get(&(reward, place)).copied().ok_or_else(|| TrainError::State {
                    cause: format!("no rank scored completion {} of group {}", place.1, place.0),
                })
            };
            *scores = Some(unscored.places().map(of).collect::<Result<_, _>>()?);
        }
    }
    Ok(scores)
}

/// The scores of the shared rewards that this rank gives: of a step rank 0, of a group the rank that has its first completion.
fn give(
    scoring: &Scoring<'_>,
    all: &[Sent],
    (own, rank): (Range<usize>, usize),
    is_shared: &dyn Fn(RewardBatch) -> bool,
) -> Result<Vec<Given>, TrainError> {
    let examples = all.iter().map(|sent| scoring.examples.get(sent.example_index));
    let mut groups = Vec::new();
    let mut start = 0;
    for group in all.chunk_by(|a, b| a.place.0 == b.place.0) {
        groups.push(start..start + group.len());
        start += group.len();
    }
    let groups_here: Vec<Range<usize>> =
        groups.into_iter().filter(|group| own.contains(&group.start)).collect();
    let of_step = Some(0..all.len()).filter(|step| rank == 0 && !step.is_empty());
    let step: Vec<Range<usize>> = of_step.into_iter().collect();
    let mut given = Vec::new();
    let batches = scoring.rewards.batches().enumerate().filter(|(_, batch)| is_shared(*batch));
    let shared: Vec<(usize, RewardBatch)> = batches.collect();
    let has_work = |batch| match batch {
        RewardBatch::Step => !step.is_empty(),
        _ => !groups_here.is_empty(),
    };
    if !shared.iter().any(|(_, batch)| has_work(*batch)) {
        return Ok(given);
    }
    let examples: Vec<Example> = examples.collect::<Result<_, _>>()?;
    let sources: Vec<String> = examples.iter().map(|example| example.source.to_string()).collect();
    let rows =
        all.iter().zip(&examples).zip(&sources).map(|((sent, example), source)| RewardInput {
            completion: &sent.text,
            solution: &example.solution,
            problem: Some(&example.problem),
            accu_reward_method: example.accu_reward_method.as_deref(),
            images: &example.images,
            image_sizes: &sent.image_sizes,
            image_grid_thw: &sent.image_grid_thw,
            columns: &example.columns,
            sample: Some(source),
            step: Some(scoring.step),
            completion_tokens: Some(sent.num_tokens),
        });
    let rows: Vec<RewardInput<'_>> = rows.collect();
    for (reward, batch) in shared {
        let batches = if batch == RewardBatch::Step { &step } else { &groups_here };
        if batches.is_empty() {
            continue;
        }
        let scores = scoring.rewards.score_batches(reward, &rows, batches);
        let scores = scores.map_err(|error| name_sample(error, |row| sources.get(row)))?;
        let places = batches.iter().cloned().flatten().map(|index| all[index].place);
        given.extend(places.zip(scores).map(|(place, score)| Given { reward, place, score }));
    }
    Ok(given)
}

fn unread(error: &serde_json::Error) -> TrainError {
    TrainError::State { cause: format!("completions on their way between ranks: {error}") }
}
