//! Sampling.

use crate::ranges::{POSITIVE, demand};
use crate::{ConfigError, CudaGraphs, section};

section! {
    /// How long completions are, and how random.
    pub struct SamplingSection {
        "sampling" {
            /// Longest completion, tokens (VLM-R1's scripts; the Hugging Face trainer: 256).
            max_completion_length: usize = 2048,
            /// No end of a completion before this many tokens.
            min_completion_length: usize = 0,
            /// Longest prompt, tokens: a longer one is an error, nothing is cut; without it, any.
            max_prompt_length: Option<usize> = None,
            /// Divides the logits; obeyed here, VLM-R1's trainer fixes it at 1.
            temperature: f64 = 1.0,
        }
    }
}

section! {
    /// Filters on the distribution of the next token.
    pub struct FilterSection {
        "sampling" {
            /// Keep the likeliest tokens up to this sum.
            top_p: f64 = 1.0,
            /// Keep this many likeliest tokens; 0: all.
            top_k: usize = 0,
            /// Keep tokens at least this likely, relative to the likeliest; without it, all.
            min_p: Option<f64> = None,
            /// Divides the logits of tokens that are already there.
            repetition_penalty: f64 = 1.0,
        }
    }
}

section! {
    /// How completions of a training step are computed and kept.
    pub struct RolloutSection {
        "run" {
            /// Steps whose completions stay in full in `rollouts/`, the newest; without it, all.
            rollouts_keep: Option<u64> = None,
        }
        "machine" {
            /// Completions sampled at the same time.
            max_concurrent_completions: usize = 256,
            /// Decode with static shapes and CUDA graphs: `auto`, where they are proven on this device; `true`; `false`.
            cuda_graphs: CudaGraphs = CudaGraphs::Auto,
            /// Compute the prompt of a group once; if false, once for each completion: slower, the same results.
            share_prompt: bool = true,
            /// Keep the reference model in host memory; a step brings it to the device for its passes.
            offload_reference: bool = false,
        }
    }
}

impl SamplingSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.max_completion_length > 0, "max_completion_length", 0, POSITIVE)?;
        let least = self.min_completion_length;
        demand(
            least <= self.max_completion_length,
            "min_completion_length",
            least,
            "at most `max_completion_length`",
        )?;
        demand(self.temperature > 0.0, "temperature", self.temperature, "above 0")
    }
}

impl FilterSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let top_p = self.top_p;
        demand(top_p > 0.0 && top_p <= 1.0, "top_p", top_p, "above 0 and at most 1")?;
        let min_p = self.min_p.unwrap_or_default();
        demand((0.0..=1.0).contains(&min_p), "min_p", min_p, "0 to 1")?;
        let penalty = self.repetition_penalty;
        demand(penalty > 0.0, "repetition_penalty", penalty, "above 0")
    }
}

impl RolloutSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let at_once = self.max_concurrent_completions;
        demand(at_once > 0, "max_concurrent_completions", 0, POSITIVE)?;
        demand(self.rollouts_keep != Some(0), "rollouts_keep", 0, POSITIVE)
    }
}
