//! Completions of a step that go through a model together.

use base::{Completion, Prompt, SourceLine};
use models::VisionLanguageModel;

use crate::TrainError;
use crate::batch::{MicroBatch, PromptWithCompletions};
use crate::logprobs::TokenScores;
use crate::micro_batches::{GroupLens, Limits, Part, micro_batches};
use crate::out_of_memory::Divisible;
use crate::rollout::unshared;

/// A completion of the step: its group and its index within it.
pub(crate) type CompletionId = (usize, usize);

/// The completions of a group that count.
#[derive(Clone)]
pub(crate) struct GroupPart<'g> {
    /// Index of the group in the step.
    pub group: usize,
    /// The row that the group is about.
    pub source: &'g SourceLine,
    pub prompt: &'g Prompt,
    /// Their indices in the group.
    pub completions: Vec<(usize, &'g Completion)>,
}

impl GroupPart<'_> {
    fn lens(&self) -> GroupLens {
        GroupLens {
            prompt: self.prompt.ids.len(),
            completions: self.completions.iter().map(|(_, c)| c.ids.len()).collect(),
        }
    }
}

/// Prompts and completions of one pass. Tokens are packed anew for each pass, so that the images and index tables of only one micro-batch
/// exist at a time.
pub(crate) struct CompletionBatch<'g> {
    /// The row of the first of them.
    source: Option<&'g SourceLine>,
    items: Vec<PromptWithCompletions<'g>>,
    /// Otherwise each item's prompt goes through the model with images of its own.
    share_prompt: bool,
    pub ids: Vec<CompletionId>,
    /// Tokens of each completion.
    pub lens: Vec<usize>,
}

impl<'g> CompletionBatch<'g> {
    /// All completions of `groups`, in batches within `limits`.
    pub fn split(groups: &[GroupPart<'g>], limits: Limits) -> Vec<Self> {
        let lens: Vec<GroupLens> = groups.iter().map(GroupPart::lens).collect();
        let batches = micro_batches(&lens, limits);
        batches.iter().map(|parts| Self::new(parts, groups, limits.share_prompt)).collect()
    }

    fn new(parts: &[Part], groups: &[GroupPart<'g>], share_prompt: bool) -> Self {
        let (mut items, mut ids, mut lens) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let group = &groups[part.group];
            let completions = &group.completions[part.completions.clone()];
            let tokens = completions.iter().map(|(_, completion)| completion.ids.as_slice());
            items.push((group.prompt, tokens.collect()));
            ids.extend(completions.iter().map(|(index, _)| (group.group, *index)));
            lens.extend(completions.iter().map(|(_, completion)| completion.ids.len()));
        }
        let source = parts.first().map(|part| groups[part.group].source);
        CompletionBatch { source, items, share_prompt, ids, lens }
    }

    /// Its parts within `limits`.
    pub fn parts(&self, limits: Limits) -> Vec<Self> {
        let mut first = 0;
        let batches = micro_batches(&self.group_lens(), limits);
        let batches = batches.iter().map(|parts| {
            let last = first + parts.iter().map(|part| part.completions.len()).sum::<usize>();
            let item = |part: &Part| -> PromptWithCompletions<'g> {
                let (prompt, completions) = &self.items[part.group];
                (prompt, completions[part.completions.clone()].to_vec())
            };
            let batch = CompletionBatch {
                source: self.source,
                items: parts.iter().map(item).collect(),
                share_prompt: self.share_prompt,
                ids: self.ids[first..last].to_vec(),
                lens: self.lens[first..last].to_vec(),
            };
            first = last;
            batch
        });
        batches.collect()
    }

    /// Tokens of its prompts and completions.
    pub fn group_lens(&self) -> Vec<GroupLens> {
        let lens = |(prompt, completions): &PromptWithCompletions<'_>| GroupLens {
            prompt: prompt.ids.len(),
            completions: completions.iter().map(|ids| ids.len()).collect(),
        };
        self.items.iter().map(lens).collect()
    }

    /// The row of the first of them; of a part that was cut, that of the whole.
    pub fn source(&self) -> Option<&SourceLine> {
        self.source
    }

    /// What the model takes.
    pub fn pack(&self, model: &dyn VisionLanguageModel) -> Result<MicroBatch, TrainError> {
        if self.share_prompt {
            return MicroBatch::pack(model, &self.items);
        }
        let prompts: Vec<Prompt> = self.items.iter().map(|item| unshared(item.0)).collect();
        let completions = self.items.iter().map(|item| item.1.clone());
        let items: Vec<PromptWithCompletions<'_>> = prompts.iter().zip(completions).collect();
        MicroBatch::pack(model, &items)
    }

    /// Scores of all its tokens, without gradient.
    pub fn scores(
        &self,
        model: &dyn VisionLanguageModel,
        temperature: f64,
    ) -> Result<TokenScores, TrainError> {
        Ok(self.pack(model)?.scores(model, temperature))
    }
}

impl Divisible for CompletionBatch<'_> {
    fn group_lens(&self) -> Vec<GroupLens> {
        CompletionBatch::group_lens(self)
    }

    fn source(&self) -> Option<&SourceLine> {
        self.source
    }

    fn divide(batches: Vec<Self>, limits: Limits) -> Vec<Self> {
        batches.iter().flat_map(|batch| batch.parts(limits)).collect()
    }
}
