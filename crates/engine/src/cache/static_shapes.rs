//! Decoding in static shapes: sizes are rounded up, and buffers keep their addresses.
//!
//! All that such a step reads besides weights is on the device. It runs the same operations on the same addresses while its shape and
//! [`KvCache::relocations`] stay, so a CUDA graph can replay it.

use tch::kind::Element;
use tch::{Device, Kind, Tensor};
use torch::{DecodeKernel, KeyRanges, upload};

use super::{BatchBinding, Decode, KvCache, Step, mask_from};
use crate::schedule::indices_in_groups;

/// Widths are not rounded below this many tokens, so that few shapes occur.
const MIN_WIDTH: i64 = 64;

/// Sizes of a step. Padding beyond the batch is computed too, on finite numbers, and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepShape {
    /// Completions.
    pub slots: i64,
    /// Prompts; 0 where slots read their prompts one by one.
    pub prompts: i64,
    /// Completions of a prompt; 0 as above.
    pub group_size: i64,
    /// Tokens of a prompt.
    pub prompt_width: i64,
    /// Tokens of a completion.
    pub completion_width: i64,
}

/// Who is in the batch, on the device. The buffers may be larger than the present shape.
#[derive(Debug)]
pub(super) struct StaticBinding {
    /// `[prompts]`.
    prompt_lens: Tensor,
    /// `[prompts * group_size]`.
    slot_of_padded: Tensor,
    /// `[slots]`.
    padded_of_slot: Tensor,
    /// `[slots * kv_heads + 1]` and `[slots * kv_heads]` in int32, of [`KeyRanges`].
    prompt_starts: Tensor,
    prompt_counts: Tensor,
}

impl StaticBinding {
    fn new(device: Device) -> Self {
        let empty = |kind| Tensor::zeros([0], (kind, device));
        StaticBinding {
            prompt_lens: empty(Kind::Int64),
            slot_of_padded: empty(Kind::Int64),
            padded_of_slot: empty(Kind::Int64),
            prompt_starts: empty(Kind::Int),
            prompt_counts: empty(Kind::Int),
        }
    }
}

/// Writes to the front of `buffer`, which is replaced where it is too small; returns whether it was.
fn put<T: Element>(buffer: &mut Tensor, numbers: &[T]) -> bool {
    let len = numbers.len() as i64;
    let grows = len > buffer.size()[0];
    if grows {
        *buffer = Tensor::zeros([rounded(len)], (buffer.kind(), buffer.device()));
    }
    buffer.narrow(0, 0, len).copy_(&upload(numbers, buffer.device()));
    grows
}

/// The next power of two.
fn rounded(n: i64) -> i64 {
    (n.max(1) as u64).next_power_of_two() as i64
}

/// The next power of two, or three quarters of it where that does.
fn rounded_width(n: i64) -> i64 {
    let power = rounded(n.max(MIN_WIDTH));
    if 3 * power / 4 >= n.max(MIN_WIDTH) { 3 * power / 4 } else { power }
}

impl KvCache {
    /// As [`KvCache::bind_batch`], for [`KvCache::decode_static`]. Returns the shape of the next steps, `completion_width` still 0.
    pub fn bind_batch_static(
        &mut self,
        prompt_lens: &[usize],
        prompt_of_slot: &[usize],
    ) -> StepShape {
        let longest = prompt_lens.iter().max().map_or(0, |&len| len as i64);
        let slots = rounded(prompt_of_slot.len() as i64).min(self.completions.rows);
        if self.kernel == DecodeKernel::Sequences {
            return self.bind_sequences_static(prompt_lens, prompt_of_slot, slots);
        }
        let indices = indices_in_groups(prompt_lens.len(), prompt_of_slot);
        let group_size = indices.iter().max().map_or(0, |index| index + 1);
        let shape = StepShape {
            slots,
            prompts: rounded(prompt_lens.len() as i64).min(self.prompts.rows),
            group_size: rounded(group_size as i64).min(slots),
            prompt_width: rounded_width(longest).min(self.prompts.width),
            completion_width: 0,
        };
        // Padding prompts have one token: a softmax over nothing would be NaN.
        let mut lens = vec![1; shape.prompts as usize];
        for (to, &len) in lens.iter_mut().zip(prompt_lens) {
            *to = len as i64;
        }
        let mut slot_of_padded = vec![0; (shape.prompts * shape.group_size) as usize];
        let mut padded_of_slot = vec![0; slots as usize];
        for (slot, (&prompt, &index)) in prompt_of_slot.iter().zip(&indices).enumerate() {
            let padded = prompt * shape.group_size as usize + index;
            slot_of_padded[padded] = slot as i64;
            padded_of_slot[slot] = padded as i64;
        }
        let device = self.device;
        let binding = self.static_binding.get_or_insert_with(|| StaticBinding::new(device));
        let grown = [
            put(&mut binding.prompt_lens, &lens),
            put(&mut binding.slot_of_padded, &slot_of_padded),
            put(&mut binding.padded_of_slot, &padded_of_slot),
        ];
        self.relocations += u64::from(grown.contains(&true));
        shape
    }

