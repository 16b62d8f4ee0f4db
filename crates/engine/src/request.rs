//! Requests to the generator and what it returns.

use base::{Completion, DrawKey, Prompt};

/// A prompt and how many completions to sample.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt.
    pub prompt: Prompt,
    /// `G`, the group size.
    pub num_completions: usize,
    /// The key of completion 0; completion `i` adds `i` to its `completion`.
    pub key: DrawKey,
}

/// What sampling counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleStats {
    /// Tokens sampled.
    pub tokens: usize,
    /// Of these, samples and argmaxes that rounding alone could have changed
    /// ([`crate::token_sampler::BOUNDARY`]).
    pub boundary_draws: usize,
    /// Prompts prefilled.
    pub prompts: usize,
    /// Tokens of these.
    pub prompt_tokens: usize,
    /// Prefill passes.
    pub prefill_passes: usize,
    /// Passes that decoded one token for every completion in the batch.
    pub decode_passes: usize,
}

/// What [`crate::Generator::generate`] returns.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The completions of each request, in order.
    pub completions: Vec<Vec<Completion>>,
    /// Counts.
    pub stats: SampleStats,
}
