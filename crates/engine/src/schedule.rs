//! Who is in the batch: completions in slots, prompts in rows, and the moves that keep both dense.
//! No tensors here.

use base::{Completion, DrawKey, FinishReason};

/// One completion being decoded.
#[derive(Debug)]
pub struct Slot {
    /// Index of the request.
    pub request: usize,
    /// Index of the completion within it.
    pub completion: usize,
    /// Row of its prompt in the cache.
    pub row: usize,
    /// Position (all three axes) of its first token.
    pub first_position: i64,
    /// Keys of its draws.
    pub key: DrawKey,
    /// Tokens so far.
    pub ids: Vec<u32>,
    /// Their log-probabilities.
    pub sampled_logprobs: Vec<f32>,
    /// Set when it ended.
    pub finish_reason: Option<FinishReason>,
}

impl Slot {
    /// Appends a token and notes whether the answer ends with it.
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
pub struct Row<L> {
    /// Index of the request.
    pub request: usize,
    /// Prompt tokens.
    pub len: usize,
    /// Position after the prompt.
    pub next_position: i64,
    /// Completions that have not entered yet: from this one on.
    pub next_completion: usize,
    /// Completions of the request.
    pub num_completions: usize,
    /// Completions in slots.
    pub live: usize,
    /// What first tokens are drawn from, while completions wait.
    pub first: L,
}

/// Elements to copy within a tensor so that the kept ones stand at its front: `to[i] = from[i]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Sources, all behind the new end.
    pub from: Vec<i64>,
    /// Destinations, all before it.
    pub to: Vec<i64>,
}

/// Takes out what `leaves` says, filling each hole with an element of the tail; the others stay.
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

/// The lane of each slot: how many slots before it are of the same row.
pub fn lanes_of(rows: usize, rows_of_slots: &[usize]) -> Vec<usize> {
    let mut filled = vec![0usize; rows];
    let lane = |&row: &usize| {
        filled[row] += 1;
        filled[row] - 1
    };
    rows_of_slots.iter().map(lane).collect()
}

/// Where the answers of each row lie: a rectangle of rows by lanes, for one product per row.
#[derive(Debug, PartialEq, Eq)]
pub struct Lanes {
    /// Rows.
    pub rows: usize,
    /// Most answers of a row.
    pub width: usize,
    /// Slot of each cell, `[rows * width]`; 0 where there is none. `None`: slots are the cells, in order.
    pub slot_of_cell: Option<Vec<i64>>,
    /// Cell of each slot; `None` as above.
    pub cell_of_slot: Option<Vec<i64>>,
}

impl Lanes {
    /// For `rows_of_slots[i]`, the row of slot `i`.
    pub fn new(rows: usize, rows_of_slots: &[usize]) -> Self {
        let lane = lanes_of(rows, rows_of_slots);
        let width = lane.iter().max().map_or(0, |lane| lane + 1);
        let cell_of_slot: Vec<i64> = rows_of_slots
            .iter()
            .zip(&lane)
            .map(|(row, lane)| (row * width + lane) as i64)
            .collect();
        if rows_of_slots.len() == rows * width
            && cell_of_slot.iter().enumerate().all(|(slot, &cell)| slot as i64 == cell)
        {
            return Lanes { rows, width, slot_of_cell: None, cell_of_slot: None };
        }
        let mut slot_of_cell = vec![0i64; rows * width];
        for (slot, &cell) in cell_of_slot.iter().enumerate() {
            slot_of_cell[cell as usize] = slot as i64;
        }
        Lanes { rows, width, slot_of_cell: Some(slot_of_cell), cell_of_slot: Some(cell_of_slot) }
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
        let lanes = Lanes::new(2, &[0, 0, 0, 1, 1, 1]);
        assert_eq!(lanes, Lanes { rows: 2, width: 3, slot_of_cell: None, cell_of_slot: None });
    }

    #[test]
    fn ragged_groups_are_indexed() {
        let lanes = Lanes::new(3, &[1, 0, 1]);
        assert_eq!(lanes.width, 2);
        assert_eq!(lanes.slot_of_cell, Some(vec![1, 0, 0, 2, 0, 0]));
        assert_eq!(lanes.cell_of_slot, Some(vec![2, 0, 3]));
    }

    #[test]
    fn an_answer_ends_at_its_end_token_or_limit() {
        let slot = || Slot {
            request: 0,
            completion: 0,
            row: 0,
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
