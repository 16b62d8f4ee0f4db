//! KV cache: each prompt's keys and values once, each completion's own, and decoding attention over both.
//!
//! Prompts are stored as `[prompts, kv_heads, width, head_dim]`, completions as `[slots, kv_heads, width, head_dim]`, both packed to
//! the front ([`crate::schedule::compact`] says what moves). One product per prompt serves all its completions. Attention over prompt
//! and completion is computed apart and joined by the log-sum-exp of both, which is exact:
//! `softmax([a, b]) = [w softmax(a), (1 - w) softmax(b)]`, `w = sigmoid(lse(a) - lse(b))`.
//! On the CPU one kernel does all of it, over both at once. On a GPU in 16 bits flash attention does each part without padding
//! (`sequences`).

mod sequences;
mod static_shapes;

use models::{AttentionBackend, AttentionShape, Layout, PackedAttention};
use tch::{Device, Kind, Tensor};
use torch::{DecodeKernel, KeyRanges, KvView, SequenceKv, decode_attention, upload};

use sequences::{SequenceRows, SequenceStep};
use static_shapes::StaticBinding;
pub use static_shapes::StepShape;

use crate::schedule::{Moves, PaddedGroups};

/// Width of the completions' blocks at first; it doubles as completions grow.
const FIRST_COMPLETION_WIDTH: i64 = 32;
/// The width of prompt blocks is a multiple of this.
const PROMPT_WIDTH_MULTIPLE: usize = 16;

/// How keys and values of a layer lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockLayout {
    /// A tensor each, `[rows, kv_heads, width, head_dim]`.
    Apart,
    /// The same with keys of `[rows, kv_heads, head_dim, width]`, the layout that a product with many queries reads.
    KeysTransposed,
    /// Halves of one tensor `[2, rows, kv_heads, width, head_dim]`, so that one operation writes to both.
    Joint,
}

/// Keys and values of all layers, as views of `[rows, kv_heads, width, head_dim]` each or as [`BlockLayout`] says.
#[derive(Debug)]
struct Blocks {
    layers: Vec<[Tensor; 2]>,
    /// Of [`BlockLayout::Joint`]: the tensors that `layers` are the halves of.
    joint: Vec<Tensor>,
    layout: BlockLayout,
    rows: i64,
    width: i64,
}

impl Blocks {
    fn new(
        num_layers: usize,
        shape: &AttentionShape,
        layout: BlockLayout,
        kind: Kind,
        device: Device,
    ) -> Self {
        let empty = |size: [i64; 4]| Tensor::zeros(size, (kind, device));
        let (heads, dim) = (shape.kv_heads, shape.head_dim);
        let keys = match layout {
            BlockLayout::KeysTransposed => [0, heads, dim, 0],
            BlockLayout::Apart | BlockLayout::Joint => [0, heads, 0, dim],
        };
        let layer = |_| [empty(keys), empty([0, heads, 0, dim])];
        let layers = (0..num_layers).map(layer).collect();
        Blocks { layers, joint: Vec::new(), layout, rows: 0, width: 0 }
    }

    /// The dimension of the width, of keys (0) or values (1).
    fn width_dim(&self, side: usize) -> i64 {
        if self.layout == BlockLayout::KeysTransposed && side == 0 { 3 } else { 2 }
    }

