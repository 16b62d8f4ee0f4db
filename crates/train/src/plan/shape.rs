//! Sizes of a model and the numbers of its parameters.

use models::{FamilyConfig, LayerKind, ModelError, Part};

/// Sizes of a model of any family. Numbers of weights are those that its layers take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels of the text model.
    pub hidden: u64,
    /// Its layers.
    pub layers: u64,
    /// Channels of all query heads.
    pub q_width: u64,
    /// Channels of all key heads.
    pub kv_width: u64,
    /// Channels of its MLP.
    pub mlp: u64,
    /// Whether each head of queries and keys is normalised.
    pub normed_heads: bool,
    /// Rows of the embedding.
    pub vocab: u64,
    /// Channels of the vision tower.
    pub vision_hidden: u64,
    /// Its blocks.
    pub vision_depth: u64,
    /// Channels of its MLP.
    pub vision_mlp: u64,
    /// Whether that has a gate.
    pub vision_gated: bool,
    /// Numbers of a patch.
    pub patch: u64,
    /// Patches that make one token.
    pub merged: u64,
    /// Blocks whose patches see the whole image.
    pub full_blocks: u64,
    /// Patches of a window, which those of the other blocks see.
    pub window: u64,
    /// Vectors of `hidden` channels that the tower makes of a token: one, and one for each layer that features are added to.
    pub features: u64,
    /// Parameters by part.
    pub counts: Counts,
    /// Weights of the linear layers of one text layer, without biases.
    pub layer_weights: u64,
    /// Weights that a patch meets on its way through the tower.
    pub tower_weights: u64,
    /// Channels in and out of all linear layers of the text model: an adapter of rank r has r times as many parameters.
    pub adapter_channels: u64,
}

/// Parameters by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The vision tower up to its last block.
    pub vision: u64,
    /// Its mergers.
    pub merger: u64,
    /// All else.
    pub language: u64,
}

impl Counts {
    /// All of them.
    pub fn all(self) -> u64 {
        self.vision + self.merger + self.language
    }
}

/// The head's name in every family.
const HEAD: &str = "lm_head";

impl Shape {
    /// The sizes of a model: as its configuration has them, and as its layers take weights.
    ///
    /// # Errors
    /// libtorch's own; layers that do not attend, which the plan does not know yet.
    pub fn of(config: &dyn FamilyConfig) -> Result<Self, ModelError> {
        let model = config.counted()?;
        let (text, vision) = (config.text_shape(), config.vision_shape());
        let not_built = |what| ModelError::NotBuilt {
            model_type: config.family().model_type,
            what: format!("the plan: {what}"),
        };
        let attention = text.uniform().map_err(not_built)?;
        debug_assert!(matches!(text.layers[0], LayerKind::Attention(_)));
        let size = |value: i64| value.unsigned_abs();
        let merged = vision.merge.pow(2) as u64;
        let mut counts = Counts::default();
        for parameter in &model.parameters().list {
            let numbers = parameter.value.size().iter().product::<i64>();
            *match parameter.part {
                Part::Vision => &mut counts.vision,
                Part::Merger => &mut counts.merger,
                Part::Language => &mut counts.language,
            } += size(numbers);
        }
        let linears = || model.parameters().linears.iter().filter(|linear| linear.name != HEAD);
        let weights = |part| {
            let of_part = linears().filter(move |linear| linear.part == part);
            of_part.map(|linear| size(linear.input * linear.output)).sum::<u64>()
        };
        let of_text = linears().filter(|linear| linear.part == Part::Language);
        let layers = text.layers.len() as u64;
        Ok(Shape {
            hidden: size(text.hidden_size),
            layers,
            q_width: size(attention.heads * attention.head_dim),
            kv_width: size(attention.kv_heads * attention.head_dim),
            mlp: size(text.intermediate_size),
            normed_heads: text.normed_heads,
            vocab: size(text.vocab_size),
            vision_hidden: size(vision.hidden_size),
            vision_depth: vision.blocks as u64,
            vision_mlp: size(vision.intermediate_size),
            vision_gated: vision.is_gated,
            patch: vision.patch_dim as u64,
            merged,
            full_blocks: vision.full_blocks as u64,
            window: vision.window as u64,
            features: 1 + vision.num_deepstack as u64,
            counts,
            layer_weights: weights(Part::Language) / layers,
            tower_weights: weights(Part::Vision) + weights(Part::Merger) / merged,
            adapter_channels: of_text.map(|linear| size(linear.input + linear.output)).sum(),
        })
    }

    /// Qwen2.5-VL-3B, as its `config.json` has it.
    pub const QWEN2_5_VL_3B: Self = Shape {
        hidden: 2048,
        layers: 36,
        q_width: 2048,
        kv_width: 256,
        mlp: 11008,
        normed_heads: false,
        vocab: 151_936,
        vision_hidden: 1280,
        vision_depth: 32,
        vision_mlp: 3420,
        vision_gated: true,
        patch: 1176,
        merged: 4,
        full_blocks: 4,
        window: 64,
        features: 1,
        counts: Counts { vision: 631_975_680, merger: 36_708_608, language: 3_085_938_688 },
        layer_weights: 77_070_336,
        tower_weights: 640_645_120,
        adapter_channels: 1_870_848,
    };
    /// Qwen2.5-VL-7B.
    pub const QWEN2_5_VL_7B: Self = Shape {
        hidden: 3584,
        layers: 28,
        q_width: 3584,
        kv_width: 512,
        mlp: 18944,
        vocab: 152_064,
        counts: Counts { vision: 631_975_680, merger: 44_574_464, language: 7_615_616_512 },
        layer_weights: 233_046_016,
        tower_weights: 642_611_200,
        adapter_channels: 2_523_136,
        ..Self::QWEN2_5_VL_3B
    };

    /// Channels of a merged patch before it becomes a token.
    pub(super) fn merged_width(&self) -> u64 {
        self.merged * self.vision_hidden
    }

    /// Parameters of adapters on all linear layers of the text model.
    pub fn adapters(&self, rank: u64) -> u64 {
        rank * self.adapter_channels
    }
}
