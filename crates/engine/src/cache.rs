//! Keys and values: each prompt's once, each answer's own, and decoding attention over both.
//!
//! Prompts lie in rows `[rows, kv_heads, width, head_dim]`, answers in slots of the same form, both
//! packed to the front ([`crate::schedule::compact`] says what moves). One product per row serves all
//! answers of a prompt. Softmax runs over prompt and answer apart and is joined by their sums, which
//! is exact: `softmax([a, b]) = [w softmax(a), (1 - w) softmax(b)]`, `w = sigmoid(lse(a) - lse(b))`.
//! On the CPU one loop of our own does all of it, over both at once.

mod fixed;

use models::model::TextShape;
use models::{AttentionBackend, Layout, PackedAttention};
use tch::{Device, Kind, Tensor};
use torch::{KvView, decode_attention};

use fixed::Seats;
pub use fixed::StepShape;

use crate::schedule::{Lanes, Moves};

/// Columns of the answers' blocks at first; they double as answers grow.
const FIRST_COLUMNS: i64 = 32;
/// Prompt blocks are a multiple of this many tokens wide.
const PROMPT_STEP: usize = 16;

/// Keys and values of all layers, `[rows, kv_heads, width, head_dim]` each; `transposed` keys are
/// `[rows, kv_heads, head_dim, width]`, as a product with many queries reads them.
#[derive(Debug)]
struct Blocks {
    layers: Vec<[Tensor; 2]>,
    transposed: bool,
    rows: i64,
    width: i64,
}

impl Blocks {
    fn new(shape: &TextShape, transposed: bool, kind: Kind, device: Device) -> Self {
        let empty = |size: [i64; 4]| Tensor::zeros(size, (kind, device));
        let (heads, dim) = (shape.num_kv_heads, shape.head_dim);
        let keys = if transposed { [0, heads, dim, 0] } else { [0, heads, 0, dim] };
        let layer = |_| [empty(keys), empty([0, heads, 0, dim])];
        Blocks { layers: (0..shape.num_layers).map(layer).collect(), transposed, rows: 0, width: 0 }
    }

    /// Where the width lies: of keys (0) or values (1).
    fn width_dim(&self, side: usize) -> i64 {
        if self.transposed && side == 0 { 3 } else { 2 }
    }

    /// Makes room, keeping what is there, and says whether that took new buffers. New room holds zeros: what masks hide must be finite.
    fn reserve(&mut self, rows: i64, width: i64) -> bool {
        if rows <= self.rows && width <= self.width {
            return false;
        }
        let (rows, width) = (rows.max(self.rows), width.max(self.width));
        let dims = [self.width_dim(0), self.width_dim(1)];
        for layer in &mut self.layers {
            for (tensor, dim) in layer.iter_mut().zip(dims) {
                let mut size = tensor.size();
                (size[0], size[dim as usize]) = (rows, width);
                let grown = Tensor::zeros(size.as_slice(), (tensor.kind(), tensor.device()));
                grown.narrow(0, 0, self.rows).narrow(dim, 0, self.width).copy_(tensor);
                *tensor = grown;
            }
        }
        (self.rows, self.width) = (rows, width);
        true
    }

    /// Keys and values of a layer, the first `rows` and `width`, `[rows, kv_heads, width, head_dim]`.
    fn front(&self, layer: usize, rows: i64, width: i64) -> [Tensor; 2] {
        [0, 1].map(|side| {
            let dim = self.width_dim(side);
            let front = self.layers[layer][side].narrow(0, 0, rows);
            let front = front.narrow(dim, 0, width);
            if dim == 3 { front.transpose(2, 3) } else { front }
        })
    }

    fn apply(&mut self, moves: &Moves, width: i64) {
        if moves.from.is_empty() {
            return;
        }
        let width = width.min(self.width);
        for layer in &self.layers {
            for (side, tensor) in layer.iter().enumerate() {
                move_rows(&tensor.narrow(self.width_dim(side), 0, width), moves);
            }
        }
    }
}

/// Copies rows of `tensor` as `moves` says.
pub fn move_rows(tensor: &Tensor, moves: &Moves) {
    if moves.from.is_empty() {
        return;
    }
    let index = |list: &[i64]| Tensor::from_slice(list).to_device(tensor.device());
    let moved = tensor.index_select(0, &index(&moves.from));
    let _ = tensor.shallow_clone().index_copy_(0, &index(&moves.to), &moved);
}

