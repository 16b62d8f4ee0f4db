//! What is a model family's own in prompts: one file a family, and a line in [`FAMILIES`].
//!
//! The image processor is not: it goes by `image_processor_type` of the model folder ([`crate::image`]).

mod glm;
mod internvl;
mod qwen;

use base::ImageLayout;
use serde_json::Value;

/// Texts of one model family.
#[derive(Clone, Copy, Debug)]
pub struct DataFamily {
    /// `model_type` of its models; none of the default.
    pub model_types: &'static [&'static str],
    /// The token of which a run of an image consists, where `config.json` names none.
    pub image_token: Option<&'static str>,
    /// What stands for an image in a prompt, in place of the image token that the chat template writes: given that token,
    /// one for each run, and what is between and round them.
    pub image_text: fn(&ImageLayout, &str) -> String,
    /// Tokens that stand for images or frames, or round them, which no completion may hold.
    pub placeholders: &'static [&'static str],
    /// Control tokens of its chats, which no question and no answer may hold.
    pub control_tokens: &'static [&'static str],
    /// Tasks that have a question template of their own; others ask for a thought and an answer.
    pub task_templates: &'static [&'static str],
    /// Positions of a model whose `config.json` does not say, tokens.
    pub max_positions: Option<u64>,
}

/// The families. A further one is a file and a line here.
const FAMILIES: [DataFamily; 5] =
    [qwen::QWEN2_5_VL, qwen::QWEN2_VL, qwen::QWEN3_VL, internvl::INTERNVL, glm::GLM4V];

impl DataFamily {
    /// Of a model that the table does not name: what its files say.
    pub const DEFAULT: Self = Self {
        model_types: &[],
        image_token: None,
        image_text: one_after_another,
        placeholders: qwen::VISION_TOKENS,
        control_tokens: &[],
        task_templates: &[],
        max_positions: None,
    };

    /// Where no model is at hand: that of VLM-R1's own runs.
    pub const WITHOUT_MODEL: Self = qwen::QWEN2_5_VL;

    /// That of a `model_type`; the default where the table does not name it.
    pub fn of(model_type: &str) -> Self {
        let named = FAMILIES.iter().find(|family| family.model_types.contains(&model_type));
        named.copied().unwrap_or(Self::DEFAULT)
    }

    /// That of a model's `config.json`, null where there is none.
    pub fn of_config(config: &Value) -> Self {
        config.get("model_type").and_then(Value::as_str).map_or(Self::WITHOUT_MODEL, Self::of)
    }

    /// Texts that no question and no answer may hold.
    pub fn reserved_tokens(self) -> impl Iterator<Item = &'static str> {
        self.placeholders.iter().chain(self.control_tokens).copied()
    }
}

/// A token for each run, and nothing beside them.
fn one_after_another(layout: &ImageLayout, image_token: &str) -> String {
    image_token.repeat(layout.runs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_type_has_one_family_and_others_the_default() {
        let mut all: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        for model_type in &all {
            assert!(DataFamily::of(model_type).model_types.contains(model_type));
        }
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
        assert!(DataFamily::of("molmo2").model_types.is_empty());
    }

    #[test]
    fn a_folder_without_a_model_is_read_as_vlm_r1s() {
        let family = DataFamily::of_config(&Value::Null);
        assert_eq!(family.model_types, DataFamily::WITHOUT_MODEL.model_types);
        let named = DataFamily::of_config(&serde_json::json!({"model_type": "glm4v"}));
        assert!(named.model_types.contains(&"glm4v"));
    }

    #[test]
    fn images_of_several_tiles_are_one_text() {
        let layout = ImageLayout { tiles: vec![[1, 32, 32]; 3], runs: vec![768] };
        let text = (internvl::INTERNVL.image_text)(&layout, "<IMG_CONTEXT>");
        assert_eq!(text, "<img><IMG_CONTEXT></img>");
        let runs = ImageLayout { tiles: vec![[1, 2, 2]; 2], runs: vec![1, 1] };
        assert_eq!((DataFamily::DEFAULT.image_text)(&runs, "<i>"), "<i><i>");
    }
}
