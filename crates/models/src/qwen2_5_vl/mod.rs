//! Qwen2.5-VL.
//!
//! Source: huggingface/transformers v5.17, `src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py`,
//! class `Qwen2_5_VLForConditionalGeneration`.
//!
//! | part | the hub's names | transformers 5's names |
//! |---|---|---|
//! | text | `model.embed_tokens`, `model.layers.*`, `model.norm` | `model.language_model.*` |
//! | vision | `visual.*` | `model.visual.*` |
//! | head | `lm_head.weight`, absent or equal to the embedding when tied | the same |

mod config;
mod config_conflicts;
mod rope;
mod text;
mod vision;

use std::path::Path;
use std::rc::Rc;

use base::ImageLayout;
use tch::{Device, Kind, Tensor};
use torch::WeightFiles;

pub use config::{Config, TextConfig, VisionConfig};

use crate::checkpoint::HEAD;
use crate::checkpointing::Checkpointing;
use crate::features::{FeatureCache, TowerFeatures};
use crate::layers::attention::AttentionBackend;
use crate::layers::rotary::Rotary;
use crate::layers::{Linear, PackedWeights};
use crate::lora::AdapterSource;
use crate::model::{LoadOptions, PromptPositions, TextShape, VisionLanguageModel};
use crate::parameters::{Builder, Parameters};
use crate::{ModelError, contradictions};

/// Qwen2.5-VL with its weights.
#[derive(Debug)]
pub struct Model {
    config: Config,
    text: text::TextModel,
    visual: vision::VisionTower,
    lm_head: Linear,
    parameters: Parameters,
    kind: Kind,
    device: Device,
    /// Of the text model's rotary embedding.
    frequencies: Tensor,
    features: Option<TowerFeatures>,
}

impl Model {
    /// Loads a Hugging Face folder, with adapters if given.
    ///
    /// # Errors
    /// A configuration that does not parse, or weights that do not fit it, all listed.
    pub fn load(
        folder: &Path,
        options: LoadOptions,
        adapters: Option<AdapterSource<'_>>,
    ) -> Result<Self, ModelError> {
        let mut config = Config::read(folder)?;
        let files = WeightFiles::open(folder)?;
        contradictions::warn_of_files(&files, folder);
        config.tie_word_embeddings =
            config.tie_word_embeddings && contradictions::stays_tied(&files, folder)?;
        Self::build(config, Builder::new(&files, options, adapters), options, folder)
    }

    /// A model of the sizes of `config` with constant weights, to measure memory and time.
    ///
    /// # Errors
    /// libtorch's own, and targets of adapters that name no layer.
    pub fn blank(
        config: Config,
        options: LoadOptions,
        adapters: Option<AdapterSource<'_>>,
    ) -> Result<Self, ModelError> {
        let builder = Builder::blank(options, adapters);
        Self::build(config, builder, options, Path::new("a blank model"))
    }

    fn build(
        config: Config,
        mut b: Builder<'_>,
        options: LoadOptions,
        folder: &Path,
    ) -> Result<Self, ModelError> {
        // Each tensor is found under either name; these are what a missing one is called.
        let text_path = match b.contains("model.language_model.embed_tokens.weight") {
            true => "model.language_model",
            false => "model",
        };
        let vision_path = match b.contains("model.visual.patch_embed.proj.weight") {
            true => "model.visual",
            false => "visual",
        };
        let text = b.at(text_path, |b| text::TextModel::load(b, &config.text))?;
        let visual = b.at(vision_path, |b| vision::VisionTower::load(b, &config.vision))?;
        let lm_head = if config.tie_word_embeddings {
            b.pass_over(HEAD);
            Linear::tied(&mut b, &text.embed_tokens)
        } else {
            b.at("lm_head", |b| {
                Linear::load_head(b, config.text.hidden_size, config.text.vocab_size)
            })?
        };
        let parameters = b.finish(folder)?;
        let frequencies = rope::text_frequencies(&config.text, options.device);
        Ok(Model {
            config,
            frequencies,
            text,
            visual,
            lm_head,
            parameters,
            kind: options.kind,
            device: options.device,
            features: None,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl VisionLanguageModel for Model {
    fn family(&self) -> &'static str {
        "qwen2_5_vl"
    }

    fn text_shape(&self) -> TextShape {
        let text = &self.config.text;
        TextShape {
            num_layers: text.num_hidden_layers,
            num_heads: text.num_attention_heads,
            num_kv_heads: text.num_kv_heads(),
            head_dim: text.head_dim(),
            hidden_size: text.hidden_size,
            vocab_size: text.vocab_size,
        }
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn compute(&self) -> (Kind, Device) {
        (self.kind, self.device)
    }

    fn image_token_id(&self) -> u32 {
        self.config.image_token_id
    }

    fn patch_dim(&self) -> usize {
        self.config.vision.patch_dim()
    }

    fn prompt_positions(&self, ids: &[u32], images: &[&ImageLayout]) -> PromptPositions {
        let grids: Vec<[usize; 3]> = images.iter().flat_map(|image| image.tiles.clone()).collect();
        rope::prompt_positions(
            ids,
            &grids,
            self.config.image_token_id,
            self.config.vision.spatial_merge_size,
        )
    }

    fn vision_stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        tiles: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor {
        self.visual.stages(checkpointing, pixel_values, tiles, packed)
    }

    fn keep_features(&mut self, cache: Rc<FeatureCache>) -> Result<(), ModelError> {
        let settings = format!("{:?}", self.config.vision);
        self.features = Some(TowerFeatures::new(cache, self, &settings)?);
        Ok(())
    }

    fn features(&self) -> Option<&TowerFeatures> {
        self.features.as_ref()
    }

    fn embed_tokens(&self, input_ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.text.embed_tokens, input_ids, -1, false, false)
    }

    fn rotary(&self, position_ids: &Tensor) -> Rotary {
        rope::text_rotary(&self.config.text, &self.frequencies, position_ids, self.kind)
    }

    fn layer(
        &self,
        index: usize,
        hidden: &Tensor,
        rotary: &Rotary,
        backend: &mut dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        self.text.layers[index].forward(index, hidden, rotary, backend, packed)
    }

    fn final_norm(&self, hidden: &Tensor) -> Tensor {
        self.text.norm.forward(hidden)
    }

    fn logits(&self, hidden: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        self.lm_head.forward(hidden, packed)
    }
}