/// Keys and values of everything in the batch.
#[derive(Debug)]
pub struct KvCache {
    shape: TextShape,
    kind: Kind,
    device: Device,
    prompts: Blocks,
    answers: Blocks,
    /// Most columns an answer can need.
    max_columns: i64,
    /// `[slots, kv_heads]`: first line of each block of the answers, as lines of `head_dim`.
    first_lines: Tensor,
    seating: Seating,
    /// Whether decoding attends by one loop of our own ([`decode_attention`]) or by libtorch's operations.
    fused: bool,
    /// For steps of fixed shapes.
    seats: Option<Seats>,
    /// How often buffers were replaced.
    relocations: u64,
}

/// What depends on who is in the batch, not on the step.
#[derive(Debug, Default)]
struct Seating {
    rows: i64,
    lanes: i64,
    slot_of_cell: Option<Tensor>,
    cell_of_slot: Option<Tensor>,
    prompt_width: i64,
    /// `[rows, 1, 1, prompt_width]` in f32, `None` where all prompts are equally long.
    prompt_mask: Option<Tensor>,
    /// `[slots]` each: row and length of the prompt; while fused.
    prompt_of_slot: Option<[Tensor; 2]>,
}

/// What depends on the step.
#[derive(Debug)]
struct Step {
    slots: i64,
    /// Columns seen, the new token's included.
    columns: i64,
    /// `[slots]`: tokens of each answer before the new one.
    places: Tensor,
    /// `[slots * kv_heads]`: lines that the new keys and values go to; `None` while fused.
    lines: Option<Tensor>,
    /// `[slots, 1, 1, columns]` in f32, `None` where all answers are equally long, and while fused.
    mask: Option<Tensor>,
}

impl KvCache {
    /// An empty cache for answers of up to `max_new_tokens`.
    pub fn new(shape: TextShape, kind: Kind, device: Device, max_new_tokens: usize) -> Self {
        KvCache {
            shape,
            kind,
            device,
            prompts: Blocks::new(&shape, true, kind, device),
            answers: Blocks::new(&shape, false, kind, device),
            max_columns: max_new_tokens as i64,
            first_lines: Tensor::zeros([0, shape.num_kv_heads], (Kind::Int64, device)),
            seating: Seating::default(),
            fused: device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16),
            seats: None,
            relocations: 0,
        }
    }

    /// How often keys, values or seats went to new buffers: what remembers their places is void after a change.
    pub fn relocations(&self) -> u64 {
        self.relocations
    }

    /// What stores the prompts of `layout` in the rows from `first_row` on while they are computed.
    pub fn prefill<'a>(
        &'a mut self,
        attention: &'a PackedAttention,
        layout: &Layout,
        first_row: usize,
    ) -> Prefill<'a> {
        let rows = layout.segments.len();
        let width = layout.segments.iter().map(|s| s.len).max().unwrap_or(0);
        let mut tokens = vec![0i64; rows * width];
        for (row, segment) in layout.segments.iter().enumerate() {
            for column in 0..segment.len {
                tokens[row * width + column] = (segment.start + column) as i64;
            }
        }
        let (needed, first_row) = ((first_row + rows) as i64, first_row as i64);
        // Rows come a few at a time: doubling keeps copies rare.
        let room =
            if needed > self.prompts.rows { needed.max(2 * self.prompts.rows) } else { needed };
        self.reserve_prompts(room, width as i64);
        let tokens = Tensor::from_slice(&tokens).to_device(self.device);
        Prefill {
            cache: self,
            attention,
            tokens,
            first_row,
            rows: rows as i64,
            width: width as i64,
        }
    }

    /// Makes room for `rows` prompts of `width` tokens.
    pub fn reserve_prompts(&mut self, rows: i64, width: i64) {
        let width = (width as usize).next_multiple_of(PROMPT_STEP) as i64;
        self.relocations += u64::from(self.prompts.reserve(rows, width));
    }

    /// Makes room for `slots` answers of `columns` tokens.
    pub fn reserve_answers(&mut self, slots: usize, columns: usize) {
        let (slots, columns) = (slots as i64, columns as i64);
        if slots <= self.answers.rows && columns <= self.answers.width {
            return;
        }
        let width = if columns > self.answers.width {
            columns
                .max(2 * self.answers.width)
                .max(FIRST_COLUMNS)
                .min(self.max_columns.max(columns))
        } else {
            self.answers.width
        };
        self.relocations += u64::from(self.answers.reserve(slots, width));
        let blocks = self.answers.rows * self.shape.num_kv_heads;
        let lines = Tensor::arange(blocks, (Kind::Int64, self.device)) * self.answers.width;
        self.first_lines = lines.view([self.answers.rows, self.shape.num_kv_heads]);
    }

    /// Follows a compaction of slots whose answers are at most `columns` long.
    pub fn move_slots(&mut self, moves: &Moves, columns: usize) {
        self.answers.apply(moves, columns as i64);
    }

    /// Follows a compaction of rows.
    pub fn move_rows(&mut self, moves: &Moves) {
        self.prompts.apply(moves, i64::MAX);
    }

    /// Notes who is in the batch: the length of each row's prompt, and the row of each slot.
    pub fn seat(&mut self, prompt_lens: &[usize], rows_of_slots: &[usize]) {
        let device = self.device;
        let upload = |list: &[i64]| Tensor::from_slice(list).to_device(device);
        let lens: Vec<i64> = prompt_lens.iter().map(|&len| len as i64).collect();
        let width = lens.iter().copied().max().unwrap_or(0);
        let mut seating =
            Seating { rows: lens.len() as i64, prompt_width: width, ..Seating::default() };
        if self.fused {
            let rows: Vec<i64> = rows_of_slots.iter().map(|&row| row as i64).collect();
            let lens: Vec<i64> = rows_of_slots.iter().map(|&row| lens[row]).collect();
            seating.prompt_of_slot = Some([upload(&rows), upload(&lens)]);
        } else {
            let lanes = Lanes::new(lens.len(), rows_of_slots);
            let ragged = lens.iter().any(|&len| len < width);
            seating.lanes = lanes.width as i64;
            seating.slot_of_cell = lanes.slot_of_cell.as_deref().map(upload);
            seating.cell_of_slot = lanes.cell_of_slot.as_deref().map(upload);
            seating.prompt_mask = ragged.then(|| hide_from(&upload(&lens), width));
        }
        self.seating = seating;
    }

    /// Attention of one new token per slot. `columns [slots]` are the tokens' places in their answers,
    /// `longest` the largest of them; `ragged` says whether they differ.
    pub fn decode(&mut self, columns: &Tensor, longest: usize, ragged: bool) -> Decode<'_> {
        let slots = columns.size()[0];
        self.reserve_answers(slots as usize, longest + 1);
        let lines = (!self.fused)
            .then(|| (self.first_lines.narrow(0, 0, slots) + columns.unsqueeze(1)).view([-1]));
        let seen = longest as i64 + 1;
        let mask = (ragged && !self.fused).then(|| hide_from(&(columns + 1), seen));
        Decode {
            cache: self,
            step: Step { slots, columns: seen, places: columns.shallow_clone(), lines, mask },
            own_seating: None,
        }
    }
}

