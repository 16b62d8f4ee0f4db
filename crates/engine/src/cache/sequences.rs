//! The cache as [`SequenceKv`] reads it: each slot is one sequence for each head of keys, first over its prompt, then over its completion.

use models::AttentionShape;
use tch::{Kind, Tensor};
use torch::{KeyRanges, SequenceKv};

use super::{Blocks, KvCache};

/// What depends on the room for completions alone.
#[derive(Debug)]
pub(super) struct SequenceRows {
    /// `[2, rows, kv_heads]`: where each block of the keys and of the values begins, counted in rows of `head_dim`.
    first_rows: Tensor,
    /// `[rows * kv_heads + 1]` in int32: the same of the keys, as starts of sequences.
    starts: Tensor,
    /// `[rows * kv_heads + 1]` in int32: ends of the sequences' queries.
    query_ends: Tensor,
    /// `[1, kv_heads]` ones.
    one_for_each_head: Tensor,
}

impl SequenceRows {
    pub(super) fn new(shape: &AttentionShape, completions: &Blocks) -> Self {
        let device = completions.layers[0][0].device();
        let (rows, heads) = (completions.rows, shape.kv_heads);
        let sequences = rows * heads;
        let count = |n: i64, kind| Tensor::arange(n, (kind, device));
        let first_rows = count(2 * sequences, Kind::Int64) * completions.width;
        SequenceRows {
            first_rows: first_rows.view([2, rows, heads]),
            starts: count(sequences + 1, Kind::Int) * completions.width,
            query_ends: count(sequences + 1, Kind::Int) * (shape.heads / heads),
            one_for_each_head: Tensor::ones([1, heads], (Kind::Int64, device)),
        }
    }

    /// Addresses of all of it.
    #[cfg(test)]
    pub(super) fn tensors(&self) -> [&Tensor; 4] {
        [&self.first_rows, &self.starts, &self.query_ends, &self.one_for_each_head]
    }
}

/// What depends on the step.
#[derive(Debug)]
pub(super) struct SequenceStep {
    new_rows: Tensor,
    query_ends: Tensor,
    completion_ranges: KeyRanges,
}

impl SequenceStep {
    /// A layer's keys and values, `[prompts, kv_heads, width, head_dim]` each and `[2, rows, kv_heads, width, head_dim]`.
    pub(super) fn kv<'a>(
        &'a self,
        prompts: [&'a Tensor; 2],
        completions: &'a Tensor,
        prompt_ranges: &'a KeyRanges,
    ) -> SequenceKv<'a> {
        SequenceKv {
            prompts,
            completions,
            new_rows: &self.new_rows,
            query_ends: &self.query_ends,
            prompt_ranges,
            completion_ranges: &self.completion_ranges,
        }
    }
}

impl KvCache {
    /// Where the keys of each of `slots` slots' prompts begin and how many they are, for each head of keys; the list of starts is one longer.
    /// Slots beyond the batch read the first token of the first prompt.
    pub(super) fn prompt_sequences(
        &mut self,
        prompt_lens: &[usize],
        prompt_of_slot: &[usize],
        slots: usize,
    ) -> [Vec<i32>; 2] {
        let (heads, width) = (self.shape.kv_heads, self.prompts.width);
        self.bound_prompt_width = width;
        let (mut starts, mut lens) = (Vec::new(), Vec::new());
        for slot in 0..slots {
            let prompt = prompt_of_slot.get(slot).copied();
            let len = prompt.map_or(1, |prompt| prompt_lens[prompt] as i32);
            for head in 0..heads {
                starts.push(((prompt.unwrap_or(0) as i64 * heads + head) * width) as i32);
                lens.push(len);
            }
        }
        starts.push(0);
        [starts, lens]
    }

    /// A step after `completion_lens [slots]` tokens of each completion, at most `longest` with the new one.
    pub(super) fn sequence_step(&self, completion_lens: &Tensor, longest: i64) -> SequenceStep {
        let slots = completion_lens.size()[0];
        let rows = self.sequence_rows.as_ref().expect("room for completions");
        assert_eq!(
            self.bound_prompt_width, self.prompts.width,
            "the batch is bound to older buffers"
        );
        let sequences = slots * self.shape.kv_heads;
        let before = completion_lens.unsqueeze(1);
        let lens = (&before + &rows.one_for_each_head).to_kind(Kind::Int);
        SequenceStep {
            new_rows: (rows.first_rows.narrow(1, 0, slots) + before).view([-1]),
            query_ends: rows.query_ends.narrow(0, 0, sequences + 1),
            completion_ranges: KeyRanges {
                starts: rows.starts.narrow(0, 0, sequences + 1),
                lens: lens.view([-1]),
                longest,
            },
        }
    }
}
