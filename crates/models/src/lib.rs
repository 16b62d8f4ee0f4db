//! Model families over libtorch: packed tokens in, hidden states and logits out.
//!
//! Models know neither caches nor losses: where queries find their keys is an [`Attend`], so the same
//! layers serve training (`layers::PackedAttention`) and sampling (`engine`).

pub mod batch;
pub mod checkpoint;
pub mod layers;
pub mod model;
pub mod parameters;
pub mod qwen2_5_vl;
pub mod tape;

pub use batch::{BatchBuilder, PackedBatch};
pub use checkpoint::{load_model, read_family, save_weights};
pub use layers::attention::{Attend, Layout, PackedAttention, Segment};
pub use layers::rotary::Rotary;
pub use model::{LoadOptions, VisionLanguageModel};
pub use parameters::{Parameter, Parameters};
pub use tape::Tape;

use std::path::PathBuf;

/// Why a model could not be read or saved.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` is missing, broken or lacks a key.
    #[error("{path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// A family that is not built.
    #[error("{path}: `model_type` is `{got}`, expected one of: {known}")]
    Family {
        /// The file.
        path: PathBuf,
        /// What `config.json` says.
        got: String,
        /// What is built.
        known: &'static str,
    },
    /// Weights that do not fit the configuration, all of them at once.
    #[error("{folder}: weights do not fit config.json\n{}", problems.join("\n"))]
    Weights {
        /// The model folder.
        folder: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A prompt that does not fit the images given with it.
    #[error(
        "prompt has {placeholders} image placeholder tokens but its {images} images give {features}"
    )]
    Placeholders {
        /// Placeholder tokens in the prompt.
        placeholders: usize,
        /// Images given.
        images: usize,
        /// Merged patches of these images.
        features: usize,
    },
    /// A weight file.
    #[error(transparent)]
    Torch(#[from] torch::TorchError),
    /// libtorch.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
}
