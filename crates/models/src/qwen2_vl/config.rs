//! `config.json` of Qwen2-VL.

use serde::Deserialize;
use torch::Activation;

use super::FAMILY;
use super::vision::Tower;
use crate::ModelError;
use crate::config::{TextConfig, VisionRope, VisionSizes, above_zero, equal, vision_theta};
use crate::decoder_model::{DecoderConfig, VisionSettings};
use crate::family::{Family, ScaledSize, VisionShape};
use crate::layers::{DecoderOptions, activation_of};
use crate::parameters::Builder;

/// The whole configuration.
pub type Config = DecoderConfig<VisionConfig>;

/// Vision tower, key for key.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Channels.
    pub embed_dim: i64,
    /// Channels that the text model takes.
    pub hidden_size: i64,
    /// Channels of the MLP, as a multiple of `embed_dim`.
    pub mlp_ratio: f64,
    /// Attention heads.
    pub num_heads: i64,
    /// Activation of the MLP.
    pub hidden_act: String,
    /// Colour channels.
    pub in_channels: i64,
    /// The hub's name of `in_channels`; some checkpoints hold both.
    pub in_chans: Option<i64>,
    /// Side of a patch, px.
    pub patch_size: usize,
    /// Patches along a side that merge into one token.
    pub spatial_merge_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Rotary settings (nested form).
    pub rope_parameters: Option<VisionRope>,
}

impl Default for VisionConfig {
    /// As the class has them.
    fn default() -> Self {
        VisionConfig {
            depth: 32,
            embed_dim: 1280,
            hidden_size: 3584,
            mlp_ratio: 4.0,
            num_heads: 16,
            hidden_act: "quick_gelu".into(),
            in_channels: 3,
            in_chans: None,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            rope_parameters: None,
        }
    }
}

impl VisionConfig {
    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        vision_theta(self.rope_parameters.as_ref())
    }

    /// Channels of the MLP.
    pub fn intermediate_size(&self) -> i64 {
        (self.embed_dim as f64 * self.mlp_ratio) as i64
    }

    /// The activation of the MLP; `None` of one that is not built.
    pub fn activation(&self) -> Option<Activation> {
        activation_of(&self.hidden_act)
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
            width: ("embed_dim", self.embed_dim),
            intermediate_size: self.intermediate_size(),
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
            hidden_size: self.embed_dim,
            intermediate_size: self.intermediate_size(),
            is_gated: false,
            blocks: self.depth,
            full_blocks: self.depth,
            window: 0,
            num_deepstack: 0,
            patch_size: self.patch_size,
            patch_dim: self.sizes().patch_dim(),
            merge: self.spatial_merge_size,
        }
    }

    fn check(&self, text: &TextConfig) -> Result<(), String> {
        above_zero(&[("vision_config.mlp_ratio", self.mlp_ratio)])?;
        self.sizes().check()?;
        if self.activation().is_none() {
            let got = &self.hidden_act;
            return Err(format!("`vision_config.hidden_act`: expected `quick_gelu`, got `{got}`"));
        }
        equal("`vision_config.hidden_size`", self.hidden_size, text.hidden_size)
    }

    fn scale(&mut self, size: &ScaledSize) {
        self.depth = size.vision_blocks;
    }

    fn load(&self, builder: &mut Builder<'_>) -> Result<Tower, ModelError> {
        Tower::load(builder, self)
    }
}