    /// Makes room and keeps the contents; returns whether that took new buffers. New room is zeroed: masked numbers must be finite.
    fn reserve(&mut self, rows: i64, width: i64) -> bool {
        if rows <= self.rows && width <= self.width {
            return false;
        }
        let (rows, width) = (rows.max(self.rows), width.max(self.width));
        let dims = [self.width_dim(0), self.width_dim(1)];
        self.joint.clear();
        for layer in &mut self.layers {
            let sizes = [0, 1].map(|side: usize| {
                let mut size = layer[side].size();
                (size[0], size[dims[side] as usize]) = (rows, width);
                size
            });
            let zeros = |size: &[i64]| Tensor::zeros(size, (layer[0].kind(), layer[0].device()));
            let grown = match self.layout {
                BlockLayout::Joint => {
                    let joint = zeros(&[&[2], &sizes[0][..]].concat());
                    let halves = [joint.get(0), joint.get(1)];
                    self.joint.push(joint);
                    halves
                }
                BlockLayout::Apart | BlockLayout::KeysTransposed => sizes.map(|size| zeros(&size)),
            };
            for (side, (grown, old)) in grown.iter().zip(&*layer).enumerate() {
                grown.narrow(0, 0, self.rows).narrow(dims[side], 0, self.width).copy_(old);
            }
            *layer = grown;
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
    let index = |list: &[i64]| upload(list, tensor.device());
    let moved = tensor.index_select(0, &index(&moves.from));
    let _ = tensor.shallow_clone().index_copy_(0, &index(&moves.to), &moved);
}

/// Keys and values of the batch.
#[derive(Debug)]
pub struct KvCache {
    shape: AttentionShape,
    kind: Kind,
    device: Device,
    prompts: Blocks,
    completions: Blocks,
    max_completion_len: i64,
    /// `[slots, kv_heads]`: where each block of the completions begins, counted in rows of `head_dim`.
    first_offsets: Tensor,
    binding: BatchBinding,
    kernel: DecodeKernel,
    /// For [`DecodeKernel::Sequences`].
    sequence_rows: Option<SequenceRows>,
    /// The width of prompts that the bound starts of sequences were computed with.
    bound_prompt_width: i64,
    /// For decoding in static shapes.
    static_binding: Option<StaticBinding>,
    /// How often buffers were replaced.
    relocations: u64,
}

/// What depends on who is in the batch, not on the step.
#[derive(Debug, Default)]
struct BatchBinding {
    prompts: i64,
    /// Completions of a prompt, padded.
    group_size: i64,
    slot_of_padded: Option<Tensor>,
    padded_of_slot: Option<Tensor>,
    prompt_width: i64,
    /// `[prompts, 1, 1, prompt_width]` in f32, `None` where all prompts are equally long.
    prompt_mask: Option<Tensor>,
    /// `[slots]` each: index and length of the prompt; for the CPU kernel.
    prompt_indices_and_lens: Option<[Tensor; 2]>,
    /// For [`DecodeKernel::Sequences`].
    prompt_ranges: Option<KeyRanges>,
}

/// What depends on the step.
#[derive(Debug)]
struct Step {
    slots: i64,
    /// Positions of the completions that are read, the new token's included.
    completion_width: i64,
    /// `[slots]`: tokens of each completion before the new one.
    completion_lens: Tensor,
    /// `[slots * kv_heads]`: where the new keys and values go; for [`DecodeKernel::Products`].
    offsets: Option<Tensor>,
    /// `[slots, 1, 1, completion_width]` in f32, `None` where all completions are equally long; for [`DecodeKernel::Products`].
    mask: Option<Tensor>,
    /// For [`DecodeKernel::Sequences`].
    sequences: Option<SequenceStep>,
}

impl KvCache {
    /// An empty cache of `num_layers` layers, read as [`DecodeKernel::of`] says.
    pub fn new(num_layers: usize, shape: AttentionShape, kind: Kind, device: Device) -> Self {
        let kernel = DecodeKernel::of(kind, device, shape.head_dim);
        Self::with_kernel(num_layers, shape, kind, device, kernel)
    }

    /// An empty cache that is read in a way of the caller's choice.
    pub fn with_kernel(
        num_layers: usize,
        shape: AttentionShape,
        kind: Kind,
        device: Device,
        kernel: DecodeKernel,
    ) -> Self {
        let layouts = match kernel {
            DecodeKernel::Sequences => [BlockLayout::Apart, BlockLayout::Joint],
            DecodeKernel::Cpu | DecodeKernel::Products => {
                [BlockLayout::KeysTransposed, BlockLayout::Apart]
            }
        };
        let [prompts, completions] =
            layouts.map(|layout| Blocks::new(num_layers, &shape, layout, kind, device));
        KvCache {
            shape,
            kind,
            device,
            prompts,
            completions,
            max_completion_len: 0,
            first_offsets: Tensor::zeros([0, shape.kv_heads], (Kind::Int64, device)),
            binding: BatchBinding::default(),
            kernel,
            sequence_rows: None,
            bound_prompt_width: 0,
            static_binding: None,
            relocations: 0,
        }
    }

    /// No completion will be longer than `max_new_tokens`.
    pub fn expect_completions(&mut self, max_new_tokens: usize) {
        self.max_completion_len = max_new_tokens as i64;
    }

    /// How often buffers were replaced. A captured graph is invalid after a change.
    pub fn relocations(&self) -> u64 {
        self.relocations
    }

    /// The backend of a prefill: stores the prompts of `layout`, the first of them as prompt `first_prompt`.
    pub fn prefill<'a>(
        &'a mut self,
        attention: &'a PackedAttention,
        layout: &Layout,
        first_prompt: usize,
    ) -> Prefill<'a> {
        let prompts = layout.segments.len();
        let width = layout.segments.iter().map(|s| s.len).max().unwrap_or(0);
        let mut tokens = vec![0i64; prompts * width];
        for (prompt, segment) in layout.segments.iter().enumerate() {
            for position in 0..segment.len {
                tokens[prompt * width + position] = (segment.start + position) as i64;
            }
        }
        let (needed, first_prompt) = ((first_prompt + prompts) as i64, first_prompt as i64);
        // Prompts come a few at a time: doubling keeps copies rare.
        let room =
            if needed > self.prompts.rows { needed.max(2 * self.prompts.rows) } else { needed };
        self.reserve_prompts(room, width as i64);
        let tokens = upload(&tokens, self.device);
        Prefill {
            cache: self,
            attention,
            tokens,
            first_prompt,
            prompts: prompts as i64,
            width: width as i64,
        }
    }