/// `lens [n] -> [n, 1, 1, width]`: minus infinity from `lens` on, else 0.
fn hide_from(lens: &Tensor, width: i64) -> Tensor {
    let device = lens.device();
    let hidden = Tensor::arange(width, (Kind::Int64, device)).ge_tensor(&lens.view([-1, 1, 1, 1]));
    Tensor::zeros(hidden.size().as_slice(), (Kind::Float, device))
        .masked_fill(&hidden, f64::NEG_INFINITY)
}

/// Attention within packed prompts that stores their keys and values.
pub struct Prefill<'a> {
    cache: &'a mut KvCache,
    attention: &'a PackedAttention,
    /// `[rows * width]`: packed token of each cell, 0 where there is none.
    tokens: Tensor,
    first_row: i64,
    rows: i64,
    width: i64,
}

impl AttentionBackend for Prefill<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let shape = &self.cache.shape;
        let [keys, values] = &self.cache.prompts.layers[layer];
        for (block, x) in [(keys.transpose(2, 3), k), (values.shallow_clone(), v)] {
            // [rows, kv_heads, width, head_dim]
            let cells = x
                .index_select(0, &self.tokens)
                .view([self.rows, self.width, shape.num_kv_heads, shape.head_dim])
                .transpose(1, 2);
            block.narrow(0, self.first_row, self.rows).narrow(2, 0, self.width).copy_(&cells);
        }
        self.attention.forward(q, k, v)
    }
}

/// Attention of one new token per slot over its prompt and its answer.
pub struct Decode<'a> {
    cache: &'a mut KvCache,
    step: Step,
    /// In place of the cache's.
    own_seating: Option<Seating>,
}

