//! `config.json` of Qwen2.5-VL.

use serde::Deserialize;

use super::FAMILY;
use super::vision::Tower;
use crate::ModelError;
use crate::config::{TextConfig, VisionRope, VisionSizes, equal, vision_theta, within, word, MANY};
use crate::decoder_model::{DecoderConfig, VisionSettings};
use crate::family::{Family, ScaledSize, VisionShape};
use crate::layers::DecoderOptions;
use crate::parameters::Builder;

/// The whole configuration.
pub type Config = DecoderConfig<VisionConfig>;

/// Vision tower, key for key.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Channels.
    pub hidden_size: i64,
    /// Channels of the MLP.
    pub intermediate_size: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Activation of the MLP.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Colour channels.
    #[serde(default = "three")]
    pub in_channels: i64,
    /// The hub's name of `in_channels`; some checkpoints hold both.
    pub in_chans: Option<i64>,
    /// Side of a patch, px.
    #[serde(default = "fourteen")]
    pub patch_size: usize,
    /// Patches along a side that merge into one token.
    #[serde(default = "two")]
    pub spatial_merge_size: usize,
    /// Frames of a patch.
    #[serde(default = "two")]
    pub temporal_patch_size: usize,
    /// Side of an attention window, px.
    #[serde(default = "window")]
    pub window_size: usize,
    /// Channels that the text model takes.
    pub out_hidden_size: i64,
    /// Blocks that see the whole image.
    #[serde(default = "full_blocks")]
    pub fullatt_block_indexes: Vec<usize>,
    /// Base of the rotary frequencies (nested form).
    pub rope_parameters: Option<VisionRope>,
}

fn silu() -> String {
    "silu".into()
}
fn two() -> usize {
    2
}
fn three() -> i64 {
    3
}
fn fourteen() -> usize {
    14
}
fn window() -> usize {
    112
}
fn full_blocks() -> Vec<usize> {
    vec![7, 15, 23, 31]
}

impl VisionConfig {
    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        vision_theta(self.rope_parameters.as_ref())
    }

    fn sizes(&self) -> VisionSizes<'_> {
        VisionSizes {
            depth: self.depth,
            num_heads: self.num_heads,
            in_channels: self.in_channels,
            in_chans: self.in_chans,
            patch_size: self.patch_size,
            merge_size: self.spatial_merge_size,
            temporal_patch_size: self.temporal_patch_size,
            width: ("hidden_size", self.hidden_size),
            intermediate_size: self.intermediate_size,
            rope: self.rope_parameters.as_ref(),
        }
    }
}

impl VisionSettings for VisionConfig {
    type Tower = Tower;
    const FAMILY: &'static Family = &FAMILY;

    fn complete(text: &mut TextConfig) {
        text.default_sections = vec![16, 24, 24];
    }

    fn decoder(_: &TextConfig) -> DecoderOptions {
        DecoderOptions { qkv_bias: true, o_bias: false, head_norms: false, interleaved_mrope: false }
    }

    fn shape(&self) -> VisionShape {
        VisionShape {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            is_gated: true,
            blocks: self.depth,
            full_blocks: self.fullatt_block_indexes.len(),
            window: (self.window_size / self.patch_size).pow(2),
            num_deepstack: 0,
            patch_size: self.patch_size,
            patch_dim: self.sizes().patch_dim(),
            merge: self.spatial_merge_size,
        }
    }

    fn check(&self, text: &TextConfig) -> Result<(), String> {
        self.sizes().check()?;
        within(MANY, &[("vision_config.window_size", self.window_size as i64)])?;
        let unit = self.patch_size * self.spatial_merge_size;
        equal("`window_size` modulo merged patch", (self.window_size % unit) as i64, 0)?;
        word("vision_config.hidden_act", &self.hidden_act, "silu")?;
        equal("`out_hidden_size`", self.out_hidden_size, text.hidden_size)
    }

    fn scale(&mut self, size: &ScaledSize) {
        self.depth = size.vision_blocks;
    }

    fn load(&self, builder: &mut Builder<'_>) -> Result<Tower, ModelError> {
        Tower::load(builder, self)
    }
}
