//! The interface of every model family to training and generation.

use std::rc::Rc;

use base::ImageLayout;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::checkpointing::{Checkpointing, Tensors};
use crate::family::Family;
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
    /// The projections of its output to inputs of the text model.
    Merger,
    /// All else, the head included.
    Language,
}

impl Part {
    /// The part of Qwen's weight `name`: what is below `visual` is of the tower, but its mergers.
    pub fn of_qwen(name: &str) -> Self {
        match name.strip_prefix("model.visual.") {
            Some(rest)
                if rest.starts_with("merger.") || rest.starts_with("deepstack_merger_list.") =>
            {
                Part::Merger
            }
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

/// Sizes of a text model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextShape {
    /// What each layer keeps of the tokens before.
    pub layers: Vec<LayerKind>,
    /// Channels of the residual stream.
    pub hidden_size: i64,
    /// Channels of the MLP.
    pub intermediate_size: i64,
    /// Whether each head of queries and keys is normalised.
    pub normed_heads: bool,
    /// Rows of the head.
    pub vocab_size: i64,
}

/// What a layer keeps of the tokens before: caches and masks are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Keys and values.
    Attention(AttentionShape),
    /// A state of one size for each sequence.
    Recurrent {
        /// Channels and tokens of the convolution's window.
        conv: [i64; 2],
        /// Heads, channels of keys, channels of values.
        state: [i64; 3],
    },
}

/// Sizes of a layer's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Channels a head.
    pub head_dim: i64,
    /// Tokens that a token sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// The earlier layer whose keys and values it reads; `None`: its own.
    pub keys_of: Option<usize>,
}

impl TextShape {
    /// The attention of all layers, where all have one and the same, over all tokens.
    ///
    /// # Errors
    /// What caches do not hold yet.
    pub fn uniform(&self) -> Result<AttentionShape, String> {
        let mut layers = self.layers.iter().enumerate();
        let mut shape = None;
        layers.try_for_each(|(index, layer)| match layer {
            LayerKind::Recurrent { .. } => Err(format!("layer {index}: recurrent state")),
            LayerKind::Attention(AttentionShape { window: Some(_), .. }) => {
                Err(format!("layer {index}: a window of attention"))
            }
            LayerKind::Attention(AttentionShape { keys_of: Some(_), .. }) => {
                Err(format!("layer {index}: keys of another layer"))
            }
            LayerKind::Attention(own) if *shape.get_or_insert(*own) != *own => {
                Err(format!("layer {index}: other heads than the layers before"))
            }
            LayerKind::Attention(_) => Ok(()),
        })?;
        shape.ok_or_else(|| "a model without layers".to_owned())
    }
}

/// Positions of a prompt and of its completion's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptPositions {
    /// `[time, height, width]` of every token.
    pub positions: Vec<[i64; 3]>,
    /// The position (all three) of the first token after the prompt.
    pub next: i64,
}

/// What the layers of a pass read beside hidden states: made once, the same for all layers.
#[derive(Debug)]
pub struct PassInputs {
    /// Rotary embeddings of every token; layers know which is theirs.
    pub rotaries: Vec<Rotary>,
    /// Which tokens are of images: for features that layers add.
    pub image_rows: Option<ImageRows>,
}

/// The tokens of a pass that stand for images.
#[derive(Debug)]
pub struct ImageRows {
    /// For each placeholder token, its row of the tower's output.
    pub sources: Tensor,
    /// For each placeholder token, its index in the packed tokens.
    pub targets: Tensor,
}

/// A vision-language model over packed tokens. Passes without gradient may read `packed` weights, which their caller owns; training passes
/// `None`.
///
/// A pass is [`embed`], each [`VisionLanguageModel::layer`] in [`run_layers`], [`VisionLanguageModel::final_norm`] and
/// [`VisionLanguageModel::logits`].
pub trait VisionLanguageModel {
    /// Its family.
    fn family(&self) -> &'static Family;

    /// Sizes of the text model.
    fn text_shape(&self) -> &TextShape;

    /// The weights.
    fn parameters(&self) -> &Parameters;

    /// The weights, whose exact values may be moved elsewhere.
    fn parameters_mut(&mut self) -> &mut Parameters;

    /// Compute type and device.
    fn compute(&self) -> (Kind, Device);

    /// Id of the placeholder token of an image.
    fn image_token_id(&self) -> u32;

