//! Which completions are in the batch and which prompts in the cache, and the moves that keep both dense. No tensors here.

use std::error::Error;
use std::rc::Rc;

use base::{Completion, DrawKey, FinishReason};

use crate::params::SamplingParams;
use crate::request::{Request, RequestId};
use crate::stop::{StopMatcher, TextDecoder};

/// A request that an engine took.
#[derive(Debug)]
pub struct QueuedRequest {
    /// Its name.
    pub id: RequestId,
    /// What to sample.
    pub request: Request,
    /// How.
    pub params: Rc<SamplingParams>,
    /// Texts that end its completions, if any.
    pub stop_strings: Option<Rc<[String]>>,
}

/// Why a completion takes no further token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is complete.
    Finished(FinishReason),
    /// Its request was aborted.
    Aborted,
}

/// One completion being decoded.
#[derive(Debug)]
pub struct Slot {
    /// Its request.
    pub request: RequestId,
    /// Index of the completion within it.
    pub completion: usize,
    /// Index of its prompt in the cache.
    pub prompt: usize,
    /// Position (all three axes) of its first token.
    pub first_position: i64,
    /// Key of its random numbers.
    pub key: DrawKey,
    /// The choice of its tokens, and its lengths.
    pub params: Rc<SamplingParams>,
    /// `None` without stop strings.
    pub stop: Option<StopMatcher>,
    /// Tokens so far.
    pub ids: Vec<u32>,
    /// Their log-probabilities.
    pub sampled_logprobs: Vec<f32>,
    /// Set when it ended.
    pub end: Option<End>,
}

impl Slot {
    /// Appends a token and sets `end` if the completion ends with it. `decode` is needed where there are stop strings.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn push(
        &mut self,
        id: u32,
        logprob: f32,
        decode: Option<&TextDecoder<'_>>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.ids.push(id);
        self.sampled_logprobs.push(logprob);
        let stops = match (&mut self.stop, decode) {
            (Some(stop), Some(decode)) => stop.completes(&self.ids, decode)?,
            _ => false,
        };
        let SamplingParams { eos_ids, min_new_tokens, max_new_tokens, .. } = &*self.params;
        let reason = match () {
            () if eos_ids.contains(&id) => FinishReason::Stop,
            () if stops && self.ids.len() > *min_new_tokens => FinishReason::StopString,
            () if self.ids.len() >= *max_new_tokens => FinishReason::Length,
            () => return Ok(()),
        };
        self.end = Some(End::Finished(reason));
        Ok(())
    }

    /// The completion, once finished.
    pub fn into_completion(self) -> Option<Completion> {
        let Slot { ids, sampled_logprobs, end, .. } = self;
        match end {
            Some(End::Finished(finish_reason)) => {
                Some(Completion { ids, sampled_logprobs, finish_reason })
            }
            Some(End::Aborted) | None => None,
        }
    }
}

/// A prompt in the cache.
#[derive(Debug)]
pub struct CachedPrompt<L> {
    /// Its request.
    pub request: QueuedRequest,
    /// Position after the prompt.
    pub next_position: i64,
    /// The first completion that has not started.
    pub next_completion: usize,
    /// Completions in slots.
    pub running: usize,
    /// Logits of the first token, while completions wait.
    pub first_logits: Option<L>,
}

impl<L> CachedPrompt<L> {
    /// Prompt tokens.
    pub fn num_tokens(&self) -> usize {
        self.request.request.prompt.ids.len()
    }

    /// Completions that have not started.
    pub fn num_waiting(&self) -> usize {
        self.request.request.num_completions - self.next_completion
    }

    /// Whether nobody needs it any more.
    pub fn is_done(&self) -> bool {
        self.running == 0 && self.num_waiting() == 0
    }

