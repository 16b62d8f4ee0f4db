//! A tiny model in the hub's flat form.

use serde_json::{Value, json};

use crate::family::TinySizes;

/// Its `config.json`, without ids of tokens.
pub fn config(sizes: &TinySizes) -> Value {
    json!({
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
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
            "embed_dim": sizes.vision_width,
            "hidden_act": "quick_gelu",
            "hidden_size": sizes.width,
            "in_chans": 3,
            // Without a gate a perceptron of as many weights is half as wide again.
            "mlp_ratio": 1.5 * sizes.vision_mlp as f64 / sizes.vision_width as f64,
            "num_heads": sizes.vision_heads,
            "patch_size": sizes.patch_size,
            "spatial_merge_size": sizes.merge_size,
            "temporal_patch_size": 2,
        },
    })
}