    /// Numbers of a patch: channels x frames x height x width.
    fn patch_dim(&self) -> usize;

    /// Channels of the tower's output: `hidden_size` for each place where the text model takes features.
    fn feature_size(&self) -> i64;

    /// Positions of a prompt whose image placeholders are expanded; `images` are those that they stand for.
    fn prompt_positions(&self, ids: &[u32], images: &[&ImageLayout]) -> PromptPositions;

    /// Runs the vision stages: `pixel_values [patches, patch_dim] -> [image tokens, feature_size]`.
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

    /// What layers read beside hidden states, for tokens at `position_ids [3, T]`.
    fn pass_inputs(&self, position_ids: &Tensor, images: Option<ImageRows>) -> PassInputs;

    /// One text layer. Of `state` the first are the hidden states, `[T, hidden_size]`; the others are features that this and later layers
    /// add, `[image tokens, hidden_size]` each, of which a layer passes on those that it leaves.
    fn layer(
        &self,
        index: usize,
        state: &[Tensor],
        pass: &PassInputs,
        backend: &dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensors;

    /// Normalises the last layer's output, `[N, hidden_size]`.
    fn final_norm(&self, hidden: &Tensor) -> Tensor;

    /// `[N, hidden_size] -> [N, vocab_size]`.
    fn logits(&self, hidden: &Tensor, packed: Option<&PackedWeights>) -> Tensor;
}

/// The state before the first layer: embeddings of a batch with image features in place of their placeholders, `[T, hidden_size]`, and the
/// features that layers add. Stages run through `checkpointing`.
pub fn embed<'a>(
    model: &'a dyn VisionLanguageModel,
    checkpointing: &mut Checkpointing<'a>,
    batch: &'a ModelInputs,
    packed: Option<&'a PackedWeights>,
) -> Tensors {
    let Some(images) = &batch.images else {
        return vec![checkpointing.run(&batch.input_ids, |ids| model.embed_tokens(ids))];
    };
    let features = match model.features() {
        Some(features) => features.of(model, &images.distinct, packed),
        None => {
            let (kind, device) = model.compute();
            let pixel_values = images.pixel_values(kind, device);
            model.vision_stages(checkpointing, &pixel_values, &images.tiles(), packed)
        }
    };
    checkpointing.run_all(&[features], |features| {
        let mut state = match model.feature_size() == model.text_shape().hidden_size {
            true => vec![features[0].shallow_clone()],
            false => features[0].split(model.text_shape().hidden_size, 1),
        };
        // An image may occur in several prompts: an embedding look-up adds such rows' gradients in a fixed order.
        let placed = Tensor::embedding(&state[0], &images.sources, -1, false, false);
        state[0] = model.embed_tokens(&batch.input_ids).index_copy(0, &images.targets, &placed);
        state
    })
}

/// The output of the last layer, `[T, hidden_size]`: the one loop over layers, of training and of sampling. Stages run through
/// `checkpointing`.
pub fn run_layers<'a>(
    model: &'a dyn VisionLanguageModel,
    checkpointing: &mut Checkpointing<'a>,
    mut state: Tensors,
    pass: &'a PassInputs,
    backend: &'a dyn AttentionBackend,
    packed: Option<&'a PackedWeights>,
) -> Tensor {
    for index in 0..model.text_shape().layers.len() {
        state = checkpointing
            .run_all(&state, move |state| model.layer(index, state, pass, backend, packed));
    }
    state.remove(0)
}

/// [`run_layers`] of sampling: nothing is kept.
pub fn run_layers_at_once(
    model: &dyn VisionLanguageModel,
    state: Tensors,
    pass: &PassInputs,
    backend: &dyn AttentionBackend,
    packed: &PackedWeights,
) -> Tensor {
    run_layers(model, &mut Checkpointing::new(false), state, pass, backend, Some(packed))
}

/// Hidden states of a batch after the last layer and final norm: `[T, hidden_size]`. Stages run through `checkpointing`.
pub fn forward<'a>(
    model: &'a dyn VisionLanguageModel,
    checkpointing: &mut Checkpointing<'a>,
    batch: &'a ModelInputs,
    pass: &'a PassInputs,
    attention: &'a PackedAttention,
) -> Tensor {
    let state = embed(model, checkpointing, batch, None);
    let hidden = run_layers(model, checkpointing, state, pass, attention, None);
    checkpointing.run(&hidden, |x| model.final_norm(x))
}
