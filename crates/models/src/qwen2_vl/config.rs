//! `config.json` of Qwen2-VL.

use std::path::Path;

use serde::Deserialize;
use torch::Activation;

use super::FAMILY;
use crate::ModelError;
use crate::config::{ConfigFile, FEW, MANY, TextConfig, above_zero, equal, rope_word, within};
use crate::decoder_model::{DecoderModel, DecoderSettings};
use crate::family::{Family, FamilyConfig, ScaledSize, VisionShape};
use crate::layers::{DecoderOptions, activation_of};
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

/// Rotary settings of the vision tower.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionRope {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `axial` (by height and width) or `default`.
    pub rope_type: Option<String>,
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
        let given = self.rope_parameters.as_ref().and_then(|r| r.rope_theta);
        given.unwrap_or(10_000.0)
    }

    /// Channels of the MLP.
    pub fn intermediate_size(&self) -> i64 {
        (self.embed_dim as f64 * self.mlp_ratio) as i64
    }

    /// The activation of the MLP; `None` of one that is not built.
    pub fn activation(&self) -> Option<Activation> {
        activation_of(&self.hidden_act)
    }

    /// Sizes.
    pub fn shape(&self) -> VisionShape {
        VisionShape {
            hidden_size: self.embed_dim,
            intermediate_size: self.intermediate_size(),
            is_gated: false,
            blocks: self.depth,
            full_blocks: self.depth,
            window: 0,
            num_deepstack: 0,
            patch_size: self.patch_size,
            patch_dim: self.in_channels as usize
                * self.temporal_patch_size
                * self.patch_size.pow(2),
            merge: self.spatial_merge_size,
        }
    }

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
        let theta = ("vision_config.rope_theta", self.rope_theta());
        above_zero(&[("vision_config.mlp_ratio", self.mlp_ratio), theta])?;
        let many = [
            ("vision_config.embed_dim", self.embed_dim),
            ("vision_config.embed_dim x mlp_ratio", self.intermediate_size()),
        ];
        within(MANY, &many)?;
        let heads = self.embed_dim % (4 * self.num_heads);
        equal("vision `embed_dim` modulo 4 x `num_heads`", heads, 0)?;
        if let Some(in_chans) = self.in_chans {
            equal("`in_chans`", in_chans, self.in_channels)?;
        }
        if self.activation().is_none() {
            let got = &self.hidden_act;
            return Err(format!("`vision_config.hidden_act`: expected `quick_gelu`, got `{got}`"));
        }
        let rope = self.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref());
        rope_word("vision_config.rope_type", rope, "axial")
    }
}

impl Config {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing key, or a value that this implementation does not compute.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::of(&ConfigFile::read(folder)?)
    }

    pub(super) fn of(file: &ConfigFile) -> Result<Self, ModelError> {
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
        equal("`vision_config.hidden_size`", self.vision.hidden_size, self.text.hidden_size)
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
