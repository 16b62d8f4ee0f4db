//! Model families over libtorch: packed tokens in, hidden states and logits out.
//!
//! Models know neither KV caches nor losses. Attention goes through an [`AttentionBackend`], so the same layers serve training
//! (`layers::PackedAttention`) and generation (`engine`).

pub mod checkpoint;
pub mod checkpointing;
pub mod config;
mod contradictions;
pub mod decoder_model;
pub mod family;
pub mod features;
pub mod inputs;
pub mod layers;
pub mod lora;
mod mismatches;
pub mod model;
pub mod names;
pub mod parameters;

macro_rules! families {
    ($($name:ident),+ $(,)?) => {
        $(pub mod $name;)+

        /// All families.
        pub const FAMILIES: &[&Family] = &[$(&$name::FAMILY),+];
    };
}

families!(qwen2_5_vl, qwen2_vl, qwen3_vl);

pub use checkpoint::{
    base_of, copy_processor_files, exact_weights, load_model, load_with_adapter, save_parameters,
    save_weights,
};
pub use checkpointing::Checkpointing;
pub use family::{Family, FamilyConfig, ScaledSize, TinySizes, VisionShape, family_of};
pub use features::{FeatureCache, FeatureCacheOptions, FeatureStats, TowerFeatures};
pub use inputs::{InputsBuilder, ModelInputs};
pub use layers::PackedWeights;
pub use layers::attention::{AttentionBackend, Layout, PackedAttention, Segment, Visibility};
pub use layers::rotary::Rotary;
pub use lora::{
    AdapterSource, Lora, LoraOptions, SavedAdapter, Targets, merge_adapter, save_adapter,
    save_adapter_of,
};
pub use model::{
    AttentionShape, LayerKind, LoadOptions, Part, PassInputs, TextShape, TrainedParts,
    VisionLanguageModel,
};
pub use parameters::{Master, Parameter, Parameters};

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
    /// A folder that holds no model.
    #[error(transparent)]
    Folder(#[from] base::model_folder::ModelFolderError),
    /// A family that is not supported.
    #[error("{path}: `model_type` is `{got}`, expected one of: {known}")]
    Family {
        /// The file.
        path: PathBuf,
        /// What `config.json` says.
        got: String,
        /// What is supported.
        known: String,
    },
    /// A part of a family that is not built yet.
    #[error("`{model_type}`: {what} is not built yet")]
    NotBuilt {
        /// The family.
        model_type: &'static str,
        /// The part.
        what: String,
    },
    /// Weights that do not fit the configuration, all of them at once.
    #[error("{folder}: weights do not fit config.json\n{}", problems.join("\n"))]
    Weights {
        /// The model folder.
        folder: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// An adapter that belongs to another model.
    #[error("{adapter}: does not fit {base}\n{}", problems.join("\n"))]
    Adapter {
        /// The adapter's folder.
        adapter: PathBuf,
        /// The model's folder.
        base: PathBuf,
        /// One line a layer.
        problems: Vec<String>,
    },
    /// An adapter whose model is not to be found.
    #[error(
        "{adapter}: its base model `{base}` is no folder with a config.json\nhint: write the folder into `base_model_name_or_path` of adapter_config.json; `merge` takes `--base_model`"
    )]
    Base {
        /// The adapter's folder.
        adapter: PathBuf,
        /// What it names.
        base: String,
    },
    /// A model without adapters was to be saved as one.
    #[error("the model has no adapter")]
    NoAdapter,
    /// A target that cannot be read.
    #[error("lora target `{pattern}`: {cause}")]
    TargetPattern {
        /// The target.
        pattern: String,
        /// Why.
        cause: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Stored features of an image that cannot be used.
    #[error("{path}: {cause}")]
    Features {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// Features were to be kept of a tower that is trained, or has adapters.
    #[error("features of images change while the vision tower or its merger is trained")]
    TrainedTower,
    /// An exact weight was asked for where ranks hold it in shards.
    #[error("weight {name}: its exact value lies in shards, one for each rank")]
    Sharded {
        /// The weight.
        name: String,
    },
    /// A prompt without a token.
    #[error("a prompt without tokens cannot be answered")]
    EmptyPrompt,
    /// A token that has no embedding.
    #[error(
        "token id {id}: the model's embedding has {rows} rows\nhint: `tokenizer.json` and the weights are of different models"
    )]
    TokenId {
        /// The token.
        id: u32,
        /// `vocab_size`.
        rows: i64,
    },
    /// A prompt that does not fit the images given with it.
    #[error(
        "prompt has {} image placeholder tokens in runs of {got:?}, its images give {expected:?}",
        got.iter().sum::<usize>()
    )]
    Placeholders {
        /// Placeholder tokens of each run in the prompt.
        got: Vec<usize>,
        /// Merged patches of each image.
        expected: Vec<usize>,
    },
    /// Images preprocessed into other patches than the model takes.
    #[error(
        "image patches of {got} numbers, the model takes {expected}\nhint: `patch_size` and `temporal_patch_size` of `preprocessor_config.json` and `config.json` differ"
    )]
    PatchDim {
        /// Channels x frames x height x width of the model.
        expected: usize,
        /// Numbers per patch of the image.
        got: usize,
    },
    /// A weight file.
    #[error(transparent)]
    Torch(#[from] torch::TorchError),
    /// libtorch.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
}