    /// Starts `count` of the waiting completions; `index` is that of the prompt.
    pub fn start(&mut self, count: usize, index: usize) -> Vec<Slot> {
        let QueuedRequest { id, request, params, stop_strings } = &self.request;
        let slot = |completion: usize| Slot {
            request: *id,
            completion,
            prompt: index,
            first_position: self.next_position,
            key: DrawKey { completion: request.key.completion + completion as u64, ..request.key },
            params: Rc::clone(params),
            stop: stop_strings.clone().map(StopMatcher::new),
            ids: Vec::new(),
            sampled_logprobs: Vec::new(),
            end: None,
        };
        let slots = (self.next_completion..self.next_completion + count).map(slot).collect();
        self.next_completion += count;
        self.running += count;
        if self.num_waiting() == 0 {
            self.first_logits = None;
        }
        slots
    }

    /// Gives up the completions that have not started.
    pub fn give_up_waiting(&mut self) {
        self.next_completion = self.request.request.num_completions;
        self.first_logits = None;
    }
}

/// Elements to copy within a tensor so that the kept ones are at its front: `to[i] = from[i]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Sources, all behind the new end.
    pub from: Vec<i64>,
    /// Destinations, all before it.
    pub to: Vec<i64>,
}

/// Removes the elements that `leaves` names and fills each hole with an element of the tail; the others stay.
pub fn compact<T>(items: &mut Vec<T>, leaves: impl Fn(&T) -> bool) -> (Vec<T>, Moves) {
    let leaving: Vec<bool> = items.iter().map(&leaves).collect();
    let kept = leaving.iter().filter(|l| !**l).count();
    let from: Vec<usize> = (kept..items.len()).filter(|&i| !leaving[i]).collect();
    let to: Vec<usize> = (0..kept).filter(|&i| leaving[i]).collect();
    for (&source, &target) in from.iter().zip(&to) {
        items.swap(source, target);
    }
    let gone = items.split_off(kept);
    let cast = |list: Vec<usize>| list.into_iter().map(|i| i as i64).collect();
    (gone, Moves { from: cast(from), to: cast(to) })
}

/// The index of each slot within its group: how many earlier slots have the same prompt.
pub fn indices_in_groups(prompts: usize, prompt_of_slot: &[usize]) -> Vec<usize> {
    let mut sizes = vec![0usize; prompts];
    let index = |&prompt: &usize| {
        sizes[prompt] += 1;
        sizes[prompt] - 1
    };
    prompt_of_slot.iter().map(index).collect()
}

/// The slots as a rectangle of prompts by group size, padded where groups differ, so that one product serves all completions of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub struct PaddedGroups {
    /// Prompts.
    pub prompts: usize,
    /// Completions of the largest group.
    pub group_size: usize,
    /// Slot of each padded slot, `[prompts * group_size]`; 0 for padding. `None`: slots are in order without padding.
    pub slot_of_padded: Option<Vec<i64>>,
    /// Padded slot of each slot; `None` as above.
    pub padded_of_slot: Option<Vec<i64>>,
}

