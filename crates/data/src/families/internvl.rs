//! InternVL in the form of transformers: `<img>`, the tiles of the image, `</img>`. VLM-R1's module asks all tasks by the
//! template of a thought and an answer.

use base::ImageLayout;

use super::DataFamily;

pub(super) const INTERNVL: DataFamily = DataFamily {
    model_types: &["internvl", "internvl_chat"],
    image_token: Some("<IMG_CONTEXT>"),
    image_text: between_marks,
    placeholders: &["<img>", "<IMG_CONTEXT>", "</img>"],
    control_tokens: &["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    ..DataFamily::DEFAULT
};

fn between_marks(layout: &ImageLayout, image_token: &str) -> String {
    format!("<img>{}</img>", image_token.repeat(layout.runs.len()))
}