impl AttentionBackend for Decode<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        if let Some(keys) = self.kv_view(layer) {
            return decode_attention([q, k, v], &keys).expect("a cache that fits the model");
        }
        self.store(layer, k, v);
        let (seen, lse) = self.over_answers(layer, q);
        let (seen_prompt, lse_prompt) = self.over_prompts(layer, q);
        let weight = (lse_prompt - lse).sigmoid();
        let joined = seen.lerp_tensor(&seen_prompt, &weight);
        joined.to_kind(self.cache.kind)
    }

    fn kv_view(&mut self, layer: usize) -> Option<KvView<'_>> {
        let [rows, prompt_lens] = self.seating().prompt_of_slot.as_ref()?;
        let [prompt_keys, prompt_values] = &self.cache.prompts.layers[layer];
        let [completion_keys, completion_values] = &self.cache.answers.layers[layer];
        Some(KvView {
            prompt_keys,
            prompt_values,
            completion_keys,
            completion_values,
            prompt_indices: rows,
            prompt_lens,
            completion_lens: &self.step.places,
        })
    }
}

impl Decode<'_> {
    fn seating(&self) -> &Seating {
        self.own_seating.as_ref().unwrap_or(&self.cache.seating)
    }

    fn store(&mut self, layer: usize, k: &Tensor, v: &Tensor) {
        let lines = self.step.lines.as_ref().expect("made where it is needed");
        let head_dim = self.cache.shape.head_dim;
        for (block, x) in self.cache.answers.layers[layer].iter().zip([k, v]) {
            let _ = block.view([-1, head_dim]).index_copy_(0, lines, &x.reshape([-1, head_dim]));
        }
    }

    /// `q [slots, heads, head_dim]` over each slot's own answer: values of that shape in f32 and
    /// log-sums `[slots, heads, 1]`.
    fn over_answers(&self, layer: usize, q: &Tensor) -> (Tensor, Tensor) {
        let TextShape { num_heads, num_kv_heads, head_dim, .. } = self.cache.shape;
        let slots = self.step.slots;
        let [k, v] = self.cache.answers.front(layer, slots, self.step.columns);
        let (seen, lse) = attention(
            &q.view([slots, num_kv_heads, -1, head_dim]),
            &k,
            &v,
            self.step.mask.as_ref(),
        );
        (seen.view([slots, num_heads, head_dim]), lse.view([slots, num_heads, 1]))
    }

    /// The same over the slots' prompts, each row's answers in one product.
    fn over_prompts(&self, layer: usize, q: &Tensor) -> (Tensor, Tensor) {
        let TextShape { num_heads, num_kv_heads, head_dim, .. } = self.cache.shape;
        let seating = self.seating();
        let (rows, lanes, repeats) = (seating.rows, seating.lanes, num_heads / num_kv_heads);
        let [k, v] = self.cache.prompts.front(layer, rows, seating.prompt_width);
        let cells = pick(q, seating.slot_of_cell.as_ref());
        // [rows, kv_heads, lanes * repeats, head_dim]
        let queries = cells
            .view([rows, lanes, num_kv_heads, repeats, head_dim])
            .transpose(1, 2)
            .reshape([rows, num_kv_heads, lanes * repeats, head_dim]);
        let (seen, lse) = attention(&queries, &k, &v, seating.prompt_mask.as_ref());
        let to_slots = |x: Tensor, width: i64| {
            let cells = x.view([rows, num_kv_heads, lanes, repeats, width]).transpose(1, 2);
            pick(&cells.reshape([rows * lanes, num_heads, width]), seating.cell_of_slot.as_ref())
        };
        (to_slots(seen, head_dim), to_slots(lse, 1))
    }
}

fn pick(x: &Tensor, index: Option<&Tensor>) -> Tensor {
    index.map_or_else(|| x.shallow_clone(), |index| x.index_select(0, index))
}

/// `q [n, kv_heads, queries, head_dim]` over `k`, `v [n, kv_heads, keys, head_dim]`: values as `q` but
/// in f32, and the log of the sum of exponentials `[n, kv_heads, queries, 1]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> (Tensor, Tensor) {
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    let mut scores = q.matmul(&k.transpose(2, 3)).to_kind(Kind::Float);
    scores *= scale;
    if let Some(mask) = mask {
        scores += mask;
    }
    let weights = scores.softmax(-1, Kind::Float);
    // The largest weight is exp(max) / sum: gives the sum without exponentials of its own.
    let lse = scores.amax([-1i64], true) - weights.amax([-1i64], true).log();
    (weights.to_kind(v.kind()).matmul(v).to_kind(Kind::Float), lse)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
