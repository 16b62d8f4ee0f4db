//! Generation: samples completions of many prompts at once and prefills each prompt once.
//!
//! [`Engine`] is the entry point: requests are added and aborted while others are decoded, and each step tells of new tokens.
//! [`Generator::generate`] is the same for requests that are all there at the start. A group's prompt is prefilled once, and all its completions read its keys and values
//! ([`cache`]). Batching is continuous: finished completions leave the batch and waiting ones take their slots ([`schedule`]). Random
//! numbers are keyed by what they are for ([`base::DrawKey`]), so neither batch size nor order of arrival changes a completion
//! ([`token_sampler`]). [`naive`] is the same in its simplest form, and tests hold the two equal.

pub mod cache;
mod cuda_graphs;
pub mod engine;
mod fast_paths;
pub mod generator;
pub mod naive;
pub mod params;
mod passes;
pub mod request;
mod samplers;
pub mod schedule;
mod static_shapes;
pub mod stop;
pub mod token_sampler;

pub use engine::{Engine, Event};
pub use fast_paths::{FastPathChoice, FastPaths, PathVerdict, choose_fast_paths};
pub use generator::Generator;
pub use naive::naive_completion;
pub use params::SamplingParams;
pub use request::{Generation, Request, RequestId, RequestSettings, SampleStats};
pub use static_shapes::Decoding;

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
    /// Every token is forbidden or ends the completion.
    #[error("no token is left to sample: all {vocab_size} are forbidden or end the completion")]
    NothingLeft {
        /// Rows of the head.
        vocab_size: i64,
    },
    /// A kind of layer that the cache does not hold yet.
    #[error("sampling: {what} is not built yet")]
    NotBuilt {
        /// The layer and what it needs.
        what: String,
    },
    /// A prompt without tokens.
    #[error("request {request}: empty prompt, expected at least one token")]
    EmptyPrompt {
        /// Number of the request.
        request: usize,
    },
    /// A prompt token that the model does not know.
    #[error("request {request}: prompt token {position} is {id}, expected below {vocab_size}")]
    PromptToken {
        /// Number of the request.
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
        /// Number of the request.
        request: usize,
        /// The misfit.
        source: models::ModelError,
    },
    /// The model gave a NaN log-probability.
    #[error(
        "request {request}, completion {completion}: log-probability of token {token} is {got}\nhint: look for non-finite weights, or try `float32`"
    )]
    NonFinite {
        /// Number of the request.
        request: usize,
        /// Index within its group.
        completion: usize,
        /// Index of the token within the completion.
        token: usize,
        /// What came.
        got: f32,
    },
    /// The text of a completion could not be decoded.
    #[error("request {request}: its text: {source}")]
    Text {
        /// Number of the request.
        request: usize,
        /// What the decoder says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The weights were to change under completions.
    #[error(
        "weights in use by {running} running completions\nhint: step until the engine is idle, or abort their requests"
    )]
    WeightsInUse {
        /// Completions under way.
        running: usize,
    },
    /// The caller asked to stop.
    #[error("sampling cancelled with {finished} of {total} completions finished")]
    Cancelled {
        /// Completions that were finished.
        finished: usize,
        /// Completions asked for.
        total: usize,
    },
    /// A name that is no fast path's.
    #[error("fast_paths: got `{got}`, expected `auto`, `all`, `none` or some of {known}")]
    FastPath {
        /// The name.
        got: String,
        /// Those that there are.
        known: String,
    },
    /// libtorch.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
    /// CUDA graphs that do not work here, or a failure of the device.
    #[error(transparent)]
    Torch(#[from] torch::TorchError),
}
