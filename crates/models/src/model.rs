//! The interface of every model family to training and generation.

use std::rc::Rc;

use base::ImageLayout;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::checkpointing::Checkpointing;
use crate::features::{FeatureCache, TowerFeatures};
use crate::inputs::ModelInputs;
use crate::layers::PackedWeights;
use crate::layers::attention::{AttentionBackend, PackedAttention};
use crate::layers::rotary::Rotary;
use crate::parameters::Parameters;

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Type to compute in.
    pub kind: Kind,
    /// Where.
    pub device: Device,
    /// Parts whose weights require gradients (and have f32 masters when computing in bf16). Adapters are trained if any part is.
    pub trained: TrainedParts,
}

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The vision tower up to its last block.
    Vision,
    /// The projection of its output to inputs of the text model.
    Merger,
    /// All else, the head included.
    Language,
}

impl Part {
    /// The part of the weight that a checkpoint calls `name`.
    pub fn of(name: &str) -> Self {
        match name.split_once("visual.") {
            Some((_, rest)) if rest.starts_with("merger.") => Part::Merger,
            Some(_) => Part::Vision,
            None => Part::Language,
        }
    }
}

/// The parts whose weights are trained, and where their f32 masters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainedParts {
    /// [`Part::Vision`].
    pub vision: bool,
    /// [`Part::Merger`].
    pub merger: bool,
    /// [`Part::Language`].
    pub language: bool,
    /// Whether f32 masters are in host memory, whatever the compute type.
    pub masters_on_host: bool,
}

impl TrainedParts {
    /// Nothing is trained.
    pub const NONE: Self = Self::all(false);
    /// All weights are trained.
    pub const ALL: Self = Self::all(true);

    /// All parts or none.
    pub const fn all(trained: bool) -> Self {
        TrainedParts { vision: trained, merger: trained, language: trained, masters_on_host: false }
    }

    /// Whether a part is among them.
    pub fn holds(self, part: Part) -> bool {
        match part {
            Part::Vision => self.vision,
            Part::Merger => self.merger,
            Part::Language => self.language,
        }
    }
}

/// Sizes that caches and samplers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextShape {
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: i64,
    /// Key and value heads.
    pub num_kv_heads: i64,
    /// Channels a head.
    pub head_dim: i64,
    /// Channels of the residual stream.
    pub hidden_size: i64,
    /// Rows of the head.
    pub vocab_size: i64,
}

/// Positions of a prompt and of its completion's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptPositions {
    /// `[time, height, width]` of every token.
    pub positions: Vec<[i64; 3]>,
    /// The position (all three) of the first token after the prompt.
    pub next: i64,
}

/// A vision-language model over packed tokens. Passes without gradient may read `packed` weights, which their caller owns; training passes
/// `None`.
pub trait VisionLanguageModel {
    /// `model_type` of `config.json`.
    fn family(&self) -> &'static str;

    /// Sizes of the text model.
    fn text_shape(&self) -> TextShape;

    /// The weights.
    fn parameters(&self) -> &Parameters;

    /// Compute type and device.
    fn compute(&self) -> (Kind, Device);

    /// Id of the placeholder token of one merged image patch.
    fn image_token_id(&self) -> u32;

    /// Numbers of a patch: channels x frames x height x width.
    fn patch_dim(&self) -> usize;

    /// Positions of a prompt whose image placeholders are expanded; `images` are those that they stand for.
    fn prompt_positions(&self, ids: &[u32], images: &[&ImageLayout]) -> PromptPositions;

    /// Runs the vision stages: `pixel_values [patches, patch_dim] -> [image tokens, hidden_size]`.
    fn vision_stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        tiles: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor;

    /// Stores features of images in `cache` from now on.
    ///
    /// # Errors
    /// [`ModelError::TrainedTower`]; libtorch's own.
    fn keep_features(&mut self, cache: Rc<FeatureCache>) -> Result<(), ModelError>;

    /// The feature cache; `None`: each pass computes the features.
    fn features(&self) -> Option<&TowerFeatures>;

    /// `input_ids [N] -> [N, hidden_size]`, without image features.
    fn embed_tokens(&self, input_ids: &Tensor) -> Tensor;

    /// Rotary embedding of every token from `position_ids [3, T]`.
    fn rotary(&self, position_ids: &Tensor) -> Rotary;

    /// One text layer: `[T, hidden_size] -> [T, hidden_size]`.
    fn layer(
        &self,
        index: usize,
        hidden: &Tensor,
        rotary: &Rotary,
        backend: &mut dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensor;

    /// Normalises the last layer's output, `[N, hidden_size]`.
    fn final_norm(&self, hidden: &Tensor) -> Tensor;

    /// `[N, hidden_size] -> [N, vocab_size]`.
    fn logits(&self, hidden: &Tensor, packed: Option<&PackedWeights>) -> Tensor;
}

/// Embeddings of a batch with image features in place of their placeholders: `[T, hidden_size]`. Stages run through `checkpointing`.
pub fn embed_inputs<'a>(
    model: &'a dyn VisionLanguageModel,
    checkpointing: &mut Checkpointing<'a>,
    batch: &'a ModelInputs,
    packed: Option<&'a PackedWeights>,
) -> Tensor {
    let Some(images) = &batch.images else {
        return checkpointing.run(&batch.input_ids, |ids| model.embed_tokens(ids));
    };
    let features = match model.features() {
        Some(features) => features.of(model, &images.distinct, packed),
        None => {
            let (kind, device) = model.compute();
            let pixel_values = images.pixel_values(kind, device);
            model.vision_stages(checkpointing, &pixel_values, &images.tiles(), packed)
        }
    };
    checkpointing.run(&features, |features| {
        // An image may occur in several prompts: an embedding look-up adds such rows' gradients in a fixed order.
        let placed = Tensor::embedding(features, &images.sources, -1, false, false);
        model.embed_tokens(&batch.input_ids).index_copy(0, &images.targets, &placed)
    })
}

/// Hidden states of a batch after the last layer and final norm: `[T, hidden_size]`. Stages run through `checkpointing`.
pub fn forward<'a>(
    model: &'a dyn VisionLanguageModel,
    checkpointing: &mut Checkpointing<'a>,
    batch: &'a ModelInputs,
    attention: &'a PackedAttention,
    rotary: &'a Rotary,
) -> Tensor {
    let mut hidden = embed_inputs(model, checkpointing, batch, None);
    for index in 0..model.text_shape().num_layers {
        hidden = checkpointing
            .run(&hidden, move |x| model.layer(index, x, rotary, &mut &*attention, None));
    }
    checkpointing.run(&hidden, |x| model.final_norm(x))
}
