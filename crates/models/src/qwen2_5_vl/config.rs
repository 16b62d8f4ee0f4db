//! `config.json` of Qwen2.5-VL: the hub's flat form and the nested one of transformers 5.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use torch::{TorchError, WeightFiles};

use super::config_conflicts::{check_quantization, check_weights_key, contradictions, tied};
use crate::ModelError;
use crate::contradictions::stays_tied;
use base::model_folder::read_config;

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

/// Text model, key for key.
#[derive(Clone, Debug, Deserialize)]
pub struct TextConfig {
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Channels of the residual stream.
    pub hidden_size: i64,
    /// Channels of the MLP.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; absent: as many as query heads.
    pub num_key_value_heads: Option<i64>,
    /// Channels a head; absent: `hidden_size / num_attention_heads`.
    pub head_dim: Option<i64>,
    /// Activation of the MLP.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies (flat form).
    pub rope_theta: Option<f64>,
    /// M-RoPE sections (flat form).
    pub rope_scaling: Option<RopeParameters>,
    /// Both (nested form).
    pub rope_parameters: Option<RopeParameters>,
    /// Share of attention weights dropped in training.
    #[serde(default)]
    pub attention_dropout: f64,
    /// Whether layers look at a window only.
    #[serde(default)]
    pub use_sliding_window: bool,
    /// The window, tokens; null: none.
    #[serde(default = "sliding_window")]
    pub sliding_window: Option<i64>,
    /// Layers before those that look at a window only.
    pub max_window_layers: Option<usize>,
    /// What each layer looks at; without it, what the three keys above say.
    pub layer_types: Option<Vec<String>>,
}

/// Rotary settings.
#[derive(Clone, Debug, Deserialize)]
pub struct RopeParameters {
    /// Frequencies that go to time, height and width; they sum to `head_dim / 2`.
    pub mrope_section: Option<Vec<i64>>,
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `mrope` or `default`.
    pub rope_type: Option<String>,
    /// The older name of `rope_type`; some checkpoints hold both.
    #[serde(rename = "type")]
    pub old_rope_type: Option<String>,
}

impl RopeParameters {
    fn is_empty(&self) -> bool {
        self.mrope_section.is_none()
            && self.rope_theta.is_none()
            && self.rope_type.is_none()
            && self.old_rope_type.is_none()
    }
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
fn sliding_window() -> Option<i64> {
    Some(4096)
}
fn full_blocks() -> Vec<usize> {
    vec![7, 15, 23, 31]
}

impl TextConfig {
    /// Channels a head.
    pub fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Key and value heads.
    pub fn num_kv_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Rotary settings: where both forms are there, the older counts, as in transformers.
    fn rope(&self) -> Option<&RopeParameters> {
        let older = self.rope_scaling.as_ref().filter(|rope| !rope.is_empty());
        older.or(self.rope_parameters.as_ref())
    }

    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        let nested = self.rope().and_then(|rope| rope.rope_theta);
        nested.or(self.rope_theta).unwrap_or(1_000_000.0)
    }

