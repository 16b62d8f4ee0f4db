//! Seats of steps whose shapes are rounded up, in buffers that keep their places.
//!
//! All that such a step reads besides weights lies on the device: its work is the same operations on the same addresses
//! for as long as shape and [`KvCache::relocations`] stay.

use tch::{Device, Kind, Tensor};

use super::{Decode, KvCache, Seating, Step, hide_from};
use crate::schedule::lanes_of;

/// Shapes do not go below these numbers of tokens, so that few of them come and go.
const FEWEST_COLUMNS: i64 = 64;

/// Sizes of a step. What lies beyond the answers of the batch is computed too, on finite numbers, and read by nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepShape {
    /// Answers.
    pub slots: i64,
    /// Prompts.
    pub rows: i64,
    /// Answers of a prompt.
    pub lanes: i64,
    /// Tokens of a prompt.
    pub prompt_width: i64,
    /// Tokens of an answer.
    pub columns: i64,
}

/// Who is in the batch, on the device. The buffers hold more than the present shape takes.
#[derive(Debug)]
pub(super) struct Seats {
    /// `[rows]`.
    prompt_lens: Tensor,
    /// `[rows * lanes]`.
    slot_of_cell: Tensor,
    /// `[slots]`.
    cell_of_slot: Tensor,
}

impl Seats {
    fn new(device: Device) -> Self {
        let empty = || Tensor::zeros([0], (Kind::Int64, device));
        Seats { prompt_lens: empty(), slot_of_cell: empty(), cell_of_slot: empty() }
    }
}

/// Writes to the front of `buffer`, which is replaced where it is too small; whether it was.
fn put(buffer: &mut Tensor, numbers: &[i64]) -> bool {
    let len = numbers.len() as i64;
    let grows = len > buffer.size()[0];
    if grows {
        *buffer = Tensor::zeros([rounded(len)], (Kind::Int64, buffer.device()));
    }
    buffer.narrow(0, 0, len).copy_(&Tensor::from_slice(numbers));
    grows
}

/// The next power of two.
fn rounded(n: i64) -> i64 {
    (n.max(1) as u64).next_power_of_two() as i64
}

/// The next power of two, or three quarters of it where that does.
fn rounded_tokens(n: i64) -> i64 {
    let power = rounded(n.max(FEWEST_COLUMNS));
    if 3 * power / 4 >= n.max(FEWEST_COLUMNS) { 3 * power / 4 } else { power }
}

impl KvCache {
    /// As [`KvCache::seat`], for [`KvCache::decode_fixed`]: the shape of the steps to come, `columns` still 0.
    pub fn seat_fixed(&mut self, prompt_lens: &[usize], rows_of_slots: &[usize]) -> StepShape {
        let lane = lanes_of(prompt_lens.len(), rows_of_slots);
        let width = lane.iter().max().map_or(0, |lane| lane + 1);
        let longest = prompt_lens.iter().max().map_or(0, |&len| len as i64);
        let slots = rounded(rows_of_slots.len() as i64).min(self.answers.rows);
        let shape = StepShape {
            slots,
            rows: rounded(prompt_lens.len() as i64).min(self.prompts.rows),
            lanes: rounded(width as i64).min(slots),
            prompt_width: rounded_tokens(longest).min(self.prompts.width),
            columns: 0,
        };
        // A row of nobody has a token to see: a softmax over nothing would be no number.
        let mut lens = vec![1; shape.rows as usize];
        for (to, &len) in lens.iter_mut().zip(prompt_lens) {
            *to = len as i64;
        }
        let mut slot_of_cell = vec![0; (shape.rows * shape.lanes) as usize];
        let mut cell_of_slot = vec![0; slots as usize];
        for (slot, (&row, &lane)) in rows_of_slots.iter().zip(&lane).enumerate() {
            let cell = row * shape.lanes as usize + lane;
            slot_of_cell[cell] = slot as i64;
            cell_of_slot[slot] = cell as i64;
        }
        let device = self.device;
        let seats = self.seats.get_or_insert_with(|| Seats::new(device));
        let grown = [
            put(&mut seats.prompt_lens, &lens),
            put(&mut seats.slot_of_cell, &slot_of_cell),
            put(&mut seats.cell_of_slot, &cell_of_slot),
        ];
        self.relocations += u64::from(grown.contains(&true));
        shape
    }

    /// Room for a token at column `longest` of each answer: the columns of a step that writes there.
    pub fn fixed_columns(&mut self, longest: usize) -> i64 {
        let columns = longest as i64 + 1;
        let columns = rounded_tokens(columns).min(self.max_columns.max(columns));
        self.reserve_answers(self.answers.rows as usize, columns as usize);
        columns
    }

    /// Attention of one new token per slot for those whom [`KvCache::seat_fixed`] seated; `columns [slots]` as for [`KvCache::decode`].
    ///
    /// # Panics
    /// Where nobody was seated so.
    pub fn decode_fixed(&mut self, columns: &Tensor, shape: &StepShape) -> Decode<'_> {
        let seats = self.seats.as_ref().expect("seated before");
        let seating = Seating {
            rows: shape.rows,
            lanes: shape.lanes,
            slot_of_cell: Some(seats.slot_of_cell.narrow(0, 0, shape.rows * shape.lanes)),
            cell_of_slot: Some(seats.cell_of_slot.narrow(0, 0, shape.slots)),
            prompt_width: shape.prompt_width,
            prompt_mask: Some(hide_from(
                &seats.prompt_lens.narrow(0, 0, shape.rows),
                shape.prompt_width,
            )),
            prompt_of_slot: None,
        };
        let lines = self.first_lines.narrow(0, 0, shape.slots) + columns.unsqueeze(1);
        let step = Step {
            slots: shape.slots,
            columns: shape.columns,
            places: columns.shallow_clone(),
            lines: Some(lines.view([-1])),
            mask: Some(hide_from(&(columns + 1), shape.columns)),
        };
        Decode { cache: self, step, own_seating: Some(seating) }
    }

    /// Where everything lies that a step of fixed shape reads and writes, layers included.
    #[cfg(test)]
    pub fn places(&self) -> Vec<usize> {
        let seats = self
            .seats
            .iter()
            .flat_map(|seats| [&seats.prompt_lens, &seats.slot_of_cell, &seats.cell_of_slot]);
        let blocks = [&self.prompts, &self.answers].into_iter().flat_map(|b| &b.layers);
        blocks
            .flatten()
            .chain(seats)
            .chain([&self.first_lines])
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
        let got = [1, 64, 65, 96, 97, 128, 129, 193].map(rounded_tokens);
        assert_eq!(got, [64, 64, 96, 96, 128, 128, 192, 256]);
    }
}
