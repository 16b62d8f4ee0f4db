//! Finished completions as inputs of the rewards.

use std::sync::OnceLock;

use base::{Completion, Example, FinishReason, Prompt};
use data::Processor;
use rewards::{RewardError, RewardInput};

use crate::TrainError;

/// The finished completions of a step, in groups of equal size. Filled by the generator, read by the reward threads.
pub(crate) struct RewardInbox<'a> {
    prompts: Vec<PromptRecord<'a>>,
    /// Set as completions finish.
    completions: Vec<OnceLock<Decoded>>,
    group_size: usize,
    step: u64,
}

/// A prompt's part of a reward input.
struct PromptRecord<'a> {
    sample: &'a Example,
    source: String,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
}

struct Decoded {
    text: String,
    /// Without the end token.
    num_tokens: usize,
}

impl<'a> RewardInbox<'a> {
    pub fn new(
        prompts: &[(usize, Prompt)],
        samples: &'a [Example],
        group_size: usize,
        step: u64,
    ) -> Self {
        let records = prompts.iter().zip(samples).map(|((_, prompt), sample)| PromptRecord {
            sample,
            source: sample.source.to_string(),
            image_sizes: prompt.images.iter().map(|i| i.original_size).collect(),
            image_grid_thw: prompt.images.iter().map(|i| i.layout.tiles[0]).collect(),
        });
        let num_completions = prompts.len() * group_size;
        RewardInbox {
            prompts: records.collect(),
            completions: (0..num_completions).map(|_| OnceLock::new()).collect(),
            group_size,
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
        let prompt = &self.prompts[index / self.group_size];
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
    pub fn name_sample(&self, source: RewardError) -> TrainError {
        if let RewardError::Plugin { .. } = source {
            // It names its samples itself.
            return source.into();
        }
        match source.row().and_then(|row| self.prompts.get(row / self.group_size)) {
            Some(prompt) => {
                TrainError::Scoring { row: prompt.source.clone(), source: Box::new(source) }
            }
            None => source.into(),
        }
    }

    /// The texts of all completions, by group.
    pub fn into_texts(self) -> Vec<Vec<String>> {
        let text = |decoded: OnceLock<Decoded>| decoded.into_inner().map(|decoded| decoded.text);
        let mut texts = self.completions.into_iter().map(|d| text(d).unwrap_or_default());
        let groups = 0..self.prompts.len();
        groups.map(|_| texts.by_ref().take(self.group_size).collect()).collect()
    }
}
