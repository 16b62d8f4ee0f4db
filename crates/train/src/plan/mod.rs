//! What a run takes of memory, computed from shapes alone: no weights, no tensors; and of time, by trying
//! its parts on a blank model, or by what a card that is not here is known to do (`cards`, `predict`).
//!
//! Activations are what autograd keeps of each layer as `models` writes it: inputs of linear layers,
//! of norms, of the attention kernel and of the activation functions. Tests hold the sums to the
//! allocator's counts (`tests.rs`, and `layers_beside_the_plan` in `tests/it/memory.rs`). Why they are
//! sums and not measured: docs/memory.md.

mod cards;
mod costs;
mod inputs;
mod network;
mod predict;
mod probe;
mod shape;
mod stage_three;
mod time;

pub use cards::{CARDS, Card, Demand, launches};
pub use costs::{Costs, Line, Passes, Tower};
pub use inputs::{PlanInputs, RolloutBytes, plan_inputs};
pub use network::{NETWORKS, Network, bytes_sent};
pub use predict::{Phases, predict};
pub use probe::Probe;
pub use shape::{Counts, Shape};
pub use stage_three::{check_stage_three, check_stage_three_of_sft};
pub use time::{Work, step_secs};

use config::{ZeroStage, ZeroStageSetting};

use crate::logprobs::CHUNK_ROWS;
use crate::moments;

const F32: u64 = 4;
const BF16: u64 = 2;
/// Tensors of the logits' size at a time: with libtorch's operations in f32 (log-softmax, its exponential, their product); with the CPU
/// kernel in the compute type (logits and their gradient).
const LOGIT_COPIES: u64 = 3;
const LOGIT_COPIES_KERNEL: u64 = 2;
/// The KV cache's first width of completions, and the multiple of a prompt's width.
const FIRST_COMPLETION_WIDTH: u64 = 32;
const PROMPT_WIDTH_MULTIPLE: u64 = 16;
/// Scalars whose 8-bit moments are dequantized at a time, and the bytes that each takes: two moments and the temporaries of quantization.
const CHUNK_8BIT: u64 = moments::CHUNK.unsigned_abs();
const BYTES_8BIT: u64 = 24;
/// Numbers of a bucket, in which gradients are summed over ranks and weights come back.
const BUCKET: u64 = crate::shards::layout::BUCKET as u64;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// All weights.
    Full,
    /// The language model.
    FrozenVision,
    /// Adapters over the language model.
    Lora {
        /// Their rank.
        rank: u64,
        /// Whether there is dropout: its masks are saved.
        dropout: bool,
    },
}

/// The settings that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What is trained.
    pub trained: Trained,
    /// Weights and computation in bf16.
    pub bf16: bool,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
    /// Whether there is a reference model.
    pub reference: bool,
    /// Whether gradients accumulate over several micro-batches: their sums are in f32.
    pub accumulates: bool,
    /// Bytes of the feature cache with a frozen tower; 0: none.
    pub feature_cache: u64,
    /// Moments in 8 bits.
    pub in_8bit: bool,
    /// Masters, moments and gradient sums in host memory.
    pub offload_optimizer: bool,
    /// The reference in host memory except during its passes.
    pub offload_reference: bool,
    /// Norms, activations, attention and token scores by CPU kernels, which save only their inputs (attention also its output).
    pub cpu_kernels: bool,
    /// The ranks that train.
    pub ranks: Ranks,
}

/// How many ranks there are, and what is asked for of what they hold in shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Their number.
    pub count: u64,
    /// `--zero_stage`.
    pub stage: ZeroStageSetting,
}

impl Ranks {
    /// A run without others.
    pub const ONE: Self = Ranks { count: 1, stage: ZeroStageSetting::Auto };
}

impl Choice {
    fn size(&self) -> u64 {
        if self.bf16 { BF16 } else { F32 }
    }

    /// What ranks hold in shards.
    pub fn zero_stage(&self) -> ZeroStage {
        let is_lora = matches!(self.trained, Trained::Lora { .. });
        self.ranks.stage.resolved(self.ranks.count as usize, is_lora)
    }

    /// The parts that exact weights, moments, summed gradients and reference are cut into.
    pub(super) fn shards(&self) -> u64 {
        match self.zero_stage() {
            ZeroStage::Zero => 1,
            ZeroStage::Two => self.ranks.count,
        }
    }

