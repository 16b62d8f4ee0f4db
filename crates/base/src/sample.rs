//! One sample on its way: row, prompt, completions, rewards, advantages.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where a row stands in the user's data, for messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// The file as the user wrote it.
    pub file: PathBuf,
    /// Line number, from 1.
    pub line: usize,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A checked row of a training file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Where the row came from.
    pub source: SourceLine,
    /// Resolved image paths, in the order of the row.
    pub images: Vec<PathBuf>,
    /// The question, without `<image>` marks.
    pub problem: String,
    /// The true answer as `<answer> ... </answer>`, the form that rewards read.
    pub solution: String,
    /// The true answer as the row has it, without answer tags: what SFT teaches.
    pub answer: String,
    /// Accuracy method of this row (`accu_reward_method`, else the file's).
    pub accu_reward_method: Option<String>,
    /// The whole row as it came, for user rewards.
    pub columns: serde_json::Map<String, serde_json::Value>,
}

/// An image as the vision tower takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedImage {
    /// `[patches, channels * temporal_patch_size * patch_size * patch_size]`, row-major.
    pub pixel_values: Vec<f32>,
    /// Patches in time, height, width: `image_grid_thw` of transformers.
    pub grid_thw: [usize; 3],
    /// Width and height of the file, px.
    pub original_size: [u32; 2],
    /// Width and height that the model sees, px.
    pub input_size: [u32; 2],
}

/// A prompt as the model takes it: ids with image placeholders already expanded.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Token ids, image placeholders repeated once per merged patch.
    pub ids: Vec<u32>,
    /// The images of the placeholders, in order. Equal images may share one `Arc`.
    pub images: Vec<Arc<PreparedImage>>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token was sampled (and is the last id).
    Stop,
    /// The token limit was reached first.
    Length,
}

/// One sampled answer.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Sampled ids, the end-of-sequence token included when one was sampled.
    pub ids: Vec<u32>,
    /// Log-softmax(logits / temperature) of each id, before filters and masks.
    pub sampled_logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The completions of one prompt, with what the rules said of them.
#[derive(Clone, Debug)]
pub struct RolloutGroup {
    /// Index of the sample in the dataset.
    pub sample_index: usize,
    /// What the model was asked.
    pub prompt: Prompt,
    /// `G` answers.
    pub completions: Vec<Completion>,
    /// `G` weighted sums of rewards.
    pub rewards: Vec<f64>,
    /// `G` advantages.
    pub advantages: Vec<f64>,
}
