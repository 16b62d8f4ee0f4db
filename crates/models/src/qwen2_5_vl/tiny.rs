//! A tiny model in the hub's flat form.

use serde_json::{Value, json};

use crate::family::TinySizes;

/// Its `config.json`, without ids of tokens. All blocks of the tower but the last see a window of a quarter of the image.
pub fn config(sizes: &TinySizes) -> Value {
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp,
        "max_position_embeddings": 2048,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": sizes.mrope_section},
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": true,
        "vocab_size": sizes.vocab_size,
        "vision_config": {
            "depth": sizes.vision_blocks,
            "fullatt_block_indexes": [sizes.vision_blocks - 1],
            "hidden_act": "silu",
            "hidden_size": sizes.vision_width,
            "in_chans": 3,
            "intermediate_size": sizes.vision_mlp,
            "num_heads": sizes.vision_heads,
            "out_hidden_size": sizes.width,
            "patch_size": sizes.patch_size,
            "spatial_merge_size": sizes.merge_size,
            "temporal_patch_size": 2,
            "window_size": sizes.image_size / 2,
        },
    })
}