    /// Bytes of one logit in all its copies.
    fn logit_bytes(&self) -> u64 {
        if self.cpu_kernels { LOGIT_COPIES_KERNEL * self.size() } else { LOGIT_COPIES * F32 }
    }

    /// Tensors of the inner width that a gated activation saves, output included. The kernel cpu_kernels with a plain linear layer recomputes the
    /// output.
    fn gated(&self) -> u64 {
        match self.trained {
            _ if !self.cpu_kernels => 4,
            Trained::Lora { .. } => 3,
            _ => 2,
        }
    }

    /// Bytes per number of the input that a norm saves.
    fn norm_input(&self) -> u64 {
        if self.cpu_kernels { self.size() } else { F32 }
    }

    /// Whether image features are cached.
    fn keeps_features(&self) -> bool {
        self.feature_cache > 0 && self.trained != Trained::Full
    }
}

/// What goes through the model at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Prompts.
    pub prompts: u64,
    /// Completions of all prompts.
    pub completions: u64,
    /// Tokens of a prompt, those of its images included.
    pub prompt_tokens: u64,
    /// Tokens of a completion.
    pub completion_tokens: u64,
    /// Patches of a prompt's images.
    pub patches: u64,
}

impl Load {
    /// `completions` in groups of `group`, of which the last may be a part.
    pub fn of_completions(self, completions: u64, group: u64) -> Self {
        Load { prompts: completions.div_ceil(group), completions, ..self }
    }

    /// Packed tokens.
    pub fn tokens(&self) -> u64 {
        self.prompts * self.prompt_tokens + self.completions * self.completion_tokens
    }
}

/// Bytes by component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights of the model in the compute type.
    pub weights: u64,
    /// Those of adapters.
    pub adapters: u64,
    /// What f32 weights take beside those in the compute type.
    pub masters: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// The reference model.
    pub reference: u64,
    /// Image features.
    pub feature_cache: u64,
    /// Gradients at the update, f32, summed.
    pub gradients: u64,
    /// What a micro-batch saves for its backward pass.
    pub activations: u64,
    /// A chunk of logits.
    pub logits: u64,
    /// Keys and values of the generator.
    pub kv_cache: u64,
    /// The most at a time, on the device.
    pub peak: u64,
    /// The most in host memory, of what the settings keep there.
    pub host: u64,
}

/// Bytes that a rank of a run takes whose micro-batches are `batch` and which samples `sampled` at once.
pub fn memory(shape: &Shape, choice: Choice, batch: &Load, sampled: &Load) -> Memory {
    let size = choice.size();
    let (counts, trained) = (shape.counts, num_trained(shape, choice.trained));
    let is_lora = matches!(choice.trained, Trained::Lora { .. });
    let only = |holds: bool, bytes: u64| if holds { bytes } else { 0 };
    let (shards, bucket) = (choice.shards(), BUCKET.min(trained));
    let part = |bytes: u64| bytes.div_ceil(shards);
    let reference = only(choice.reference && !is_lora, counts.all() * size);
    let stages = Stages::new(shape, choice, batch);
    let mut plan = Memory {
        weights: counts.all() * size,
        adapters: only(is_lora, trained * size),
        // On the device what a value in bf16 lacks, in host memory the whole.
        masters: part(if choice.offload_optimizer {
            trained * F32
        } else {
            only(choice.bf16, trained * BF16)
        }),
        moments: part(moments_bytes(trained, choice.in_8bit)),
        reference: part(reference),
        feature_cache: only(choice.keeps_features(), choice.feature_cache),
        gradients: part(trained * F32),
        activations: stages.kept(choice.recompute),
        logits: logits_bytes(shape, choice, batch),
        kv_cache: kv_bytes(shape, size, sampled),
        peak: 0,
        host: 0,
    };
    let on_device = |offloaded: bool, bytes: u64| only(!offloaded, bytes);
    let optimizer = |bytes: u64| on_device(choice.offload_optimizer, bytes);
    // Shards take up gradients after each micro-batch.
    let sums = optimizer(only(choice.accumulates || shards > 1, plan.gradients));
    let forward = sums + plan.activations + plan.logits;
    let backward = sums + stages.backward(choice, trained, counts.language);
    // Packed weights beside the weights.
    let packed = only(choice.cpu_kernels, counts.language * size);
    let sampling =
        plan.kv_cache + packed + choice.logit_bytes() * shape.vocab * sampled.completions;
    let in_8bit = only(choice.in_8bit, CHUNK_8BIT.min(trained) * BYTES_8BIT);
    // Weights are in f32 a few at a time, one of them the embedding.
    let joined = (shape.vocab * shape.hidden + counts.language / shape.layers / 2).min(trained);
    let joined = only(choice.bf16, joined * F32);
    // Of shards a bucket at a time: its part in f32, and all of it as the other ranks send it.
    let (joined, gathered) = match shards {
        1 => (joined, 0),
        _ => (bucket.div_ceil(shards) * F32, bucket * size),
    };
    let update = optimizer(plan.gradients + in_8bit + joined) + gathered;
    // What is sent is in f32, beside the sums, or beside what a pass has left.
    let left = if shards > 1 { sums + trained * size } else { optimizer(plan.gradients) };
    let sent = only(choice.ranks.count > 1, left + bucket * F32);
    // Alone with the weights: its passes come before the first gradient.
    let is_gathered = choice.offload_reference || shards > 1;
    let reference = only(is_gathered && reference > 0, reference + plan.logits);
    let stays = plan.weights
        + plan.adapters
        + plan.feature_cache
        + optimizer(plan.masters + plan.moments)
        + on_device(choice.offload_reference, plan.reference);
    let most = [forward, backward, update, sent, sampling, reference];
    plan.peak = stays + most.into_iter().fold(0, u64::max);
    // Gradients arrive in the compute type, beside their sums.
    let arriving = part(trained * size);
    let optimizer = plan.masters + plan.moments + plan.gradients + arriving;
    plan.host =
        only(choice.offload_optimizer, optimizer) + only(choice.offload_reference, plan.reference);
    plan
}