    /// Makes room for `prompts` prompts of `width` tokens.
    pub fn reserve_prompts(&mut self, prompts: i64, width: i64) {
        let width = (width as usize).next_multiple_of(PROMPT_WIDTH_MULTIPLE) as i64;
        self.relocations += u64::from(self.prompts.reserve(prompts, width));
    }

    /// Makes room for `slots` completions of `len` tokens.
    pub fn reserve_completions(&mut self, slots: usize, len: usize) {
        let (slots, len) = (slots as i64, len as i64);
        if slots <= self.completions.rows && len <= self.completions.width {
            return;
        }
        let width = if len > self.completions.width {
            len.max(2 * self.completions.width)
                .max(FIRST_COMPLETION_WIDTH)
                .min(self.max_completion_len.max(len))
        } else {
            self.completions.width
        };
        self.relocations += u64::from(self.completions.reserve(slots, width));
        if self.kernel == DecodeKernel::Sequences {
            self.sequence_rows = Some(SequenceRows::new(&self.shape, &self.completions));
            return;
        }
        let blocks = self.completions.rows * self.shape.kv_heads;
        let offsets = Tensor::arange(blocks, (Kind::Int64, self.device)) * self.completions.width;
        self.first_offsets = offsets.view([self.completions.rows, self.shape.kv_heads]);
    }

    /// Follows a compaction of slots whose completions have at most `len` tokens.
    pub fn move_slots(&mut self, moves: &Moves, len: usize) {
        self.completions.apply(moves, len as i64);
    }

    /// Follows a compaction of prompts.
    pub fn move_prompts(&mut self, moves: &Moves) {
        self.prompts.apply(moves, i64::MAX);
    }

    /// Tells the cache who is in the batch: the length of each prompt, and the prompt of each slot.
    pub fn bind_batch(&mut self, prompt_lens: &[usize], prompt_of_slot: &[usize]) {
        let device = self.device;
        let upload = |list: &[i64]| upload(list, device);
        let lens: Vec<i64> = prompt_lens.iter().map(|&len| len as i64).collect();
        let width = lens.iter().copied().max().unwrap_or(0);
        let mut binding = BatchBinding {
            prompts: lens.len() as i64,
            prompt_width: width,
            ..BatchBinding::default()
        };
        match self.kernel {
            DecodeKernel::Cpu => {
                let indices: Vec<i64> =
                    prompt_of_slot.iter().map(|&prompt| prompt as i64).collect();
                let lens: Vec<i64> = prompt_of_slot.iter().map(|&prompt| lens[prompt]).collect();
                binding.prompt_indices_and_lens = Some([upload(&indices), upload(&lens)]);
            }
            DecodeKernel::Sequences => {
                let slots = prompt_of_slot.len();
                let [starts, lens] = self.prompt_sequences(prompt_lens, prompt_of_slot, slots);
                binding.prompt_ranges = Some(KeyRanges {
                    starts: torch::upload(&starts, device),
                    lens: torch::upload(&lens, device),
                    longest: width,
                });
            }
            DecodeKernel::Products => {
                let groups = PaddedGroups::new(lens.len(), prompt_of_slot);
                let ragged = lens.iter().any(|&len| len < width);
                binding.group_size = groups.group_size as i64;
                binding.slot_of_padded = groups.slot_of_padded.as_deref().map(upload);
                binding.padded_of_slot = groups.padded_of_slot.as_deref().map(upload);
                binding.prompt_mask = ragged.then(|| mask_from(&upload(&lens), width));
            }
        }
        self.binding = binding;
    }

