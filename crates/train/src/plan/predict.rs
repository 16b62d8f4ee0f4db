//! What the phases of a step ask of a card, counted from the shapes. Left out: rewards, loading and packing; in training
//! what norms, rotations and activations read and write, which the share of the matrix rate stands for; copies to host
//! memory and updates there.

use super::cards::{
    Demand, LAUNCHES_PER_ADAPTER, LAUNCHES_PER_TENSOR_UPDATE, SUM_BYTES, UPDATE_BYTES,
    UPDATE_BYTES_OF_8BIT, UPDATE_BYTES_OF_MASTERS, launches,
};
use super::{Card, Choice, Load, Shape, Trained, Work, num_trained};
use crate::logprobs::CHUNK_ROWS;

/// Linear layers of a text layer, each with an adapter under LoRA.
const ADAPTERS_PER_LAYER: u64 = 7;
/// Weights, biases and norms of a text layer, and of a vision block.
const TENSORS_PER_STAGE: u64 = 12;

/// What a step asks of a card, phase by phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phases {
    /// Prompts and images, before the first token.
    pub prefill: Demand,
    /// All tokens of all completions.
    pub decoding: Demand,
    /// The reference's log-probabilities; nothing without a reference.
    pub reference: Demand,
    /// The policy's forward passes.
    pub forward: Demand,
    /// Its backward passes, with what they recompute.
    pub backward: Demand,
    /// The updates; nothing where they are done in host memory.
    pub update: Demand,
}

impl Phases {
    /// Names and demands, in the order of a step.
    pub fn list(&self) -> [(&'static str, Demand); 6] {
        [
            ("prefill", self.prefill),
            ("decoding", self.decoding),
            ("reference", self.reference),
            ("policy forward", self.forward),
            ("policy backward", self.backward),
            ("update", self.update),
        ]
    }

    /// Seconds of the step.
    pub fn secs(&self, card: &Card) -> f64 {
        self.list().into_iter().map(|(_, demand)| card.secs(demand)).sum()
    }
}

/// Counts a step's phases; with `graphs` a decoding pass is replayed by one launch.
pub fn predict(shape: &Shape, choice: Choice, work: &Work, graphs: bool) -> Phases {
    let counted = Counted { shape, choice, work };
    let step = &work.step;
    // Features once computed serve all passes.
    let images = if choice.keeps_features() { 0 } else { step.prompts };
    let passes = step.completions.div_ceil(work.micro_batch.max(1));
    let prompts = Load { completions: 0, completion_tokens: 0, ..*step };
    let reference = counted.pass(step, passes, images, false);
    let forward = counted.pass(step, passes, images, true);
    let backward = counted.backward(passes, images, forward);
    let iterations = work.iterations as f64;
    Phases {
        prefill: counted.pass(&prompts, 1, step.prompts, true),
        decoding: counted.decoding(graphs),
        reference: if choice.reference { reference } else { Demand::default() },
        forward: forward.times(iterations),
        backward: backward.times(iterations),
        update: counted.update(passes).times(iterations),
    }
}

struct Counted<'a> {
    shape: &'a Shape,
    choice: Choice,
    work: &'a Work,
}

