//! The model that families are made of so far: a vision tower, a decoder with M-RoPE, a head. A family brings its tower and the settings.

use std::fmt::Debug;
use std::path::Path;
use std::rc::Rc;

use base::ImageLayout;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::checkpoint::HEAD;
use crate::checkpointing::{Checkpointing, Tensors};
use crate::config::{ConfigFile, TextConfig};
use crate::family::{Family, FamilyConfig, ScaledSize, VisionShape};
use crate::features::{FeatureCache, TowerFeatures};
use crate::layers::attention::AttentionBackend;
use crate::layers::mrope::{self, MRope};
use crate::layers::{DecoderOptions, Linear, PackedWeights, TextModel};
use crate::model::{ImageRows, PassInputs, PromptPositions, TextShape, VisionLanguageModel};
use crate::parameters::{Builder, Parameters};

/// A vision tower with what projects its output to the text model.
pub trait VisionTower: Debug {
    /// Its sizes.
    fn shape(&self) -> VisionShape;

    /// All that its features depend on beside its weights.
    fn settings(&self) -> String;

    /// `pixel_values [patches, patch_dim] -> [image tokens, hidden_size * (1 + num_deepstack)]`, stage by stage.
    fn stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        tiles: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor;
}

/// The model with its weights.
#[derive(Debug)]
pub struct DecoderModel {
    family: &'static Family,
    shape: TextShape,
    text: TextModel,
    rope: MRope,
    tower: Box<dyn VisionTower>,
    lm_head: Linear,
    parameters: Parameters,
    kind: Kind,
    device: Device,
    image_token_id: u32,
    features: Option<TowerFeatures>,
}

/// The configuration of such a model: a family brings that of its tower.
#[derive(Clone, Debug)]
pub struct DecoderConfig<V> {
    /// Text model.
    pub text: TextConfig,
    /// Vision tower.
    pub vision: V,
    /// Placeholder token of an image.
    pub image_token_id: u32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

/// The configuration of a family's vision tower, and what the family's decoder differs in.
pub trait VisionSettings: DeserializeOwned + Clone + Debug + 'static {
    /// The tower.
    type Tower: VisionTower + 'static;

    /// The family.
    const FAMILY: &'static Family;

    /// Fills in what the class of the family's text model has as a default.
    fn complete(text: &mut TextConfig);

    /// What differs between families in the decoder.
    fn decoder(text: &TextConfig) -> DecoderOptions;

    /// Sizes.
    fn shape(&self) -> VisionShape;

    /// Refuses what no model has, or is not computed here.
    ///
    /// # Errors
    /// The key, what was got and what is expected.
    fn check(&self, text: &TextConfig) -> Result<(), String>;

    /// Cuts the tower to a size.
    fn scale(&mut self, size: &ScaledSize);

    /// Takes the tower's tensors below the builder's path.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    fn load(&self, builder: &mut Builder<'_>) -> Result<Self::Tower, ModelError>;
}

impl<V: VisionSettings> DecoderConfig<V> {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing key, or a value that this implementation does not compute.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::of(&ConfigFile::read(folder)?)
    }

    /// Of a file that is read.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`].
    pub fn of(file: &ConfigFile) -> Result<Self, ModelError> {
        let mut text: TextConfig = file.text()?;
        V::complete(&mut text);
        let config = DecoderConfig {
            text,
            vision: file.vision::<V>()?,
            image_token_id: file.image_token_id,
            tie_word_embeddings: file.is_tied,
        };
        file.finish(config.check())?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        self.text.check(self.image_token_id)?;
        // transformers passes this key over: each class computes one of the two.
        let own = V::decoder(&self.text).interleaved_mrope;
        if let Some(given) = self.text.mrope_interleaved().filter(|given| *given != own) {
            return Err(format!("`mrope_interleaved`: expected {own}, got {given}"));
        }
        self.vision.check(&self.text)
    }
}