    /// M-RoPE sections.
    pub fn mrope_section(&self) -> Vec<i64> {
        let given = self.rope().and_then(|rope| rope.mrope_section.clone());
        given.unwrap_or_else(|| vec![16, 24, 24])
    }
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
        let error = |cause: String| ModelError::Config { path: folder.join("config.json"), cause };
        let value = read_config(folder)?;
        // A flat file may hold a `text_config` without the sizes, which then stand at the top.
        let nested = value.get("text_config").filter(|t| t.get("hidden_size").is_some());
        let (text, place) = nested.map_or((&value, ""), |t| (t, "`text_config`: "));
        let vision =
            value.get("vision_config").ok_or_else(|| error("no object `vision_config`".into()))?;
        check_weights_key(&value).map_err(error)?;
        check_quantization(&value).map_err(error)?;
        let tie_word_embeddings = tied(&value).map_err(error)?;
        let config = Config {
            text: TextConfig::deserialize(text).map_err(|e| error(format!("{place}{e}")))?,
            vision: VisionConfig::deserialize(vision)
                .map_err(|e| error(format!("`vision_config`: {e}")))?,
            image_token_id: image_token_id(&value)
                .ok_or_else(|| error("no number `image_token_id`".into()))?,
            tie_word_embeddings,
        };
        config.check().map_err(error)?;
        for said in contradictions(&value) {
            base::console::say_once(&format!(
                "warning: {}: {said}",
                folder.join("config.json").display()
            ));
        }
        Ok(config)
    }

    /// As [`Config::read`], with what the weights of the folder say against it; where they are not there, without.
    ///
    /// # Errors
    /// As [`Config::read`], and weight files that cannot be read.
    pub fn read_with_weights(folder: &Path) -> Result<Self, ModelError> {
        let mut config = Self::read(folder)?;
        match WeightFiles::open(folder) {
            Ok(files) if config.tie_word_embeddings => {
                config.tie_word_embeddings = stays_tied(&files, folder)?;
            }
            Ok(_) => {}
            Err(TorchError::NoWeights { .. }) => {}
            Err(TorchError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
        self.check_relations()?;
        self.check_kinds()
    }

    /// Sizes from 1 to limits far above any model: beyond, products overflow and memory runs out.
    fn check_sizes(&self) -> Result<(), String> {
        let (text, vision) = (&self.text, &self.vision);
        let within = |limit: i64, list: &[(&str, i64)]| {
            let wrong = list.iter().find(|(_, got)| !(1..=limit).contains(got));
            wrong.map_or(Ok(()), |(what, got)| {
                Err(format!("`{what}`: expected 1 to {limit}, got {got}"))
            })
        };
        let few = [
            ("num_hidden_layers", text.num_hidden_layers as i64),
            ("num_attention_heads", text.num_attention_heads),
            ("num_key_value_heads", text.num_kv_heads()),
            ("vision_config.depth", vision.depth as i64),
            ("vision_config.num_heads", vision.num_heads),
            ("vision_config.in_channels", vision.in_channels),
            ("vision_config.patch_size", vision.patch_size as i64),
            ("vision_config.spatial_merge_size", vision.spatial_merge_size as i64),
            ("vision_config.temporal_patch_size", vision.temporal_patch_size as i64),
        ];
        within(1 << 10, &few)?;
        let many = [
            ("vocab_size", text.vocab_size),
            ("hidden_size", text.hidden_size),
            ("intermediate_size", text.intermediate_size),
            ("head_dim", text.head_dim()),
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.intermediate_size", vision.intermediate_size),
            ("vision_config.window_size", vision.window_size as i64),
        ];
        within(1 << 24, &many)?;
        for (what, got) in [
            ("rope_theta", text.rope_theta()),
            ("rms_norm_eps", text.rms_norm_eps),
            ("vision_config.rope_theta", vision.rope_theta()),
        ] {
            if !(got > 0.0 && got.is_finite()) {
                return Err(format!("`{what}`: expected a number above 0, got {got}"));
            }
        }
        Ok(())
    }

    fn check_relations(&self) -> Result<(), String> {
        let (text, vision) = (&self.text, &self.vision);
        let equal = |what: &str, got: i64, expected: i64| {
            if got == expected {
                Ok(())
            } else {
                Err(format!("{what}: expected {expected}, got {got}"))
            }
        };
        let sections = text.mrope_section();
        equal("length of `mrope_section`", sections.len() as i64, 3)?;
        if sections.iter().any(|&s| !(0..=text.head_dim()).contains(&s)) {
            return Err(format!(
                "`mrope_section`: expected sections of 0 to {}, got {sections:?}",
                text.head_dim()
            ));
        }
        equal("sum of `mrope_section`", sections.iter().sum(), text.head_dim() / 2)?;
        equal("`head_dim` modulo 2", text.head_dim() % 2, 0)?;
        equal("`out_hidden_size`", vision.out_hidden_size, text.hidden_size)?;
        equal(
            "`num_attention_heads` modulo `num_key_value_heads`",
            text.num_attention_heads % text.num_kv_heads(),
            0,
        )?;
        equal(
            "vision `hidden_size` modulo 4 x `num_heads`",
            vision.hidden_size % (4 * vision.num_heads),
            0,
        )?;
        let unit = vision.patch_size * vision.spatial_merge_size;
        equal("`window_size` modulo merged patch", (vision.window_size % unit) as i64, 0)?;
        if let Some(in_chans) = vision.in_chans {
            equal("`in_chans`", in_chans, vision.in_channels)?;
        }
        if i64::from(self.image_token_id) >= text.vocab_size {
            return Err(format!(
                "`image_token_id`: expected below `vocab_size` {}, got {}",
                text.vocab_size, self.image_token_id
            ));
        }
        Ok(())
    }

    /// Words that ask for what is computed here, and no others.
    fn check_kinds(&self) -> Result<(), String> {
        let (text, vision) = (&self.text, &self.vision);
        for (what, act) in
            [("hidden_act", &text.hidden_act), ("vision_config.hidden_act", &vision.hidden_act)]
        {
            if act != "silu" {
                return Err(format!("`{what}`: expected `silu`, got `{act}`"));
            }
        }
        check_windows(text)?;
        if text.attention_dropout != 0.0 {
            return Err(format!("`attention_dropout`: expected 0, got {}", text.attention_dropout));
        }
        let mut rope = Vec::new();
        for parameters in [&text.rope_parameters, &text.rope_scaling].into_iter().flatten() {
            rope.push(("rope_type", &parameters.rope_type, "mrope"));
            rope.push(("type", &parameters.old_rope_type, "mrope"));
        }
        if let Some(parameters) = &vision.rope_parameters {
            rope.push(("vision_config.rope_type", &parameters.rope_type, "axial"));
        }
        for (what, got, own) in rope {
            match got.as_deref() {
                Some(got) if got != own && got != "default" => {
                    return Err(format!("`{what}`: expected `{own}` or `default`, got `{got}`"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Refuses layers that look at a window only; which those are is said by a list, or by three keys.
fn check_windows(text: &TextConfig) -> Result<(), String> {
    const FULL: &str = "full_attention";
    let Some(types) = &text.layer_types else {
        // The defaults are those of `Qwen2_5_VLTextConfig` in transformers 5.17.
        let first = text.max_window_layers.unwrap_or(80);
        let has_window = text.use_sliding_window && text.sliding_window.is_some();
        return match has_window && first < text.num_hidden_layers {
            true => Err(format!(
                "`use_sliding_window`: expected false, or `max_window_layers` of {}, got true and {first}: layers that look at a window only are not built",
                text.num_hidden_layers
            )),
            false => Ok(()),
        };
    };
    if types.len() != text.num_hidden_layers {
        return Err(format!(
            "`layer_types`: expected one for each of {} layers, got {}",
            text.num_hidden_layers,
            types.len()
        ));
    }
    match types.iter().enumerate().find(|(_, kind)| *kind != FULL) {
        Some((layer, kind)) => {
            Err(format!("`layer_types`: layer {layer}: expected `{FULL}`, got `{kind}`"))
        }
        None => Ok(()),
    }
}

fn image_token_id(value: &Value) -> Option<u32> {
    value.get("image_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
}