impl PaddedGroups {
    /// For `prompt_of_slot[i]`, the prompt of slot `i`.
    pub fn new(prompts: usize, prompt_of_slot: &[usize]) -> Self {
        let indices = indices_in_groups(prompts, prompt_of_slot);
        let group_size = indices.iter().max().map_or(0, |index| index + 1);
        let padded_of_slot: Vec<i64> = prompt_of_slot
            .iter()
            .zip(&indices)
            .map(|(prompt, index)| (prompt * group_size + index) as i64)
            .collect();
        if prompt_of_slot.len() == prompts * group_size
            && padded_of_slot.iter().enumerate().all(|(slot, &padded)| slot as i64 == padded)
        {
            return PaddedGroups {
                prompts,
                group_size,
                slot_of_padded: None,
                padded_of_slot: None,
            };
        }
        let mut slot_of_padded = vec![0i64; prompts * group_size];
        for (slot, &padded) in padded_of_slot.iter().enumerate() {
            slot_of_padded[padded as usize] = slot as i64;
        }
        PaddedGroups {
            prompts,
            group_size,
            slot_of_padded: Some(slot_of_padded),
            padded_of_slot: Some(padded_of_slot),
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Prompt;

    use super::*;

    #[test]
    fn holes_are_filled_from_the_tail() {
        let mut items = vec!['a', 'B', 'c', 'D', 'e', 'F', 'g'];
        let (gone, moves) = compact(&mut items, |c| c.is_uppercase());
        assert_eq!(items, ['a', 'e', 'c', 'g']);
        assert_eq!(moves, Moves { from: vec![4, 6], to: vec![1, 3] });
        let mut gone = gone;
        gone.sort_unstable();
        assert_eq!(gone, ['B', 'D', 'F']);
    }

    #[test]
    fn compaction_of_none_and_all_moves_nothing() {
        let mut items = vec![1, 2, 3];
        assert_eq!(compact(&mut items, |_| false), (vec![], Moves::default()));
        assert_eq!(compact(&mut items, |_| true).1, Moves::default());
        assert!(items.is_empty());
    }

    #[test]
    fn whole_groups_in_order_need_no_index() {
        let groups = PaddedGroups::new(2, &[0, 0, 0, 1, 1, 1]);
        let in_order =
            PaddedGroups { prompts: 2, group_size: 3, slot_of_padded: None, padded_of_slot: None };
        assert_eq!(groups, in_order);
    }

    #[test]
    fn ragged_groups_are_indexed() {
        let groups = PaddedGroups::new(3, &[1, 0, 1]);
        assert_eq!(groups.group_size, 2);
        assert_eq!(groups.slot_of_padded, Some(vec![1, 0, 0, 2, 0, 0]));
        assert_eq!(groups.padded_of_slot, Some(vec![2, 0, 3]));
    }

    /// Of 3 completions, each of at most 4 tokens, which end with token 7 or the text `56`, after 1 token at the earliest.
    fn prompt() -> CachedPrompt<()> {
        let request = Request {
            prompt: Prompt { ids: vec![1, 2], images: Vec::new() },
            num_completions: 3,
            key: DrawKey { seed: 0, step: 0, prompt: 0, completion: 10 },
        };
        let params = SamplingParams {
            eos_ids: vec![7],
            min_new_tokens: 1,
            max_new_tokens: 4,
            ..Default::default()
        };
        CachedPrompt {
            request: QueuedRequest {
                id: RequestId(4),
                request,
                params: Rc::new(params),
                stop_strings: Some(["56".to_owned()].into()),
            },
            next_position: 2,
            next_completion: 0,
            running: 0,
            first_logits: Some(()),
        }
    }

    #[test]
    fn a_completion_ends_at_its_end_token_its_stop_string_or_its_limit() {
        let digits = |ids: &[u32]| Ok(ids.iter().map(u32::to_string).collect());
        let ended = |ids: &[u32]| {
            let mut slot = prompt().start(1, 0).remove(0);
            for (i, &id) in ids.iter().enumerate() {
                assert_eq!(slot.end, None, "after {i} of {ids:?}");
                slot.push(id, -1.0, Some(&digits)).unwrap();
            }
            let end = slot.end;
            assert_eq!(slot.into_completion().map(|c| c.ids).unwrap_or_default(), ids);
            end
        };
        assert_eq!(ended(&[5, 7]), Some(End::Finished(FinishReason::Stop)));
        assert_eq!(ended(&[3, 5, 6]), Some(End::Finished(FinishReason::StopString)));
        assert_eq!(ended(&[56, 5, 5, 5]), Some(End::Finished(FinishReason::Length)));
    }

    #[test]
    fn a_prompt_is_done_when_all_its_completions_started_and_ended() {
        let mut prompt = prompt();
        let slots = prompt.start(2, 9);
        let names: Vec<_> =
            slots.iter().map(|s| (s.prompt, s.completion, s.key.completion)).collect();
        assert_eq!(names, [(9, 0, 10), (9, 1, 11)]);
        assert_eq!((prompt.num_waiting(), prompt.running, prompt.first_logits), (1, 2, Some(())));
        prompt.running = 0;
        assert!(!prompt.is_done());
        prompt.give_up_waiting();
        assert!(prompt.is_done() && prompt.first_logits.is_none());
    }
}
