//! GLM-4.1V: the chat template writes the marks round an image. VLM-R1's module asks all tasks by the template of a thought
//! and an answer.

use super::DataFamily;

pub(super) const GLM4V: DataFamily = DataFamily {
    model_types: &["glm4v"],
    image_token: Some("<|image|>"),
    placeholders: &[
        "<|begin_of_image|>",
        "<|image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
        "<|video|>",
    ],
    control_tokens: &["<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"],
    // Of `Glm4vTextConfig` in transformers 5.17.
    max_positions: Some(32_768),
    ..DataFamily::DEFAULT
};
