//! Sampling: completions of prompts, many at once, each prompt computed and stored once.
//!
//! [`Sampler::generate`] is the door. A group's prompt is prefilled once; its keys and values lie in
//! memory once and all its answers read them ([`cache`]). Finished answers leave the batch and waiting
//! ones take their places ([`schedule`]); draws are keyed by what they are for ([`base::DrawKey`]), so
//! neither batch size nor order of arrival changes an answer ([`mod@choose`]). [`naive`] says the same in
//! the plainest way and is tested equal.
//!
//! What a model is, is left to `models`; rewards and training to others.

pub mod cache;
pub mod choose;
mod filters;
mod fixed;
mod graphs;
pub mod naive;
pub mod params;
pub mod request;
mod run;
pub mod sampler;
pub mod schedule;

pub use fixed::Decoding;
pub use naive::naive_completion;
pub use params::SamplingParams;
pub use request::{Generation, Request, SampleStats};
pub use sampler::Sampler;

/// Why completions could not be sampled.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A sampling parameter out of its range.
    #[error("sampling parameter `{name}`: got {got}, expected {expected}")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// Its value.
        got: String,
        /// Its range.
        expected: &'static str,
    },
    /// A token id that the model's head has no row for.
    #[error(
        "sampling parameter `{name}`: token id {id}, expected below the {vocab_size} rows of the head"
    )]
    TokenId {
        /// The list it stands in.
        name: &'static str,
        /// The id.
        id: u32,
        /// Rows of the head.
        vocab_size: i64,
    },
    /// Every token is forbidden or ends the answer.
    #[error("no token is left to sample: all {vocab_size} are forbidden or end the answer")]
    NothingLeft {
        /// Rows of the head.
        vocab_size: i64,
    },
    /// A prompt without tokens.
    #[error("request {request}: empty prompt, expected at least one token")]
    EmptyPrompt {
        /// Index of the request.
        request: usize,
    },
    /// A prompt token that the model does not know.
    #[error("request {request}: prompt token {position} is {id}, expected below {vocab_size}")]
    PromptToken {
        /// Index of the request.
        request: usize,
        /// Index within the prompt.
        position: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// A prompt that does not fit its images.
    #[error("request {request}: {source}")]
    Prompt {
        /// Index of the request.
        request: usize,
        /// The misfit.
        source: models::ModelError,
    },
    /// The model gave a log-probability that is no number.
    #[error(
        "request {request}, completion {completion}: log-probability of token {token} is {got}\nhint: look for non-finite weights, or try `float32`"
    )]
    NonFinite {
        /// Index of the request.
        request: usize,
        /// Index within its group.
        completion: usize,
        /// Index of the token within the completion.
        token: usize,
        /// What came.
        got: f32,
    },
    /// The caller asked to stop.
    #[error("sampling cancelled with {finished} of {total} completions finished")]
    Cancelled {
        /// Completions that were finished.
        finished: usize,
        /// Completions asked for.
        total: usize,
    },
    /// libtorch.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
    /// Graphs that cannot be recorded here, and what the device failed in.
    #[error(transparent)]
    Torch(#[from] torch::TorchError),
}
