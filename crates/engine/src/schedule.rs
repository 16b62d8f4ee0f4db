//! Which completions are in the batch and which prompts in the cache, and the moves that keep both dense. No tensors here.

use base::{Completion, DrawKey, FinishReason};

/// One completion being decoded.
#[derive(Debug)]
pub struct Slot {
    /// Index of the request.
    pub request: usize,
    /// Index of the completion within it.
    pub completion: usize,
    /// Index of its prompt in the cache.
    pub prompt: usize,
    /// Position (all three axes) of its first token.
    pub first_position: i64,
    /// Key of its random numbers.
    pub key: DrawKey,
    /// Tokens so far.
    pub ids: Vec<u32>,
    /// Their log-probabilities.
    pub sampled_logprobs: Vec<f32>,
    /// Set when it ended.
    pub finish_reason: Option<FinishReason>,
}

impl Slot {
    /// Appends a token and sets `finish_reason` if the completion ends with it.
    pub fn push(&mut self, id: u32, logprob: f32, eos_ids: &[u32], max_new_tokens: usize) {
        self.ids.push(id);
        self.sampled_logprobs.push(logprob);
        if eos_ids.contains(&id) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.ids.len() >= max_new_tokens {
            self.finish_reason = Some(FinishReason::Length);
        }
    }

    /// The completion, once ended.
    pub fn into_completion(self) -> Option<Completion> {
        let Slot { ids, sampled_logprobs, finish_reason, .. } = self;
        finish_reason.map(|finish_reason| Completion { ids, sampled_logprobs, finish_reason })
    }
}

/// A prompt in the cache.
#[derive(Debug)]
pub struct CachedPrompt<L> {
    /// Index of the request.
    pub request: usize,
    /// Prompt tokens.
    pub len: usize,
    /// Position after the prompt.
    pub next_position: i64,
    /// The first completion that has not started.
    pub next_completion: usize,
    /// Completions of the request.
    pub num_completions: usize,
    /// Completions in slots.
    pub running: usize,
    /// Logits of the first token, while completions wait.
    pub first_logits: L,
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

    #[test]
    fn a_completion_ends_at_its_end_token_or_limit() {
        let slot = || Slot {
            request: 0,
            completion: 0,
            prompt: 0,
            first_position: 0,
            key: DrawKey { seed: 0, step: 0, prompt: 0, completion: 0 },
            ids: Vec::new(),
            sampled_logprobs: Vec::new(),
            finish_reason: None,
        };
        let mut stopped = slot();
        stopped.push(5, -1.0, &[7], 2);
        assert_eq!(stopped.finish_reason, None);
        stopped.push(7, -2.0, &[7], 2);
        assert_eq!(stopped.finish_reason, Some(FinishReason::Stop));
        assert_eq!(stopped.into_completion().map(|c| c.ids), Some(vec![5, 7]));
        let mut cut = slot();
        cut.push(5, -1.0, &[7], 1);
        assert_eq!(cut.finish_reason, Some(FinishReason::Length));
    }
}
