//! Sizes of a model and the numbers of its parameters.

use models::qwen2_5_vl::Config;

/// Sizes of a Qwen2.5-VL.
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
    /// Rows of the embedding.
    pub vocab: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Channels of the vision tower.
    pub vision_hidden: u64,
    /// Its blocks.
    pub vision_depth: u64,
    /// Channels of its MLP.
    pub vision_mlp: u64,
    /// Numbers of a patch.
    pub patch: u64,
    /// Patches that make one token.
    pub merged: u64,
    /// Blocks whose patches see the whole image.
    pub full_blocks: u64,
    /// Patches of a window, which those of the other blocks see.
    pub window: u64,
}

impl From<&Config> for Shape {
    fn from(config: &Config) -> Self {
        let (text, vision) = (&config.text, &config.vision);
        let size = |value: i64| value.unsigned_abs();
        Shape {
            hidden: size(text.hidden_size),
            layers: text.num_hidden_layers as u64,
            q_width: size(text.num_attention_heads * text.head_dim()),
            kv_width: size(text.num_kv_heads() * text.head_dim()),
            mlp: size(text.intermediate_size),
            vocab: size(text.vocab_size),
            tied: config.tie_word_embeddings,
            vision_hidden: size(vision.hidden_size),
            vision_depth: vision.depth as u64,
            vision_mlp: size(vision.intermediate_size),
            patch: vision.patch_dim() as u64,
            merged: vision.spatial_merge_size.pow(2) as u64,
            full_blocks: vision.fullatt_block_indexes.len() as u64,
            window: (vision.window_size / vision.patch_size).pow(2) as u64,
        }
    }
}

/// Parameters by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The vision tower up to its last block.
    pub vision: u64,
    /// Its merger.
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

impl Shape {
    /// Qwen2.5-VL-3B, as its `config.json` has it.
    pub const QWEN2_5_VL_3B: Self = Shape {
        hidden: 2048,
        layers: 36,
        q_width: 2048,
        kv_width: 256,
        mlp: 11008,
        vocab: 151_936,
        tied: true,
        vision_hidden: 1280,
        vision_depth: 32,
        vision_mlp: 3420,
        patch: 1176,
        merged: 4,
        full_blocks: 4,
        window: 64,
    };
    /// Qwen2.5-VL-7B.
    pub const QWEN2_5_VL_7B: Self = Shape {
        hidden: 3584,
        layers: 28,
        q_width: 3584,
        kv_width: 512,
        mlp: 18944,
        vocab: 152_064,
        tied: false,
        ..Self::QWEN2_5_VL_3B
    };

    /// Weights of the linear layers of one text layer, without biases.
    pub(super) fn layer_weights(&self) -> u64 {
        self.hidden * (2 * self.q_width + 2 * self.kv_width + 3 * self.mlp)
    }

    /// Weights of those of one vision block.
    pub(super) fn block_weights(&self) -> u64 {
        self.vision_hidden * (4 * self.vision_hidden + 3 * self.vision_mlp)
    }

    /// Weights that a patch meets on its way through the tower.
    pub(super) fn tower_weights(&self) -> u64 {
        let merged = self.merged_width();
        let blocks = self.vision_depth * self.block_weights();
        self.vision_hidden * self.patch + blocks + merged * (merged + self.hidden) / self.merged
    }

    /// Channels of a merged patch before it becomes a token.
    pub(super) fn merged_width(&self) -> u64 {
        self.merged * self.vision_hidden
    }

    /// Counts the parameters.
    pub fn counts(&self) -> Counts {
        let (h, v, w) = (self.hidden, self.vision_hidden, self.merged_width());
        let block = self.block_weights() + 7 * v + 2 * self.vision_mlp;
        let layer = self.layer_weights() + 2 * h + self.q_width + 2 * self.kv_width;
        let embeddings = if self.tied { 1 } else { 2 };
        Counts {
            vision: v * self.patch + self.vision_depth * block,
            merger: v + w * w + w + w * h + h,
            language: embeddings * self.vocab * h + self.layers * layer + h,
        }
    }

    /// Parameters of adapters on all linear layers of the text model.
    pub fn adapters(&self, rank: u64) -> u64 {
        let (h, q, k, m) = (self.hidden, self.q_width, self.kv_width, self.mlp);
        self.layers * rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + m))
    }
}