/// Scales come to a number for each of 256; the few weights that keep f32 moments are passed over.
fn moments_bytes(trained: u64, in_8bit: bool) -> u64 {
    if in_8bit { 2 * (trained + trained.div_ceil(256) * F32) } else { 2 * trained * F32 }
}

/// The most completions of a micro-batch, one of several of a step, that fit into `bytes`; whole groups
/// first; 0 where none does.
pub fn completions_that_fit(
    shape: &Shape,
    choice: Choice,
    load: (&Load, u64),
    sampled: &Load,
    bytes: u64,
) -> u64 {
    let (one, group) = load;
    let choice = Choice { accumulates: true, ..choice };
    let fits = |n: u64| {
        let batch = one.of_completions(n, group);
        memory(shape, choice, &batch, sampled).peak <= bytes
    };
    let (mut low, mut high) = (0u64, 1u64 << 16);
    while low + 1 < high {
        let middle = low.midpoint(high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    // Parts of a group stand alone; of several only whole ones are of use.
    if low > group { low - low % group } else { low }
}

/// Scalars that are trained.
pub fn num_trained(shape: &Shape, trained: Trained) -> u64 {
    match trained {
        Trained::Full => shape.counts.all(),
        Trained::FrozenVision => shape.counts.language,
        Trained::Lora { rank, .. } => shape.adapters(rank),
    }
}

/// Bytes kept by one stage of each kind, and of the inputs that recomputation keeps instead.
struct Stages {
    layers: u64,
    layer: u64,
    blocks: u64,
    block: u64,
    merger: u64,
    inputs: u64,
}

impl Stages {
    fn new(shape: &Shape, choice: Choice, batch: &Load) -> Self {
        let size = choice.size();
        let has_tower = choice.trained == Trained::Full;
        let tower = |bytes: u64| if has_tower { bytes } else { 0 };
        let patches = batch.prompts * batch.patches;
        let (v, merged) = (shape.vision_hidden, shape.merged_width());
        // Rotated queries and keys, values, outputs; with libtorch's operations also the product that values are a view of, and the
        // outputs gathered from padded blocks.
        let attention = if choice.cpu_kernels { 4 } else { 7 };
        let mlp = match shape.vision_gated {
            true => choice.gated() * shape.vision_mlp,
            // The activation's input, and without our kernels its output.
            false => shape.vision_mlp * if choice.cpu_kernels { 1 } else { 2 },
        };
        let norms = match shape.vision_gated || choice.cpu_kernels {
            true => norms(choice, v, true),
            // Layer norms: inputs and outputs.
            false => 2 * v * 2 * size,
        };
        let block = norms + (attention * v + mlp) * size;
        let merger =
            patches * v * (choice.norm_input() + size) + patches / shape.merged * 2 * merged * size;
        let merger = shape.features * merger;
        let per_patch = shape.vision_depth * v * size;
        Stages {
            layers: shape.layers,
            layer: layer_bytes(shape, choice, batch),
            blocks: shape.vision_depth,
            block: tower(patches * block),
            merger: tower(merger),
            inputs: (shape.layers + 1) * batch.tokens() * shape.hidden * size
                + tower(patches * per_patch),
        }
    }

    fn kept(&self, recompute: bool) -> u64 {
        if recompute {
            self.inputs
        } else {
            self.layers * self.layer + self.blocks * self.block + self.merger
        }
    }

    /// The peak of the backward pass: gradients so far, and the activations of the current stage.
    fn backward(&self, choice: Choice, trained: u64, language: u64) -> u64 {
        let size = choice.size();
        if !choice.recompute {
            return trained * size + self.layer.max(self.block);
        }
        let upstream = if choice.cpu_kernels { 4 } else { 2 };
        let in_text =
            trained.min(language) * size + self.inputs + self.layer + self.layer / upstream;
        let in_vision = trained * size + self.block + self.block / upstream;
        in_text.max(in_vision)
    }
}

/// Bytes per token that the two norms of a layer save: the input (in f32 with libtorch's operations) and, with libtorch's operations and a
/// trained weight after it, the normed input and the output. CPU kernels recompute these.
fn norms(choice: Choice, width: u64, weights_are_trained: bool) -> u64 {
    let kept = if weights_are_trained && !choice.cpu_kernels { 2 } else { 0 };
    2 * width * (choice.norm_input() + kept * choice.size())
}

/// Bytes that one text layer saves of a micro-batch.
fn layer_bytes(shape: &Shape, choice: Choice, batch: &Load) -> u64 {
    let (trained, size, gated) = (choice.trained, choice.size(), choice.gated());
    let tokens = batch.tokens();
    let (h, q, kv, mlp) = (shape.hidden, shape.q_width, shape.kv_width, shape.mlp);
    let attention = if choice.cpu_kernels {
        // The output is the next layer's input and counted there, unless an adapter with dropout saves it separately.
        let output = matches!(trained, Trained::Lora { dropout: true, .. });
        tokens * (q * (1 + u64::from(output)) + 2 * kv)
    } else {
        // Every completion has a copy of its prompt's keys and values.
        let seen = batch.prompts * batch.prompt_tokens
            + batch.completions * (batch.prompt_tokens + batch.completion_tokens);
        2 * tokens * q + 2 * seen * kv
    };
    let rest = match trained {
        Trained::Full | Trained::FrozenVision => tokens * (q + gated * mlp),
        Trained::Lora { dropout, .. } => {
            // With dropout each adapter saves its mask and what that leaves of its input; without, those over one input save that once.
            let inputs = if dropout { 2 * (5 * h + q + mlp) } else { 2 * h + q + mlp };
            tokens * ((gated - 1) * mlp + inputs)
        }
    };
    // What norms of heads save: their inputs, without our kernels in f32 too.
    let heads = if shape.normed_heads { tokens * (q + kv) * choice.norm_input() } else { 0 };
    let is_lora = matches!(trained, Trained::Lora { .. });
    tokens * norms(choice, h, !is_lora) + (attention + rest) * size + heads
}

fn logits_bytes(shape: &Shape, choice: Choice, batch: &Load) -> u64 {
    let rows = batch.completions * batch.completion_tokens;
    let chunk = CHUNK_ROWS.unsigned_abs();
    choice.logit_bytes() * shape.vocab * rows.min(chunk)
}

fn kv_bytes(shape: &Shape, size: u64, sampled: &Load) -> u64 {
    let prompts = sampled.prompts * sampled.prompt_tokens.next_multiple_of(PROMPT_WIDTH_MULTIPLE);
    let doubled = FIRST_COMPLETION_WIDTH
        * sampled.completion_tokens.div_ceil(FIRST_COMPLETION_WIDTH).next_power_of_two();
    let columns = prompts
        + sampled.completions * doubled.min(sampled.completion_tokens.max(FIRST_COMPLETION_WIDTH));
    2 * shape.layers * shape.kv_width * size * columns
}

#[cfg(test)]
mod tests;
