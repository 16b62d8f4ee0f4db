//! Prompts to scored groups: sampling, decoding, rewards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Completion, DrawKey, Example, PreparedImage, Prompt, RolloutGroup};
use config::GrpoConfig;
use data::Processor;
use engine::{Decoding, EngineError, Generator, Request, SamplingParams};
use models::VisionLanguageModel;
use rewards::{RewardError, RewardSet, Scores, ScoringQueue, StepSize};
use serde_json::{Map, Value, json};

use crate::TrainError;
use crate::algorithm::advantage::{GroupRewards, is_zero_spread, mean_and_std};
use crate::reward_inbox::RewardInbox;

/// A group with the texts and single rewards of its completions, as `rollouts/` shows it.
pub(crate) struct ScoredGroup {
    pub example: Example,
    pub group: RolloutGroup,
    /// `G` decoded completions without end-of-turn.
    pub texts: Vec<String>,
    /// `[rewards][G]`.
    pub per_reward: Vec<Vec<Option<f64>>>,
}

/// Sampling parameters from the configuration, with the end tokens and placeholders of the model folder.
pub(crate) fn sampling_params(config: &GrpoConfig, processor: &Processor) -> SamplingParams {
    let tokenizer = processor.tokenizer();
    SamplingParams {
        temperature: config.sampling.temperature,
        top_k: (config.filters.top_k > 0).then_some(config.filters.top_k),
        top_p: config.filters.top_p,
        min_p: config.filters.min_p.unwrap_or(0.0),
        repetition_penalty: config.filters.repetition_penalty,
        max_new_tokens: config.sampling.max_completion_length,
        min_new_tokens: config.sampling.min_completion_length,
        eos_ids: tokenizer.eos_ids().to_vec(),
        forbidden_ids: tokenizer.placeholder_ids().to_vec(),
    }
}

/// How groups are sampled.
pub(crate) struct Sampling<'a> {
    pub params: &'a SamplingParams,
    pub max_concurrent: usize,
    pub decoding: Decoding,
    /// Size of a group.
    pub num_completions: usize,
    pub share_prompt: bool,
    /// Of the first completion of the first prompt.
    pub key: DrawKey,
}

impl Sampling<'_> {
    /// One request for a group or, where prompts are not shared, for each of its completions; the
    /// random numbers are the same.
    fn requests(&self, index: usize, prompt: &Prompt) -> Vec<Request> {
        let key = DrawKey { prompt: self.key.prompt + index as u64, ..self.key };
        let one = |completion: usize| Request {
            prompt: unshared(prompt),
            num_completions: 1,
            key: DrawKey { completion: key.completion + completion as u64, ..key },
        };
        if self.share_prompt {
            let (prompt, num_completions) = (prompt.clone(), self.num_completions);
            vec![Request { prompt, num_completions, key }]
        } else {
            (0..self.num_completions).map(one).collect()
        }
    }
}

/// A copy with images of its own, so that nothing is shared with other prompts.
pub(crate) fn unshared(prompt: &Prompt) -> Prompt {
    let own = |image: &Arc<PreparedImage>| Arc::new(PreparedImage::clone(image));
    Prompt { ids: prompt.ids.clone(), images: prompt.images.iter().map(own).collect() }
}

/// How groups are scored.
pub(crate) struct Scoring<'a> {
    pub rewards: &'a RewardSet,
    pub processor: &'a Processor,
    /// The step that rewards get.
    pub step: u64,
}

/// Scored groups, and where the time went.
pub(crate) struct Rollout {
    pub groups: Vec<ScoredGroup>,
    pub sampling: Duration,
    /// Waiting for rewards after the last completion.
    pub waiting: Duration,
}

/// Samples a group of completions for every prompt and scores them. Rewards that do not need the whole step at once score finished
/// completions while others are still being sampled.
pub(crate) fn roll_out(
    model: &dyn VisionLanguageModel,
    sampling: &Sampling<'_>,
    scoring: &Scoring<'_>,
    (prompts, examples): (Vec<(usize, Prompt)>, Vec<Example>),
    cancel: &dyn Fn() -> bool,
) -> Result<Rollout, TrainError> {
    let group = sampling.num_completions;
    let inbox = RewardInbox::new(&prompts, &examples, group, scoring.step);
    let size = StepSize { rows: inbox.num_completions(), group };
    let start = Instant::now();
    let sample = |queue: &ScoringQueue<'_, '_>| {
        let finished = |index: usize, completion: &Completion| {
            inbox.push(index, completion, scoring.processor)?;
            queue.push(index);
            Ok(())
        };
        let cancel = || cancel() || queue.has_failed();
        let completions = sample(model, sampling, &prompts, &finished, &cancel)?;
        Ok((completions, Instant::now()))
    };
    let scored = scoring.rewards.score_while(size, |index| inbox.input(index), sample);
    let ((completions, sampled), scores) = scored.map_err(|failure| match failure {
        Failure::Reward(error) => inbox.name_sample(error),
        Failure::Sampling(error) => *error,
    })?;
    let texts = inbox.into_texts();
    let groups = grouped((prompts, examples), completions, texts, &scores);
    Ok(Rollout { groups, sampling: sampled - start, waiting: sampled.elapsed() })
}

/// What ends a rollout early.
enum Failure {
    Reward(RewardError),
    Sampling(Box<TrainError>),
}

impl From<RewardError> for Failure {
    fn from(error: RewardError) -> Self {
        Failure::Reward(error)
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        Failure::Sampling(Box::new(error))
    }
}