impl Counted<'_> {
    fn is_lora(&self) -> bool {
        matches!(self.choice.trained, Trained::Lora { .. })
    }

    /// Numbers of the adapters, and the launches that they add to a pass.
    fn adapters(&self) -> (f64, f64) {
        if !self.is_lora() {
            return (0.0, 0.0);
        }
        let launches = self.shape.layers * ADAPTERS_PER_LAYER * LAUNCHES_PER_ADAPTER;
        (num_trained(self.shape, self.choice.trained) as f64, launches as f64)
    }

    /// Weights that every token meets.
    fn text_weights(&self) -> f64 {
        (self.shape.layers * self.shape.layer_weights) as f64
    }

    fn head_weights(&self) -> f64 {
        (self.shape.vocab * self.shape.hidden) as f64
    }

    fn bytes_of(&self, numbers: f64) -> f64 {
        numbers * self.choice.size() as f64
    }

    fn head_flop(&self, load: &Load) -> f64 {
        2.0 * self.head_weights() * load.completions as f64 * load.completion_tokens as f64
    }

    /// Scores and weighted values of all layers: each token with those before it in its prompt and completion.
    fn attention_flop(&self, load: &Load) -> f64 {
        let (prompt, tokens) = (load.prompt_tokens as f64, load.completion_tokens as f64);
        let in_prompts = load.prompts as f64 * triangle(prompt);
        let pairs = in_prompts + load.completions as f64 * (tokens * prompt + triangle(tokens));
        4.0 * (self.shape.q_width * self.shape.layers) as f64 * pairs
    }

    fn vision_flop(&self, images: u64) -> f64 {
        let (shape, patches) = (self.shape, self.work.step.patches as f64);
        let whole = shape.full_blocks as f64 * patches;
        let windows = shape.vision_depth.saturating_sub(shape.full_blocks) as f64;
        let seen = whole + windows * patches.min(shape.window as f64);
        let attention = 4.0 * shape.vision_hidden as f64 * patches * seen;
        images as f64 * (2.0 * patches * shape.tower_weights as f64 + attention)
    }

    /// `passes` forward over `load` together, with the tower over `images` and, where it has them, adapters.
    fn pass(&self, load: &Load, passes: u64, images: u64, adapted: bool) -> Demand {
        let (adapters, added) = if adapted { self.adapters() } else { (0.0, 0.0) };
        let text = 2.0 * (self.text_weights() + adapters) * load.tokens() as f64;
        let read = self.text_weights() + adapters + self.head_weights();
        let blocks = if images > 0 { self.shape.vision_depth } else { 0 };
        let launches = self.shape.layers * launches::PER_LAYER_TRAINING_FORWARD
            + blocks * launches::PER_BLOCK_TRAINING_FORWARD;
        Demand {
            flop: text
                + self.attention_flop(load)
                + self.head_flop(load)
                + self.vision_flop(images),
            bytes: self.bytes_of(passes as f64 * read),
            launches: passes as f64 * (launches as f64 + added),
        }
    }

    /// The backward passes after `forward`: twice its work where weights are trained, once where only gradients of the
    /// inputs pass through, and the forward pass again where activations or chunks of logits are recomputed.
    fn backward(&self, passes: u64, images: u64, forward: Demand) -> Demand {
        let step = &self.work.step;
        let trains_tower = self.choice.trained == Trained::Full;
        let vision = if trains_tower { self.vision_flop(images) } else { 0.0 };
        let (head, attention) = (self.head_flop(step), self.attention_flop(step));
        let linears = 2.0 * self.text_weights() * step.tokens() as f64;
        let (adapters, added) = self.adapters();
        let adapters = 2.0 * adapters * step.tokens() as f64;
        let weights = if self.is_lora() { 1.0 } else { 2.0 };
        let rows = step.completions.min(self.work.micro_batch) * step.completion_tokens;
        let logits_again = if rows > CHUNK_ROWS.unsigned_abs() { head } else { 0.0 };
        let blocks = if trains_tower && images > 0 { self.shape.vision_depth } else { 0 };
        let launches = self.shape.layers * launches::PER_LAYER_TRAINING_BACKWARD
            + blocks * launches::PER_BLOCK_TRAINING_BACKWARD;
        let gradients = Demand {
            flop: weights * (linears + head) + 2.0 * (attention + vision + adapters) + logits_again,
            bytes: weights * forward.bytes,
            launches: passes as f64 * (launches as f64 + 2.0 * added),
        };
        let again = if self.choice.recompute {
            let tower_again = if trains_tower { 0.0 } else { self.vision_flop(images) };
            Demand { flop: forward.flop - head - tower_again, ..forward }
        } else {
            Demand::default()
        };
        Demand {
            flop: gradients.flop + again.flop,
            bytes: gradients.bytes + again.bytes,
            launches: gradients.launches + again.launches,
        }
    }

    /// Each pass reads the weights once, each prompt's keys and values once, and on the mean those of half a completion.
    fn decoding(&self, graphs: bool) -> Demand {
        let step = &self.work.step;
        let sampled = self.work.sampled.clamp(1, step.completions.max(1));
        let turns = step.completions.div_ceil(sampled);
        let (adapters, added) = self.adapters();
        let weights = self.text_weights() + adapters + self.head_weights();
        let prompts = step.prompts as f64 * step.prompt_tokens as f64;
        let half = step.completion_tokens as f64 / 2.0;
        let cached = prompts + step.completions as f64 * half;
        let cached = 2.0 * (self.shape.layers * self.shape.kv_width) as f64 * cached;
        let (passes, tokens) =
            (turns * step.completion_tokens, step.completions * step.completion_tokens);
        let launches = if graphs {
            launches::PER_GRAPH as f64
        } else {
            let layers = self.shape.layers * launches::PER_LAYER_DECODING;
            (layers + launches::PER_TOKEN_DECODING) as f64 + added
        };
        let attention = self.attention_flop(&Load { prompts: 0, ..*step });
        Demand {
            flop: 2.0 * weights * tokens as f64 + attention,
            bytes: self.bytes_of(passes as f64 * weights + step.completion_tokens as f64 * cached),
            launches: passes as f64 * launches,
        }
    }

    fn update(&self, passes: u64) -> Demand {
        if self.choice.offload_optimizer {
            return Demand::default();
        }
        let trained = num_trained(self.shape, self.choice.trained);
        let only = |holds: bool, bytes: u64| if holds { bytes } else { 0 };
        let bytes = UPDATE_BYTES
            + only(self.choice.bf16, UPDATE_BYTES_OF_MASTERS)
            + only(self.choice.in_8bit, UPDATE_BYTES_OF_8BIT)
            + only(passes > 1, passes * SUM_BYTES);
        let tensors = match self.choice.trained {
            Trained::Full => TENSORS_PER_STAGE * (self.shape.layers + self.shape.vision_depth),
            Trained::FrozenVision => TENSORS_PER_STAGE * self.shape.layers,
            Trained::Lora { .. } => 2 * ADAPTERS_PER_LAYER * self.shape.layers,
        };
        Demand {
            flop: 0.0,
            bytes: trained.div_ceil(self.choice.shards()) as f64 * bytes as f64,
            launches: (tensors * LAUNCHES_PER_TENSOR_UPDATE) as f64,
        }
    }
}

/// Pairs of a token and one of those up to it.
fn triangle(tokens: f64) -> f64 {
    tokens * (tokens + 1.0) / 2.0
}

#[cfg(test)]
mod tests;
