//! Completions as rewards see them, from the moment each has ended.

use std::sync::OnceLock;

use base::{Completion, Example, FinishReason, Prompt};
use data::Processor;
use rewards::{RewardError, RewardInput};

use crate::TrainError;

/// What the rewards are told of a step's completions: groups of one size, one after another.
pub(crate) struct Board<'a> {
    prompts: Vec<Known<'a>>,
    /// Filled as answers end.
    answers: Vec<OnceLock<Answer>>,
    group_size: usize,
    step: u64,
}

/// What is known before an answer is.
struct Known<'a> {
    example: &'a Example,
    source: String,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
}

struct Answer {
    text: String,
    /// Without the one that ends the answer.
    num_tokens: usize,
}

impl<'a> Board<'a> {
    pub fn new(
        prompts: &[(usize, Prompt)],
        examples: &'a [Example],
        group_size: usize,
        step: u64,
    ) -> Self {
        let known = prompts.iter().zip(examples).map(|((_, prompt), example)| Known {
            example,
            source: example.source.to_string(),
            image_sizes: prompt.images.iter().map(|i| i.original_size).collect(),
            image_grid_thw: prompt.images.iter().map(|i| i.grid_thw).collect(),
        });
        let num_answers = prompts.len() * group_size;
        Board {
            prompts: known.collect(),
            answers: (0..num_answers).map(|_| OnceLock::new()).collect(),
            group_size,
            step,
        }
    }

    pub fn num_answers(&self) -> usize {
        self.answers.len()
    }

    /// Decodes an answer; from now on [`Self::row`] shows it.
    pub fn show(
        &self,
        index: usize,
        completion: &Completion,
        processor: &Processor,
    ) -> Result<(), TrainError> {
        let is_ended = completion.finish_reason == FinishReason::Stop;
        let answer = Answer {
            text: processor.tokenizer().decode(&completion.ids, true)?,
            num_tokens: completion.ids.len() - usize::from(is_ended),
        };
        assert!(self.answers[index].set(answer).is_ok(), "answer {index} ended twice");
        Ok(())
    }

    /// What the rewards see of an answer.
    ///
    /// # Panics
    /// Where it was not shown yet.
    pub fn row(&self, index: usize) -> RewardInput<'_> {
        let known = &self.prompts[index / self.group_size];
        let answer = self.answers[index].get().expect("rows are told of later");
        RewardInput {
            completion: &answer.text,
            solution: &known.example.solution,
            problem: Some(&known.example.problem),
            accu_reward_method: known.example.accu_reward_method.as_deref(),
            images: &known.example.images,
            image_sizes: &known.image_sizes,
            image_grid_thw: &known.image_grid_thw,
            columns: &known.example.columns,
            sample: Some(&known.source),
            step: Some(self.step),
            completion_tokens: Some(answer.num_tokens),
        }
    }

    /// The error of a reward, with the example that it is about.
    pub fn named(&self, source: RewardError) -> TrainError {
        if let RewardError::Plugin { .. } = source {
            // It names its examples itself: one, or all of a batch.
            return source.into();
        }
        match source.row().and_then(|row| self.prompts.get(row / self.group_size)) {
            Some(known) => {
                TrainError::Scoring { row: known.source.clone(), source: Box::new(source) }
            }
            None => source.into(),
        }
    }

    /// The texts of all answers, by group.
    pub fn into_texts(self) -> Vec<Vec<String>> {
        let text = |answer: OnceLock<Answer>| answer.into_inner().map(|answer| answer.text);
        let mut texts = self.answers.into_iter().map(|a| text(a).unwrap_or_default());
        let groups = 0..self.prompts.len();
        groups.map(|_| texts.by_ref().take(self.group_size).collect()).collect()
    }
}
