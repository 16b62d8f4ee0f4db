//! Finished completions as inputs of the rewards.

use std::sync::OnceLock;

use base::{Completion, Example, FinishReason, Prompt};
use data::Processor;
use rewards::{RewardError, RewardInput};

use crate::TrainError;
use crate::dataset::OwnPrompt;

/// The finished completions of a step that this rank has. Filled by the generator, read by the reward threads.
pub(crate) struct RewardInbox<'a> {
    prompts: Vec<PromptRecord<'a>>,
    /// Set as completions finish.
    completions: Vec<OnceLock<Decoded>>,
    /// Index of each completion's prompt.
    prompt_of: Vec<usize>,
    step: u64,
}

/// A prompt's part of a reward input.
struct PromptRecord<'a> {
    sample: &'a Example,
    source: String,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
}

/// The text of a completion.
pub(crate) struct Decoded {
    pub text: String,
    /// Without the end token.
    pub num_tokens: usize,
}

impl<'a> RewardInbox<'a> {
    pub fn new(prompts: &[OwnPrompt], samples: &'a [Example], step: u64) -> Self {
        let records = prompts.iter().zip(samples).map(|(own, sample)| PromptRecord {
            sample,
            source: sample.source.to_string(),
            image_sizes: image_sizes(&own.prompt),
            image_grid_thw: image_grids(&own.prompt),
        });
        let prompt_of = prompts
            .iter()
            .enumerate()
            .flat_map(|(index, own)| std::iter::repeat_n(index, own.completions.len()));
        let prompt_of: Vec<usize> = prompt_of.collect();
        RewardInbox {
            prompts: records.collect(),
            completions: prompt_of.iter().map(|_| OnceLock::new()).collect(),
            prompt_of,
            step,
        }
    }

    pub fn num_completions(&self) -> usize {
        self.completions.len()
    }

    /// Decodes a finished completion and stores it for [`Self::input`].
    pub fn push(
        &self,
        index: usize,
        completion: &Completion,
        processor: &Processor,
    ) -> Result<(), TrainError> {
        let is_ended = completion.finish_reason == FinishReason::Stop;
        let decoded = Decoded {
            text: processor.tokenizer().decode(&completion.ids, true)?,
            num_tokens: completion.ids.len() - usize::from(is_ended),
        };
        assert!(self.completions[index].set(decoded).is_ok(), "completion {index} finished twice");
        Ok(())
    }

    /// The reward input of a completion.
    ///
    /// # Panics
    /// Before the completion was pushed.
    pub fn input(&self, index: usize) -> RewardInput<'_> {
        let prompt = &self.prompts[self.prompt_of[index]];
        let completion = self.completions[index].get().expect("pushed before it is queued");
        RewardInput {
            completion: &completion.text,
            solution: &prompt.sample.solution,
            problem: Some(&prompt.sample.problem),
            accu_reward_method: prompt.sample.accu_reward_method.as_deref(),
            images: &prompt.sample.images,
            image_sizes: &prompt.image_sizes,
            image_grid_thw: &prompt.image_grid_thw,
            columns: &prompt.sample.columns,
            sample: Some(&prompt.source),
            step: Some(self.step),
            completion_tokens: Some(completion.num_tokens),
        }
    }

    /// Adds the sample that it is about to the error of a reward.
    pub fn name_sample(&self, error: RewardError) -> TrainError {
        name_sample(error, |row| Some(&self.prompts[*self.prompt_of.get(row)?].source))
    }

    /// The texts of all completions.
    pub fn into_texts(self) -> Vec<Decoded> {
        self.completions.into_iter().filter_map(OnceLock::into_inner).collect()
    }
}

/// Adds the sample that it is about to the error of a reward; `source_of` says whose row it is.
pub(crate) fn name_sample<'s>(
    error: RewardError,
    source_of: impl Fn(usize) -> Option<&'s String>,
) -> TrainError {
    if let RewardError::Plugin { .. } = error {
        // It names its samples itself.
        return error.into();
    }
    match error.row().and_then(source_of) {
        Some(source) => TrainError::Scoring { row: source.clone(), source: Box::new(error) },
        None => error.into(),
    }
}

/// Width and height of each image as it came, px.
pub(crate) fn image_sizes(prompt: &Prompt) -> Vec<[u32; 2]> {
    prompt.images.iter().map(|image| image.original_size).collect()
}

/// Patches in time, height, width of each image as the model sees it.
pub(crate) fn image_grids(prompt: &Prompt) -> Vec<[usize; 3]> {
    prompt.images.iter().map(|image| image.layout.tiles[0]).collect()
}