impl<V: VisionSettings> FamilyConfig for DecoderConfig<V> {
    fn family(&self) -> &'static Family {
        V::FAMILY
    }

    fn text_shape(&self) -> TextShape {
        self.text.shape(V::decoder(&self.text))
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
        config.vision.scale(size);
        Box::new(config)
    }

    fn build(&self, mut b: Builder<'_>) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
        let (config, options) = (&self.text, V::decoder(&self.text));
        let text = b.at("model.language_model", |b| TextModel::load(b, config, options))?;
        let tower = b.at("model.visual", |b| self.vision.load(b))?;
        let lm_head = if self.tie_word_embeddings {
            b.pass_over(HEAD);
            b.at("lm_head", |b| Ok(Linear::tied(b, &text.embed_tokens)))?
        } else {
            b.at("lm_head", |b| Linear::load_head(b, config.hidden_size, config.vocab_size))?
        };
        let (kind, device) = b.compute();
        let parameters = b.finish()?;
        let rope = match options.interleaved_mrope {
            true => MRope::interleaved,
            false => MRope::in_sections,
        };
        Ok(Box::new(DecoderModel {
            family: V::FAMILY,
            shape: self.text_shape(),
            rope: rope(config.head_dim(), config.rope_theta(), &config.mrope_section(), device),
            text,
            tower: Box::new(tower),
            lm_head,
            parameters,
            kind,
            device,
            image_token_id: self.image_token_id,
            features: None,
        }))
    }
}

impl VisionLanguageModel for DecoderModel {
    fn family(&self) -> &'static Family {
        self.family
    }

    fn text_shape(&self) -> &TextShape {
        &self.shape
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn compute(&self) -> (Kind, Device) {
        (self.kind, self.device)
    }

    fn image_token_id(&self) -> u32 {
        self.image_token_id
    }

    fn patch_dim(&self) -> usize {
        self.tower.shape().patch_dim
    }

    fn feature_size(&self) -> i64 {
        self.shape.hidden_size * (1 + self.tower.shape().num_deepstack as i64)
    }

    fn prompt_positions(&self, ids: &[u32], images: &[&ImageLayout]) -> PromptPositions {
        let tiles: Vec<_> = images.iter().flat_map(|image| image.tiles.iter().copied()).collect();
        mrope::prompt_positions(ids, &tiles, self.image_token_id, self.tower.shape().merge)
    }

    fn vision_stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        tiles: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor {
        self.tower.stages(checkpointing, pixel_values, tiles, packed)
    }

    fn keep_features(&mut self, cache: Rc<FeatureCache>) -> Result<(), ModelError> {
        self.features = Some(TowerFeatures::new(cache, self, &self.tower.settings())?);
        Ok(())
    }

    fn features(&self) -> Option<&TowerFeatures> {
        self.features.as_ref()
    }

    fn embed_tokens(&self, input_ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.text.embed_tokens, input_ids, -1, false, false)
    }

    fn pass_inputs(&self, position_ids: &Tensor, image_rows: Option<ImageRows>) -> PassInputs {
        let rotaries = vec![self.rope.rotary(position_ids, self.kind)];
        PassInputs { rotaries, image_rows }
    }

    fn layer(
        &self,
        index: usize,
        state: &[Tensor],
        pass: &PassInputs,
        backend: &dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensors {
        let hidden = self.text.layers[index].forward(index, &state[0], pass, backend, packed);
        let (Some(features), Some(rows)) = (state.get(1), &pass.image_rows) else {
            return vec![hidden];
        };
        let placed = Tensor::embedding(features, &rows.sources, -1, false, false);
        let mut next = vec![hidden.index_add(0, &rows.targets, &placed)];
        next.extend(state[2..].iter().map(Tensor::shallow_clone));
        next
    }

    fn final_norm(&self, hidden: &Tensor) -> Tensor {
        self.text.norm.forward(hidden)
    }

    fn logits(&self, hidden: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        self.lm_head.forward(hidden, packed)
    }
}
