//! Prompts to scored groups: sampling, decoding, rewards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Completion, DrawKey, Example, PreparedImage, Prompt, RolloutGroup};
use config::{GrpoConfig, RewardBatch};
use data::Processor;
use engine::{Decoding, EngineError, Generator, Request, SamplingParams};
use models::VisionLanguageModel;
use rewards::{AskedScores, RewardError, RewardSet, ScoringQueue, StepSize};

use crate::TrainError;
use crate::dataset::{Dataset, Drawn, OwnPrompt};
use crate::reward_inbox::RewardInbox;
use crate::session::Session;
use crate::shared_rewards::{self, Unscored};
use crate::step_scores::{self, GroupScores};

/// This rank's completions of a group, with their texts and single rewards, as `rollouts/` shows them.
pub(crate) struct ScoredGroup {
    /// Place of the group in the step, over all ranks.
    pub index: usize,
    /// Place in the group of the first completion here.
    pub first: usize,
    pub example: Example,
    pub group: RolloutGroup,
    /// Decoded completions without end-of-turn.
    pub texts: Vec<String>,
    /// `[rewards][completions]`.
    pub per_reward: Vec<Vec<Option<f64>>>,
}

/// The groups of a step: this rank's completions, and the scores of all.
#[derive(Default)]
pub(crate) struct Groups {
    pub own: Vec<ScoredGroup>,
    /// In the order of one rank.
    pub all: Vec<GroupScores>,
}

