//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one chat form, and VLM-R1's templates of its module of Qwen.

use super::{DataFamily, one_after_another};

/// Tokens that stand for images and frames, or round them.
pub(super) const VISION_TOKENS: &[&str] =
    &["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"];

pub(super) const QWEN2_5_VL: DataFamily = DataFamily {
    model_types: &["qwen2_5_vl"],
    image_token: Some("<|image_pad|>"),
    image_text: one_after_another,
    placeholders: VISION_TOKENS,
    control_tokens: &["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    task_templates: &["rec", "ic", "odLength"],
    // Of `Qwen2_5_VLTextConfig` in transformers 5.17.
    max_positions: Some(32_768),
};

// `Qwen2VLTextConfig` has the same default.
pub(super) const QWEN2_VL: DataFamily = DataFamily { model_types: &["qwen2_vl"], ..QWEN2_5_VL };

pub(super) const QWEN3_VL: DataFamily = DataFamily {
    model_types: &["qwen3_vl"],
    // Of `Qwen3VLTextConfig`.
    max_positions: Some(128_000),
    ..QWEN2_5_VL
};
