//! What `tch` lacks, and beside `gpu` the only crate with `unsafe`: safetensors files, CPU kernels, AdamW with bf16 masters and 8-bit moments, CUDA by
//! `dlopen`, CUDA graphs, memory statistics, collectives among ranks.
//!
//! What models are and how they train is left to `models` and `train`.

mod activations;
mod adamw;
mod bf16_master;
mod call;
mod cuda;
mod decoding;
mod device;
mod fast_paths;
mod flash;
mod fused;
mod gradient;
mod host;
mod linear;
mod memory;
mod norms;
mod operations;
mod out_of_memory;
mod proofs;
mod quantized_moments;
mod random;
pub mod ranks;
mod sampling;
mod segment_attention;
mod sequence_decoding;
mod weight_index;
mod weights;
mod write;

pub use activations::{Activation, activate, activate_reference, gated, gated_reference};
pub use adamw::{AdamWOptions, fused_adamw};
pub use bf16_master::{Bf16Master, round_to};
pub use cuda::graphs::{Graph, GraphPool, check_graphs};
#[doc(hidden)]
pub use cuda::stand_in::{DeviceCounts, device_counts};
pub use cuda::{
    Card, card, check_kind, device_of_tests, libtorch_build, libtorch_folder, load_cuda,
    name_of_test_device, num_cards, on_test_device, parse_device,
};
pub use decoding::{DecodeLayer, KvView, decode_attention, decode_layer, decode_layer_reference};
pub use device::rotation_matrices;
pub use fast_paths::{FastPath, is_enabled, set_enabled};
pub use flash::{AttentionOptions, SequenceLens, variable_length_attention};
pub use gradient::take_grad;
pub use host::{PendingHostCopy, begin_copy, host_copy, is_pinned, upload, wait_for};
pub use linear::{
    LinearWeights, PackedCopy, activated_linear, gated_linear, linears, normed_linears,
    residual_activated_linear, residual_gated_linear, residual_linear,
};
pub use memory::{
    LiveBytes, limit_live_bytes, live_bytes, machine_memory_bytes, peak_memory_bytes,
    reset_peak_live_bytes,
};
pub use norms::{AnyNorm, LayerNorm, Norm, layer_norm, normed, rms_norm, rms_norm_reference};
pub use operations::{
    AttentionKernel, DecodeKernel, Pairing, rotate, rotate_reference, token_scores,
    token_scores_reference, token_scores_with_entropy_gradient,
};
pub use out_of_memory::{OutOfMemory, catch_out_of_memory};
pub use proofs::{Proof, ProofShape, prove};
pub use quantized_moments::{BLOCK, Levels, QuantizedMoment};
pub use random::{Distribution, fill_random};
pub use sampling::{
    BOUNDARY, SamplingConstants, TokenFilters, TokenSampling, TokenTable, sample_in_few_launches,
    sample_tokens, sample_tokens_reference,
};
pub use segment_attention::{SegmentLens, SegmentTable, causal_intervals, segment_attention};
pub use sequence_decoding::{KeyRanges, SequenceKv, decode_layer_by_sequences};
pub use weights::{TensorFile, WeightFiles, read_tensors};
pub use write::{Written, write_tensors, write_tensors_as};

use std::path::PathBuf;

use weight_index::first_of;

/// What can go wrong between us, libtorch and weight files.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A safetensors file is not one, or is cut off.
    #[error("{path}: not a readable safetensors file: {cause}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// A folder without weights that are read.
    #[error(
        "{path}: no such file, and no `model.safetensors.index.json` beside it{}\nhint: {}",
        other_weights(others),
        way_to_weights(others)
    )]
    NoWeights {
        /// The file that is looked for first.
        path: PathBuf,
        /// Weights under other names or in other formats.
        others: Vec<String>,
    },
    /// The shard index is broken.
    #[error("{path}: {cause}")]
    Index {
        /// The index file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// A tensor is in no weight file.
    #[error("weight {name}: not in {folder}")]
    Missing {
        /// The tensor.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A type that is neither read nor written.
    #[error("weight {name}: expected f32, f16, bf16, f64, i64 or u8, got {got}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type in the file.
        got: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Libtorch(String),
    /// CUDA graphs that do not work here.
    #[error("CUDA graphs: {0}\nhint: --cuda_graphs false decodes without them")]
    Graphs(String),
    /// An unknown or absent device.
    #[error("device `{got}`: {cause}")]
    Device {
        /// What was asked for.
        got: String,
        /// Why it cannot be.
        cause: String,
    },
}

fn other_weights(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!("; not read: {}", first_of(others)),
    }
}

/// How to get the missing file.
fn way_to_weights(others: &[String]) -> &'static str {
    let has = |what: &str| others.iter().any(|name| name.contains(what));
    match () {
        () if has("pytorch_model") || has(".pth") || has(".pt") => {
            "load the model with transformers and save it with `save_pretrained`, which writes this file"
        }
        () if has(".gguf") => {
            "GGUF is not read; take the weights that it was made of, in safetensors"
        }
        () if has("adapter_model") => {
            "an adapter needs its adapter_config.json, which names the model under it"
        }
        () if has("consolidated") => {
            "weights in their authors' own form are not read; take the folder in the form of transformers"
        }
        () => {
            "load the model with transformers and save it with `save_pretrained`, which writes this file"
        }
    }
}

impl From<tch::TchError> for TorchError {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        // Where in libtorch it was raised tells a user nothing.
        let message = text.split("\nException raised from").next().unwrap_or(&text);
        TorchError::Libtorch(message.to_owned())
    }
}

/// A type as torch calls it: `float`, `bfloat16`, `int64`.
pub fn kind_name(kind: tch::Kind) -> String {
    format!("{kind:?}").to_lowercase()
}