impl Groups {
    /// Groups that have a spread take the places of those at `silent`, one after another; returns how many.
    pub fn replace(&mut self, silent: &[usize], found: Groups) -> usize {
        let with_spread =
            found.all.iter().enumerate().filter(|(_, scores)| !scores.is_zero_spread());
        let places: BTreeMap<usize, usize> =
            with_spread.zip(silent).map(|((from, _), place)| (from, *place)).collect();
        for (from, scores) in found.all.iter().enumerate() {
            if let Some(&place) = places.get(&from) {
                self.all[place] = scores.clone();
            }
        }
        self.own.retain(|scored| !places.values().any(|place| *place == scored.index));
        self.own.extend(found.own.into_iter().filter_map(|mut scored| {
            scored.index = *places.get(&scored.index)?;
            Some(scored)
        }));
        self.own.sort_by_key(|scored| (scored.index, scored.first));
        places.len()
    }
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
    /// One request for the completions of a prompt or, where prompts are not shared, for each of them; the random numbers are the same,
    /// whatever rank draws them.
    fn requests(&self, own: &OwnPrompt) -> Vec<Request> {
        let prompt = self.key.prompt + own.index as u64;
        let key = |completion: usize| DrawKey {
            prompt,
            completion: self.key.completion + completion as u64,
            ..self.key
        };
        let one = |completion: usize| Request {
            prompt: unshared(&own.prompt),
            num_completions: 1,
            key: key(completion),
        };
        if self.share_prompt {
            let (prompt, num_completions) = (own.prompt.clone(), own.completions.len());
            vec![Request { prompt, num_completions, key: key(own.completions.start) }]
        } else {
            own.completions.clone().map(one).collect()
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
    pub dataset: &'a Dataset,
    /// Of the rows that are sampled.
    pub examples: &'a data::Rows,
    /// The step that rewards get.
    pub step: u64,
}

/// Samples the completions of the drawn prompts and scores them, on all ranks; `cancel` says when to give up. Rewards that do not need more
/// at once than this rank has score finished completions while others are still being sampled.
///
/// # Errors
/// On all ranks where there is one on any.
pub(crate) fn roll_out(
    session: &Session<'_>,
    sampling: &Sampling<'_>,
    scoring: &Scoring<'_>,
    drawn: Drawn,
    cancel: &dyn Fn() -> bool,
) -> Result<Groups, TrainError> {
    let deal = session.deal(sampling.num_completions);
    // What a rank by itself does not have whole is scored when all have sampled.
    let is_shared = |batch: RewardBatch| match batch {
        RewardBatch::Completion => false,
        RewardBatch::Group => deal.cuts_groups(drawn.rows),
        RewardBatch::Step => deal.size > 1,
    };
    let model = session.model.as_ref();
    let sampled = session.together("sampling", || {
        let examples = drawn.own.iter().map(|own| scoring.examples.get(own.example_index));
        let examples = examples.collect::<Result<Vec<_>, _>>()?;
        if let [first, others @ ..] = examples.as_slice() {
            let source = format!("{} and {} more", first.source, others.len());
            session.at("sampling and rewards", Some(&source));
        }
        let is_asked = |batch| !is_shared(batch);
        sample_and_score(model, sampling, scoring, (drawn.own, examples), &is_asked, cancel)
    })?;
    session.clock.book("rollout", sampled.sampling);
    let start = Instant::now();
    let scores = if scoring.rewards.batches().any(is_shared) {
        shared_rewards::score(session, scoring, &sampled.unscored, sampled.scores, is_shared)?
    } else {
        sampled.scores
    };
    let groups = sampled.unscored.into_groups(scoring.rewards, scores);
    let all = step_scores::gather(session, &groups, (drawn.ready, sampling.num_completions))?;
    session.clock.book("reward", sampled.waiting + start.elapsed());
    Ok(Groups { own: groups, all })
}

/// Completions with the scores that this rank can give them by itself, and where the time went.
struct Sampled {
    unscored: Unscored,
    /// Of each reward.
    scores: Vec<AskedScores>,
    sampling: Duration,
    /// Waiting for rewards after the last completion.
    waiting: Duration,
}

fn sample_and_score(
    model: &dyn VisionLanguageModel,
    sampling: &Sampling<'_>,
    scoring: &Scoring<'_>,
    (prompts, examples): (Vec<OwnPrompt>, Vec<Example>),
    is_asked: &dyn Fn(RewardBatch) -> bool,
    cancel: &dyn Fn() -> bool,
) -> Result<Sampled, TrainError> {
    let processor = scoring.dataset.processor.as_ref();
    let inbox = RewardInbox::new(&prompts, &examples, scoring.step);
    // Where groups are cut, no reward that is asked here looks at them.
    let size = StepSize { rows: inbox.num_completions(), group: sampling.num_completions };
    let start = Instant::now();
    let sample = |queue: &ScoringQueue<'_, '_>| {
        let finished = |index: usize, completion: &Completion| {
            inbox.push(index, completion, processor)?;
            queue.push(index);
            Ok(())
        };
        let cancel = || cancel() || queue.has_failed();
        let completions = sample(model, sampling, &prompts, &finished, &cancel)?;
        Ok((completions, Instant::now()))
    };
    let row = |index| inbox.input(index);
    let scored = scoring.rewards.score_some_while(size, is_asked, row, sample);
    let ((completions, sampled), scores) = scored.map_err(|failure| match failure {
        Failure::Reward(error) => inbox.name_sample(error),
        Failure::Sampling(error) => *error,
    })?;
    let texts = inbox.into_texts();
    Ok(Sampled {
        unscored: Unscored { prompts, examples, completions, texts },
        scores,
        sampling: sampled - start,
        waiting: sampled.elapsed(),
    })
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
    prompts: &[OwnPrompt],
    finished: &dyn Fn(usize, &Completion) -> Result<(), TrainError>,
    cancel: &dyn Fn() -> bool,
) -> Result<Vec<Completion>, TrainError> {
    let generator = Generator::new(model, sampling.params.clone(), sampling.max_concurrent)?
        .with_decoding(sampling.decoding)?;
    let requests: Vec<Request> = prompts.iter().flat_map(|own| sampling.requests(own)).collect();
    let firsts: Vec<usize> = requests
        .iter()
        .scan(0, |next, request| {
            *next += request.num_completions;
            Some(*next - request.num_completions)
        })
        .collect();
    let mut undecoded = None;
    let mut on_finished = |request: usize, index: usize, completion: &Completion| {
        if let Err(error) = finished(firsts[request] + index, completion) {
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
            num_completions: 5,
            share_prompt,
            key: DrawKey { seed: 1, step: 2, prompt: 10, completion: 0 },
        };
        // A part of a group.
        let own = OwnPrompt { index: 5, completions: 1..4, example_index: 0, prompt };
        let shared = sampling(true).requests(&own);
        assert_eq!((shared.len(), shared[0].num_completions), (1, 3));
        assert_eq!((shared[0].key.prompt, shared[0].key.completion), (15, 1));
        let each = sampling(false).requests(&own);
        assert_eq!(each.len(), 3);
        for (index, request) in each.iter().enumerate() {
            let expected = DrawKey { completion: 1 + index as u64, ..shared[0].key };
            assert_eq!(request.key, expected);
            assert_eq!((request.num_completions, &request.prompt.ids), (1, &own.prompt.ids));
            assert!(!Arc::ptr_eq(&request.prompt.images[0], &own.prompt.images[0]));
        }
    }
}