    /// [`KvCache::bind_batch_static`] for sequences.
    fn bind_sequences_static(
        &mut self,
        prompt_lens: &[usize],
        prompt_of_slot: &[usize],
        slots: i64,
    ) -> StepShape {
        let longest = prompt_lens.iter().max().map_or(0, |&len| len as i64);
        let [starts, counts] = self.prompt_sequences(prompt_lens, prompt_of_slot, slots as usize);
        let device = self.device;
        let binding = self.static_binding.get_or_insert_with(|| StaticBinding::new(device));
        let grown =
            [put(&mut binding.prompt_starts, &starts), put(&mut binding.prompt_counts, &counts)];
        self.relocations += u64::from(grown.contains(&true));
        let prompt_width = rounded_width(longest).min(self.prompts.width);
        StepShape { slots, prompt_width, ..StepShape::default() }
    }

    /// Makes room for a token after the first `longest` of each completion; returns the completion width of such a step.
    pub fn reserve_static(&mut self, longest: usize) -> i64 {
        let len = longest as i64 + 1;
        let width = rounded_width(len).min(self.max_completion_len.max(len));
        self.reserve_completions(self.completions.rows as usize, width as usize);
        width
    }

    /// Attention of one new token per slot after [`KvCache::bind_batch_static`]; `completion_lens [slots]` as for [`KvCache::decode`].
    ///
    /// # Panics
    /// Before [`KvCache::bind_batch_static`].
    pub fn decode_static(&mut self, completion_lens: &Tensor, shape: &StepShape) -> Decode<'_> {
        let tables = self.static_binding.as_ref().expect("bound before");
        let mut binding = BatchBinding {
            prompts: shape.prompts,
            group_size: shape.group_size,
            prompt_width: shape.prompt_width,
            ..BatchBinding::default()
        };
        let mut step = Step {
            slots: shape.slots,
            completion_width: shape.completion_width,
            completion_lens: completion_lens.shallow_clone(),
            offsets: None,
            mask: None,
            sequences: None,
        };
        if self.kernel == DecodeKernel::Sequences {
            let sequences = shape.slots * self.shape.kv_heads;
            binding.prompt_ranges = Some(KeyRanges {
                starts: tables.prompt_starts.narrow(0, 0, sequences + 1),
                lens: tables.prompt_counts.narrow(0, 0, sequences),
                longest: shape.prompt_width,
            });
            step.sequences = Some(self.sequence_step(completion_lens, shape.completion_width));
        } else {
            let padded = shape.prompts * shape.group_size;
            let prompt_lens = tables.prompt_lens.narrow(0, 0, shape.prompts);
            binding.slot_of_padded = Some(tables.slot_of_padded.narrow(0, 0, padded));
            binding.padded_of_slot = Some(tables.padded_of_slot.narrow(0, 0, shape.slots));
            binding.prompt_mask = Some(mask_from(&prompt_lens, shape.prompt_width));
            let first = self.first_offsets.narrow(0, 0, shape.slots);
            step.offsets = Some((first + completion_lens.unsqueeze(1)).view([-1]));
            step.mask = Some(mask_from(&(completion_lens + 1), shape.completion_width));
        }
        Decode { cache: self, step, own_binding: Some(binding) }
    }

    /// Addresses of all buffers that a step of static shape reads and writes, layers included.
    #[cfg(test)]
    pub fn addresses(&self) -> Vec<usize> {
        let tables = self.static_binding.iter().flat_map(|b| {
            [
                &b.prompt_lens,
                &b.slot_of_padded,
                &b.padded_of_slot,
                &b.prompt_starts,
                &b.prompt_counts,
            ]
        });
        let rows = self.sequence_rows.iter().flat_map(|rows| rows.tensors());
        let blocks = [&self.prompts, &self.completions].into_iter().flat_map(|b| &b.layers);
        blocks
            .flatten()
            .chain(tables)
            .chain([&self.first_offsets])
            .chain(rows)
            .map(|tensor| tensor.data_ptr() as usize)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_to_few() {
        assert_eq!([0, 1, 3, 8, 9].map(rounded), [1, 1, 4, 8, 16]);
        let got = [1, 64, 65, 96, 97, 128, 129, 193].map(rounded_width);
        assert_eq!(got, [64, 64, 96, 96, 128, 128, 192, 256]);
    }
}