    /// Attention of one new token per slot. `completion_lens [slots]` are the tokens before it, `longest` the largest of them;
    /// `ragged` says whether they differ.
    pub fn decode(&mut self, completion_lens: &Tensor, longest: usize, ragged: bool) -> Decode<'_> {
        let slots = completion_lens.size()[0];
        self.reserve_completions(slots as usize, longest + 1);
        let completion_width = longest as i64 + 1;
        let mut step = Step {
            slots,
            completion_width,
            completion_lens: completion_lens.shallow_clone(),
            offsets: None,
            mask: None,
            sequences: None,
        };
        match self.kernel {
            DecodeKernel::Cpu => {}
            DecodeKernel::Sequences => {
                step.sequences = Some(self.sequence_step(completion_lens, completion_width));
            }
            DecodeKernel::Products => {
                let offsets = self.first_offsets.narrow(0, 0, slots) + completion_lens.unsqueeze(1);
                step.offsets = Some(offsets.view([-1]));
                step.mask = ragged.then(|| mask_from(&(completion_lens + 1), completion_width));
            }
        }
        Decode { cache: self, step, own_binding: None }
    }
}

/// `lens [n] -> [n, 1, 1, width]`: an additive mask, minus infinity from position `lens` on, else 0.
fn mask_from(lens: &Tensor, width: i64) -> Tensor {
    let device = lens.device();
    let masked = Tensor::arange(width, (Kind::Int64, device)).ge_tensor(&lens.view([-1, 1, 1, 1]));
    Tensor::zeros(masked.size().as_slice(), (Kind::Float, device))
        .masked_fill(&masked, f64::NEG_INFINITY)
}

/// Attention within packed prompts that also stores their keys and values.
pub struct Prefill<'a> {
    cache: &'a mut KvCache,
    attention: &'a PackedAttention,
    /// `[prompts * width]`: the packed token of each position, 0 for padding.
    tokens: Tensor,
    first_prompt: i64,
    prompts: i64,
    width: i64,
}

impl AttentionBackend for Prefill<'_> {
    fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let shape = &self.cache.shape;
        let prompts = &self.cache.prompts;
        let [keys, values] = prompts.front(layer, prompts.rows, prompts.width);
        for (block, x) in [(keys, k), (values, v)] {
            // [prompts, kv_heads, width, head_dim]
            let padded = x
                .index_select(0, &self.tokens)
                .view([self.prompts, self.width, shape.kv_heads, shape.head_dim])
                .transpose(1, 2);
            let stored = block.narrow(0, self.first_prompt, self.prompts);
            stored.narrow(2, 0, self.width).copy_(&padded);
        }
        self.attention.forward(q, k, v)
    }
}

/// Attention of one new token per slot over its prompt and its completion.
pub struct Decode<'a> {
    cache: &'a mut KvCache,
    step: Step,
    /// In place of the cache's.
    own_binding: Option<BatchBinding>,
}

