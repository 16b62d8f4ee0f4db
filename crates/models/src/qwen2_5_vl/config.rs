//! `config.json` of Qwen2.5-VL.

use std::path::Path;

use serde::Deserialize;

use super::FAMILY;
use crate::ModelError;
use crate::config::{ConfigFile, FEW, MANY, TextConfig, above_zero, equal, rope_word, within, word};
use crate::decoder_model::{DecoderModel, DecoderSettings};
use crate::family::{Family, FamilyConfig, ScaledSize, VisionShape};
use crate::layers::DecoderOptions;
use crate::model::{TextShape, VisionLanguageModel};
use crate::parameters::Builder;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Text model.
    pub text: TextConfig,
    /// Vision tower.
    pub vision: VisionConfig,
    /// Placeholder token of one merged image patch.
    pub image_token_id: u32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

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

/// Rotary settings of the vision tower.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionRope {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `axial` (by height and width) or `default`.
    pub rope_type: Option<String>,
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
        let given = self.rope_parameters.as_ref().and_then(|r| r.rope_theta);
        given.unwrap_or(10_000.0)
    }

    /// Numbers of a patch.
    pub fn patch_dim(&self) -> usize {
        self.in_channels as usize * self.temporal_patch_size * self.patch_size.pow(2)
    }
}

impl Config {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing key, or a value that this implementation does not compute.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::read(folder)?;
        let mut text: TextConfig = file.text()?;
        text.default_sections = vec![16, 24, 24];
        let config = Config {
            text,
            vision: file.vision()?,
            image_token_id: file.image_token_id,
            tie_word_embeddings: file.is_tied,
        };
        file.finish(config.check())?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        self.text.check(self.image_token_id)?;
        self.vision.check()?;
        equal("`out_hidden_size`", self.vision.out_hidden_size, self.text.hidden_size)
    }
}

impl VisionConfig {
    fn check(&self) -> Result<(), String> {
        let few = [
            ("vision_config.depth", self.depth as i64),
            ("vision_config.num_heads", self.num_heads),
            ("vision_config.in_channels", self.in_channels),
            ("vision_config.patch_size", self.patch_size as i64),
            ("vision_config.spatial_merge_size", self.spatial_merge_size as i64),
            ("vision_config.temporal_patch_size", self.temporal_patch_size as i64),
        ];
        within(FEW, &few)?;
        let many = [
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.intermediate_size", self.intermediate_size),
            ("vision_config.window_size", self.window_size as i64),
        ];
        within(MANY, &many)?;
        above_zero(&[("vision_config.rope_theta", self.rope_theta())])?;
        let heads = self.hidden_size % (4 * self.num_heads);
        equal("vision `hidden_size` modulo 4 x `num_heads`", heads, 0)?;
        let unit = self.patch_size * self.spatial_merge_size;
        equal("`window_size` modulo merged patch", (self.window_size % unit) as i64, 0)?;
        if let Some(in_chans) = self.in_chans {
            equal("`in_chans`", in_chans, self.in_channels)?;
        }
        word("vision_config.hidden_act", &self.hidden_act, "silu")?;
        let rope = self.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref());
        rope_word("vision_config.rope_type", rope, "axial")
    }

    /// Sizes.
    pub fn shape(&self) -> VisionShape {
        VisionShape {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            is_gated: true,
            blocks: self.depth,
            full_blocks: self.fullatt_block_indexes.len(),
            window: (self.window_size / self.patch_size).pow(2),
            num_deepstack: 0,
            patch_size: self.patch_size,
            patch_dim: self.patch_dim(),
            merge: self.spatial_merge_size,
        }
    }
}

impl FamilyConfig for Config {
    fn family(&self) -> &'static Family {
        &FAMILY
    }

    fn text_shape(&self) -> TextShape {
        self.text.shape()
    }

    fn vision_shape(&self) -> VisionShape {
        self.vision.shape()
    }

    fn is_tied(&self) -> bool {
        self.tie_word_embeddings
    }

    fn untie(&mut self) {
        self.tie_word_embeddings = false;
    }

    fn scaled(&self, size: &ScaledSize) -> Box<dyn FamilyConfig> {
        let mut config = self.clone();
        config.image_token_id = config.text.scale(size, config.image_token_id);
        config.vision.depth = size.vision_blocks;
        Box::new(config)
    }

    fn build(&self, builder: Builder<'_>) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
        let settings = DecoderSettings {
            family: &FAMILY,
            text: &self.text,
            options: DecoderOptions { qkv_bias: true, o_bias: false, head_norms: false },
            interleaved: false,
            is_tied: self.tie_word_embeddings,
            image_token_id: self.image_token_id,
        };
        DecoderModel::build(builder, settings, |b| super::vision::Tower::load(b, &self.vision))
    }
}