/// All completions in order. `finished` is called with each one and its index as it ends.
fn sample(
    model: &dyn VisionLanguageModel,
    sampling: &Sampling<'_>,
    prompts: &[(usize, Prompt)],
    finished: &dyn Fn(usize, &Completion) -> Result<(), TrainError>,
    cancel: &dyn Fn() -> bool,
) -> Result<Vec<Completion>, TrainError> {
    let generator = Generator::new(model, sampling.params.clone(), sampling.max_concurrent)?
        .with_decoding(sampling.decoding)?;
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .flat_map(|(index, (_, prompt))| sampling.requests(index, prompt))
        .collect();
    let of_request = requests.first().map_or(1, |first| first.num_completions);
    let mut undecoded = None;
    let mut on_finished = |request: usize, index: usize, completion: &Completion| {
        if let Err(error) = finished(request * of_request + index, completion) {
            undecoded.get_or_insert(error);
        }
    };
    let generation = match generator.generate(&requests, &mut on_finished, cancel) {
        Err(EngineError::Cancelled { .. }) => return Err(TrainError::Stopped),
        other => other?,
    };
    match undecoded {
        Some(error) => Err(error),
        None => Ok(generation.completions.into_iter().flatten().collect()),
    }
}

impl ScoredGroup {
    /// What advantages are made of.
    pub fn rewards(&self) -> GroupRewards<'_> {
        GroupRewards { total: &self.group.rewards, per_reward: &self.per_reward }
    }

    /// Whether all rewards are equal.
    pub fn is_zero_spread(&self) -> bool {
        is_zero_spread(&self.group.rewards)
    }

    /// Completions that every reward scored 0.
    pub fn num_zero(&self) -> usize {
        let all_zero = |index: usize| {
            self.per_reward.iter().all(|of| of[index].is_none_or(|reward| reward == 0.0))
        };
        let totals = self.group.rewards.iter().enumerate();
        totals.filter(|(index, total)| **total == 0.0 && all_zero(*index)).count()
    }
}

/// Completions with their scores; advantages are not known yet.
fn grouped(
    (prompts, examples): (Vec<(usize, Prompt)>, Vec<Example>),
    completions: Vec<Completion>,
    texts: Vec<Vec<String>>,
    scores: &Scores,
) -> Vec<ScoredGroup> {
    let mut completions = completions.into_iter();
    let mut start = 0;
    let groups = prompts.into_iter().zip(examples).zip(texts);
    groups
        .map(|(((example_index, prompt), example), texts)| {
            let range = start..start + texts.len();
            start = range.end;
            let rewards = scores.total[range.clone()].to_vec();
            let per_reward = scores.per_reward.iter();
            ScoredGroup {
                example,
                per_reward: per_reward.map(|each| each[range.clone()].to_vec()).collect(),
                group: RolloutGroup {
                    example_index,
                    prompt,
                    completions: completions.by_ref().take(texts.len()).collect(),
                    advantages: vec![0.0; rewards.len()],
                    rewards,
                },
                texts,
            }
        })
        .collect()
}

/// Metrics: mean reward, spread, each reward's own mean and its counters since the start.
pub(crate) fn reward_metrics(groups: &[ScoredGroup], rewards: &RewardSet) -> Map<String, Value> {
    let all: Vec<f64> = groups.iter().flat_map(|g| g.group.rewards.clone()).collect();
    let spreads: Vec<f64> = groups.iter().map(|g| mean_and_std(&g.group.rewards).1).collect();
    let mut metrics = Map::new();
    // Of a step whose rows were all skipped there is no mean.
    let mean = |values: &[f64]| {
        if values.is_empty() { Value::Null } else { json!(mean_and_std(values).0) }
    };
    metrics.insert("reward".into(), mean(&all));
    metrics.insert("reward_std".into(), mean(&spreads));
    for (index, name) in rewards.names().enumerate() {
        let values: Vec<f64> =
            groups.iter().flat_map(|g| g.per_reward[index].iter().flatten().copied()).collect();
        metrics.insert(format!("rewards/{name}"), mean(&values));
    }
    for (reward, counter, count) in rewards.counters() {
        metrics.insert(format!("rewards/{reward}/{counter}"), json!(count));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unshared_prompts_are_separate_requests_with_the_same_keys() {
        let image =
            PreparedImage::new(vec![0.0], base::ImageLayout::merged([1, 1, 1], 1), [1, 1], [1, 1]);
        let prompt = Prompt { ids: vec![1, 2], images: vec![Arc::new(image)] };
        let params = SamplingParams::default();
        let sampling = |share_prompt| Sampling {
            params: &params,
            max_concurrent: 8,
            decoding: Decoding::Eager,
            num_completions: 3,
            share_prompt,
            key: DrawKey { seed: 1, step: 2, prompt: 0, completion: 0 },
        };
        let shared = sampling(true).requests(5, &prompt);
        assert_eq!((shared.len(), shared[0].num_completions), (1, 3));
        let own = sampling(false).requests(5, &prompt);
        assert_eq!(own.len(), 3);
        for (index, request) in own.iter().enumerate() {
            let expected = DrawKey { completion: index as u64, ..shared[0].key };
            assert_eq!(request.key, expected);
            assert_eq!((request.num_completions, &request.prompt.ids), (1, &prompt.ids));
            assert!(!Arc::ptr_eq(&request.prompt.images[0], &prompt.images[0]));
        }
    }
}
