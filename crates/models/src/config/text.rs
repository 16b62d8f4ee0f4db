//! Settings of a decoder with M-RoPE, key for key.

use serde::Deserialize;

use super::{FEW, MANY, above_zero, equal, within, word};
use crate::family::ScaledSize;
use crate::model::{AttentionShape, LayerKind, TextShape};

/// Settings of a text model. What a family's class has as a default is filled in by the family.
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
    /// Whether queries, keys and values have biases, where the family leaves that open.
    pub attention_bias: Option<bool>,
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
    /// M-RoPE sections where none are given.
    #[serde(skip)]
    pub default_sections: Vec<i64>,
}

/// Rotary settings.
#[derive(Clone, Debug, Deserialize)]
pub struct RopeParameters {
    /// Frequencies that go to time, height and width; they sum to `head_dim / 2`.
    pub mrope_section: Option<Vec<i64>>,
    /// Whether frequencies of the three alternate instead of lying in sections.
    pub mrope_interleaved: Option<bool>,
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
            && self.mrope_interleaved.is_none()
            && self.rope_theta.is_none()
            && self.rope_type.is_none()
            && self.old_rope_type.is_none()
    }
}

fn silu() -> String {
    "silu".into()
}

fn sliding_window() -> Option<i64> {
    Some(4096)
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
        given.unwrap_or_else(|| self.default_sections.clone())
    }

    /// Whether frequencies of time, height and width are said to alternate.
    pub fn mrope_interleaved(&self) -> Option<bool> {
        self.rope().and_then(|rope| rope.mrope_interleaved)
    }

    /// Sizes for caches and samplers.
    pub fn shape(&self) -> TextShape {
        let attention = AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_kv_heads(),
            head_dim: self.head_dim(),
            window: None,
            keys_of: None,
        };
        TextShape {
            layers: vec![LayerKind::Attention(attention); self.num_hidden_layers],
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            vocab_size: self.vocab_size,
        }
    }

    /// Cuts the model to a size; returns the image's placeholder in the smaller vocabulary.
    pub(crate) fn scale(&mut self, size: &ScaledSize, image_token_id: u32) -> u32 {
        self.num_hidden_layers = size.layers;
        self.layer_types = None;
        self.use_sliding_window = false;
        self.vocab_size = size.vocab_size;
        image_token_id.min(size.vocab_size as u32 - 1)
    }

    /// Refuses settings that no model has, or that are not computed here.
    pub(crate) fn check(&self, image_token_id: u32) -> Result<(), String> {
        let few = [
            ("num_hidden_layers", self.num_hidden_layers as i64),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_kv_heads()),
        ];
        within(FEW, &few)?;
        let many = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("head_dim", self.head_dim()),
        ];
        within(MANY, &many)?;
        above_zero(&[("rope_theta", self.rope_theta()), ("rms_norm_eps", self.rms_norm_eps)])?;
        self.check_relations(image_token_id)?;
        word("hidden_act", &self.hidden_act, "silu")?;
        self.check_windows()?;
        if self.attention_dropout != 0.0 {
            return Err(format!("`attention_dropout`: expected 0, got {}", self.attention_dropout));
        }
        for rope in [&self.rope_parameters, &self.rope_scaling].into_iter().flatten() {
            rope_word("rope_type", rope.rope_type.as_deref(), "mrope")?;
            rope_word("type", rope.old_rope_type.as_deref(), "mrope")?;
        }
        Ok(())
    }

    fn check_relations(&self, image_token_id: u32) -> Result<(), String> {
        let sections = self.mrope_section();
        equal("length of `mrope_section`", sections.len() as i64, 3)?;
        if sections.iter().any(|&s| !(0..=self.head_dim()).contains(&s)) {
            return Err(format!(
                "`mrope_section`: expected sections of 0 to {}, got {sections:?}",
                self.head_dim()
            ));
        }
        equal("sum of `mrope_section`", sections.iter().sum(), self.head_dim() / 2)?;
        equal("`head_dim` modulo 2", self.head_dim() % 2, 0)?;
        let groups = self.num_attention_heads % self.num_kv_heads();
        equal("`num_attention_heads` modulo `num_key_value_heads`", groups, 0)?;
        if i64::from(image_token_id) >= self.vocab_size {
            return Err(format!(
                "`image_token_id`: expected below `vocab_size` {}, got {image_token_id}",
                self.vocab_size
            ));
        }
        Ok(())
    }

    /// Refuses layers that look at a window only; which those are is said by a list, or by three keys.
    fn check_windows(&self) -> Result<(), String> {
        const FULL: &str = "full_attention";
        let Some(types) = &self.layer_types else {
            // The defaults are those of `Qwen2_5_VLTextConfig` in transformers 5.17.
            let first = self.max_window_layers.unwrap_or(80);
            let has_window = self.use_sliding_window && self.sliding_window.is_some();
            return match has_window && first < self.num_hidden_layers {
                true => Err(format!(
                    "`use_sliding_window`: expected false, or `max_window_layers` of {}, got true and {first}: layers that look at a window only are not built",
                    self.num_hidden_layers
                )),
                false => Ok(()),
            };
        };
        if types.len() != self.num_hidden_layers {
            return Err(format!(
                "`layer_types`: expected one for each of {} layers, got {}",
                self.num_hidden_layers,
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
}

/// Refuses a kind of rotary embedding other than `own` and `default`.
pub(super) fn rope_word(what: &str, got: Option<&str>, own: &str) -> Result<(), String> {
    match got {
        Some(got) if got != own && got != "default" => {
            Err(format!("`{what}`: expected `{own}` or `default`, got `{got}`"))
        }
        _ => Ok(()),
    }
}
