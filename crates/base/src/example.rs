//! What becomes of a row: example, prompt, completions, rewards, advantages.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where a row stands in the user's data, for messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// The file as the user wrote it.
    pub file: PathBuf,
    /// Line number, from 1.
    pub line: usize,
    /// Number of the item, from 1, where the file is one list: several may stand in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<usize>,
}

impl SourceLine {
    /// A row that has a line to itself.
    pub fn new(file: impl Into<PathBuf>, line: usize) -> Self {
        Self { file: file.into(), line, item: None }
    }
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        self.item.map_or(Ok(()), |item| write!(f, " (item {item})"))
    }
}

/// A checked row of a training file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Example {
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

/// How an image is cut for the vision tower, and which tokens stand for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayout {
    /// Patches in time, height and width of each tile. Families that do not cut images into tiles have one, the `image_grid_thw` of
    /// transformers.
    pub tiles: Vec<[usize; 3]>,
    /// Placeholder tokens of each run in the prompt, in order.
    pub runs: Vec<usize>,
}

impl ImageLayout {
    /// One tile of which each `merge` x `merge` patches become one token, in one run.
    pub fn merged(grid_thw: [usize; 3], merge: usize) -> Self {
        let tokens = grid_thw.iter().product::<usize>() / merge.pow(2);
        ImageLayout { tiles: vec![grid_thw], runs: vec![tokens] }
    }

    /// Patches of all tiles.
    pub fn num_patches(&self) -> usize {
        self.tiles.iter().map(|tile| tile.iter().product::<usize>()).sum()
    }

    /// Placeholder tokens of all runs.
    pub fn num_tokens(&self) -> usize {
        self.runs.iter().sum()
    }
}

/// An image as the vision tower takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedImage {
    /// `[patches, channels * temporal_patch_size * patch_size * patch_size]`, row-major, tile after tile.
    pub pixel_values: Vec<f32>,
    /// How it was cut, and which tokens stand for it.
    pub layout: ImageLayout,
    /// Width and height of the file, px.
    pub original_size: [u32; 2],
    /// Width and height that the model sees, px.
    pub input_size: [u32; 2],
    digest: Memo,
}

/// A cached digest. Ignored by `==`; not copied by `clone`, because the pixels of the clone may be
/// edited.
#[derive(Debug, Default)]
struct Memo(OnceLock<[u8; 32]>);

impl Clone for Memo {
    fn clone(&self) -> Self {
        Memo::default()
    }
}

impl PartialEq for Memo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PreparedImage {
    /// An image from its patches, their layout, and its sizes in the file and before the model.
    pub fn new(
        pixel_values: Vec<f32>,
        layout: ImageLayout,
        original_size: [u32; 2],
        input_size: [u32; 2],
    ) -> Self {
        PreparedImage { pixel_values, layout, original_size, input_size, digest: Memo::default() }
    }

    /// SHA-256 of all that the vision tower sees: tiles, runs and patches. Computed once.
    pub fn digest(&self) -> [u8; 32] {
        *self.digest.0.get_or_init(|| {
            let mut hash = Sha256::new();
            let ImageLayout { tiles, runs } = &self.layout;
            // Lengths separate tiles from runs.
            let sizes = [tiles.len(), runs.len()].into_iter();
            for size in sizes.chain(tiles.iter().flatten().copied()).chain(runs.iter().copied()) {
                hash.update((size as u64).to_le_bytes());
            }
            let mut bytes = Vec::with_capacity(4 * DIGEST_BLOCK);
            for block in self.pixel_values.chunks(DIGEST_BLOCK) {
                bytes.clear();
                bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
                hash.update(&bytes);
            }
            hash.finalize().into()
        })
    }
}

/// Floats that are hashed at a time.
const DIGEST_BLOCK: usize = 4096;

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
    /// The text came to hold a stop string, which the last id completes.
    StopString,
    /// The token limit was reached first.
    Length,
}

/// One sampled completion.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Sampled ids, the end-of-sequence token included when one was sampled.
    pub ids: Vec<u32>,
    /// Log-softmax(logits / temperature) of each id, before filters and masks.
    pub sampled_logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The completions of one prompt with their rewards and advantages.
#[derive(Clone, Debug)]
pub struct RolloutGroup {
    /// Index of the example in the dataset.
    pub example_index: usize,
    /// The prompt of all of them.
    pub prompt: Prompt,
    /// `G` completions.
    pub completions: Vec<Completion>,
    /// `G` weighted sums of rewards.
    pub rewards: Vec<f64>,
    /// `G` advantages.
    pub advantages: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pixel_values: Vec<f32>, grid_thw: [usize; 3]) -> PreparedImage {
        PreparedImage::new(pixel_values, ImageLayout::merged(grid_thw, 1), [4, 4], [4, 4])
    }

    #[test]
    fn the_digest_is_that_of_the_layout_and_the_pixels() {
        // More than a block, and not a whole number of them.
        let pixels: Vec<f32> = (0..2 * DIGEST_BLOCK + 3).map(|i| i as f32 * 0.5).collect();
        // One tile, one run; the tile's patches, the run's tokens.
        let mut bytes: Vec<u8> =
            [1u64, 1, 1, 2, 6, 12].iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(pixels.iter().flat_map(|p| p.to_le_bytes()));
        let expected: [u8; 32] = Sha256::digest(&bytes).into();
        let first = image(pixels.clone(), [1, 2, 6]);
        assert_eq!(first.digest(), expected);
        assert_eq!(first.digest(), expected);
        assert_ne!(image(pixels.clone(), [1, 6, 2]).digest(), expected);
        let mut other = pixels;
        other[2 * DIGEST_BLOCK + 2] += 1.0;
        assert_ne!(image(other, [1, 2, 6]).digest(), expected);
    }

    #[test]
    fn a_changed_copy_has_a_digest_of_its_own() {
        let first = image(vec![1.0, 2.0], [1, 1, 1]);
        let before = first.digest();
        let mut copy = first.clone();
        assert_eq!(copy, first);
        copy.pixel_values[1] = 3.0;
        assert_ne!(copy.digest(), before);
        assert_ne!(copy, first);
    }
}
