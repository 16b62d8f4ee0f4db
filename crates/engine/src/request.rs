//! Requests and what comes of them.

use std::fmt;

use base::{Completion, DrawKey, Prompt};

use crate::params::SamplingParams;

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

/// How the completions of a request are sampled and when they end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestSettings {
    /// The choice of tokens, and the lengths.
    pub params: SamplingParams,
    /// Texts that end a completion, with the token that completes one as its last. As end tokens, not before `min_new_tokens` tokens.
    pub stop_strings: Vec<String>,
}

impl From<SamplingParams> for RequestSettings {
    fn from(params: SamplingParams) -> Self {
        RequestSettings { params, stop_strings: Vec::new() }
    }
}

/// Names a request of an [`crate::Engine`]: how many that engine took before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) usize);

impl RequestId {
    /// As a number, from 0 on.
    pub fn number(self) -> usize {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
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
    /// The version of the weights, where the generator was given one, else 0.
    pub weights_version: u64,
}