impl AttentionBackend for Decode<'_> {
    fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        if let Some(kv) = self.kv_view(layer) {
            return decode_attention([q, k, v], &kv, None).expect("a cache that fits the model");
        }
        if let Some(kv) = self.sequence_kv(layer) {
            let new = Tensor::stack(&[k, v], 0);
            return kv.attend(q, &new, None).expect("a cache that fits the model");
        }
        self.store(layer, k, v);
        let (output, lse) = self.over_completions(layer, q);
        let (prompt_output, prompt_lse) = self.over_prompts(layer, q);
        let weight = (prompt_lse - lse).sigmoid();
        let joined = output.lerp_tensor(&prompt_output, &weight);
        joined.to_kind(self.cache.kind)
    }

    fn kv_view(&self, layer: usize) -> Option<KvView<'_>> {
        let [prompt_indices, prompt_lens] = self.binding().prompt_indices_and_lens.as_ref()?;
        let [prompt_keys, prompt_values] = &self.cache.prompts.layers[layer];
        let [completion_keys, completion_values] = &self.cache.completions.layers[layer];
        Some(KvView {
            prompt_keys,
            prompt_values,
            completion_keys,
            completion_values,
            prompt_indices,
            prompt_lens,
            completion_lens: &self.step.completion_lens,
            first_visible: None,
        })
    }

    fn sequence_kv(&self, layer: usize) -> Option<SequenceKv<'_>> {
        let step = self.step.sequences.as_ref()?;
        let prompt_ranges = self.binding().prompt_ranges.as_ref()?;
        let [keys, values] = &self.cache.prompts.layers[layer];
        Some(step.kv([keys, values], &self.cache.completions.joint[layer], prompt_ranges))
    }
}

impl Decode<'_> {
    fn binding(&self) -> &BatchBinding {
        self.own_binding.as_ref().unwrap_or(&self.cache.binding)
    }

    fn store(&self, layer: usize, k: &Tensor, v: &Tensor) {
        let offsets = self.step.offsets.as_ref().expect("set for products");
        let head_dim = self.cache.shape.head_dim;
        for (block, x) in self.cache.completions.layers[layer].iter().zip([k, v]) {
            let _ = block.view([-1, head_dim]).index_copy_(0, offsets, &x.reshape([-1, head_dim]));
        }
    }

    /// `q [slots, heads, head_dim]` over each slot's own completion: outputs of that shape in f32 and log-sum-exps
    /// `[slots, heads, 1]`.
    fn over_completions(&self, layer: usize, q: &Tensor) -> (Tensor, Tensor) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.cache.shape;
        let slots = self.step.slots;
        let [k, v] = self.cache.completions.front(layer, slots, self.step.completion_width);
        let (output, lse) =
            attention(&q.view([slots, kv_heads, -1, head_dim]), &k, &v, self.step.mask.as_ref());
        (output.view([slots, heads, head_dim]), lse.view([slots, heads, 1]))
    }

    /// The same over the slots' prompts; one product serves all completions of a prompt.
    fn over_prompts(&self, layer: usize, q: &Tensor) -> (Tensor, Tensor) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.cache.shape;
        let binding = self.binding();
        let (prompts, group_size) = (binding.prompts, binding.group_size);
        let repeats = heads / kv_heads;
        let [k, v] = self.cache.prompts.front(layer, prompts, binding.prompt_width);
        let padded = pick(q, binding.slot_of_padded.as_ref());
        // [prompts, kv_heads, group_size * repeats, head_dim]
        let queries = padded
            .view([prompts, group_size, kv_heads, repeats, head_dim])
            .transpose(1, 2)
            .reshape([prompts, kv_heads, group_size * repeats, head_dim]);
        let (output, lse) = attention(&queries, &k, &v, binding.prompt_mask.as_ref());
        let to_slots = |x: Tensor, width: i64| {
            let padded = x.view([prompts, kv_heads, group_size, repeats, width]).transpose(1, 2);
            let padded = padded.reshape([prompts * group_size, heads, width]);
            pick(&padded, binding.padded_of_slot.as_ref())
        };
        (to_slots(output, head_dim), to_slots(lse, 1))
    }
}

fn pick(x: &Tensor, index: Option<&Tensor>) -> Tensor {
    index.map_or_else(|| x.shallow_clone(), |index| x.index_select(0, index))
}

/// `q [n, kv_heads, queries, head_dim]` over `k`, `v [n, kv_heads, keys, head_dim]`: outputs as `q` but in f32, and log-sum-exps
/// `[n, kv_heads, queries, 1]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> (Tensor, Tensor) {
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    let mut scores = q.matmul(&k.transpose(2, 3)).to_kind(Kind::Float);
    scores *= scale;
    if let Some(mask) = mask {
        scores += mask;
    }
    let weights = scores.softmax(-1, Kind::Float);
    // The largest weight is exp(max) / sum: that gives the log-sum-exp without a second pass of exponentials.
    let lse = scores.amax([-1i64], true) - weights.amax([-1i64], true).log();
    (weights.to_kind(v.kind()).matmul(v).to_kind(Kind::Float), lse)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
