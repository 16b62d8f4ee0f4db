//! `config.json` of Qwen3-VL.

use serde::Deserialize;
use torch::Activation;

use super::FAMILY;
use super::vision::Tower;
use crate::ModelError;
use crate::config::{TextConfig, VisionRope, VisionSizes, equal, vision_theta, within, MANY};
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
    pub hidden_size: i64,
    /// Channels of the MLP.
    pub intermediate_size: i64,
    /// Channels that the text model takes.
    pub out_hidden_size: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Activation of the MLP.
    pub hidden_act: String,
    /// Colour channels.
    pub in_channels: i64,
    /// Side of a patch, px.
    pub patch_size: usize,
    /// Patches along a side that merge into one token.
    pub spatial_merge_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Rows of the table of positions, a square.
    pub num_position_embeddings: usize,
    /// Blocks whose outputs are added after the first text layers, in that order.
    pub deepstack_visual_indexes: Vec<usize>,
    /// Rotary settings (nested form).
    pub rope_parameters: Option<VisionRope>,
}

impl Default for VisionConfig {
    /// As the class has them.
    fn default() -> Self {
        VisionConfig {
            depth: 27,
            hidden_size: 1152,
            intermediate_size: 4304,
            out_hidden_size: 3584,
            num_heads: 16,
            hidden_act: "gelu_pytorch_tanh".into(),
            in_channels: 3,
            patch_size: 16,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            num_position_embeddings: 2304,
            deepstack_visual_indexes: vec![8, 16, 24],
            rope_parameters: None,
        }
    }
}

impl VisionConfig {
    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        vision_theta(self.rope_parameters.as_ref())
    }

    /// Rows and columns of the table of positions.
    pub fn position_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
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
            in_chans: None,
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
        text.default_sections = vec![24, 20, 20];
        text.rope_theta = text.rope_theta.or(Some(500_000.0));
        text.head_dim = text.head_dim.or(Some(128));
    }

    fn decoder(text: &TextConfig) -> DecoderOptions {
        let bias = text.attention_bias.unwrap_or(false);
        DecoderOptions { qkv_bias: bias, o_bias: bias, head_norms: true, interleaved_mrope: true }
    }

    fn shape(&self) -> VisionShape {
        VisionShape {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            is_gated: false,
            blocks: self.depth,
            full_blocks: self.depth,
            window: 0,
            num_deepstack: self.deepstack_visual_indexes.len(),
            patch_size: self.patch_size,
            patch_dim: self.sizes().patch_dim(),
            merge: self.spatial_merge_size,
        }
    }

    fn check(&self, text: &TextConfig) -> Result<(), String> {
        self.sizes().check()?;
        let rows = self.num_position_embeddings as i64;
        within(MANY, &[("vision_config.num_position_embeddings", rows)])?;
        let square = self.position_side().pow(2) as i64;
        equal("`num_position_embeddings`, a square", rows, square)?;
        let levels = &self.deepstack_visual_indexes;
        let is_rising = levels.windows(2).all(|pair| pair[0] < pair[1]);
        let layers = text.num_hidden_layers;
        if !is_rising || levels.iter().any(|&block| block >= self.depth) || levels.len() > layers {
            return Err(format!(
                "`deepstack_visual_indexes`: expected rising numbers below `depth` {}, not more than the {layers} text layers, got {levels:?}",
                self.depth
            ));
        }
        if self.activation().is_none() {
            let got = &self.hidden_act;
            let expected = "expected `gelu_pytorch_tanh`";
            return Err(format!("`vision_config.hidden_act`: {expected}, got `{got}`"));
        }
        equal("`out_hidden_size`", self.out_hidden_size, text.hidden_size)
    }

    fn scale(&mut self, size: &ScaledSize) {
        self.depth = size.vision_blocks;
        let levels = self.deepstack_visual_indexes.len();
        self.deepstack_visual_indexes = (0..levels.min(self.depth).min(size.layers)).collect();
    }

    fn load(&self, builder: &mut Builder<'_>) -> Result<Tower, ModelError> {
        Tower::load(builder, self)
    }
}
