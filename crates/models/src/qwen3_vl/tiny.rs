//! A tiny model in the hub's form.

use serde_json::{Value, json};

use crate::family::TinySizes;

/// Its `config.json`, without ids of tokens. The first block's features are added after the first text layer.
pub fn config(sizes: &TinySizes) -> Value {
    json!({
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": true,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": false,
            "head_dim": sizes.width / sizes.heads,
            "hidden_act": "silu",
            "hidden_size": sizes.width,
            "intermediate_size": sizes.mlp,
            "max_position_embeddings": 2048,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_interleaved": true,
                "mrope_section": sizes.mrope_section,
            },
            "rope_theta": sizes.rope_theta,
            "tie_word_embeddings": true,
            "vocab_size": sizes.vocab_size,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": [0],
            "depth": sizes.vision_blocks,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": sizes.vision_width,
            "in_channels": 3,
            // Without a gate a perceptron of as many weights is half as wide again.
            "intermediate_size": sizes.vision_mlp * 3 / 2,
            "num_heads": sizes.vision_heads,
            "num_position_embeddings": (sizes.image_size / sizes.patch_size).pow(2),
            "out_hidden_size": sizes.width,
            "patch_size": sizes.patch_size,
            "spatial_merge_size": sizes.merge_size,
            "temporal_patch_size": 2,
        },
    })
}
