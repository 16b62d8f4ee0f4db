//! Models: one that is trained, and one that is asked.

use crate::ranges::{FRACTION, POSITIVE, demand};
use crate::{ConfigError, DType, section};

section! {
    /// The model that is trained, and which parts of it.
    pub struct ModelSection {
        "model" {
            /// Model folder in Hugging Face format, a run's folder (its newest checkpoint; `RUN@100`, `RUN@best`),
            /// or the name of a model on the hub.
            model_name_or_path: String,
            /// Branch, tag or commit of a model on the hub; without it, `main`.
            model_revision: Option<String> = None,
            /// Whether weights and computation are bf16 (the optimizer keeps f32 copies).
            bf16: bool = false,
            /// Leave the vision tower and its merger as they are.
            freeze_vision_modules: bool = false,
            /// Leave the vision tower as it is, up to its merger.
            freeze_vision_tower: bool = false,
            /// Leave the merger between vision tower and language model as it is.
            freeze_merger: bool = false,
            /// Leave the language model as it is.
            freeze_language_model: bool = false,
            /// Train low-rank adapters (LoRA) over frozen weights.
            use_peft: bool = false,
            /// Rank of the adapters.
            lora_r: usize = 16,
            /// The adapters' update is multiplied by `lora_alpha / lora_r`.
            lora_alpha: f64 = 32.0,
            /// Share of an adapter's inputs set to 0 while training, 0 to 1.
            lora_dropout: f64 = 0.05,
            /// Linear layers with an adapter: names, ends of names or regular expressions; without it, all
            /// of the language model, as in VLM-R1.
            lora_target_modules: Vec<String> = Vec::new(),
            /// Whether targets may lie in the vision tower and its merger.
            lora_vision: bool = false,
            /// Whether to recompute activations in the backward pass: less memory, more time.
            gradient_checkpointing: bool = false,
        }
    }
}

section! {
    /// How a model is loaded for inference.
    pub struct LoadSection {
        "model" {
            /// Branch, tag or commit of a model on the hub; without it, `main`.
            model_revision: Option<String> = None,
            /// Model under an adapter: a folder, a run or a name on the hub; without it, the one that the adapter
            /// names.
            base_model: Option<String> = None,
            /// Type of the weights and of the computation.
            dtype: DType = DType::Float32,
            /// Turn images as their EXIF orientation says, as transformers' `load_image` does; VLM-R1 does not.
            apply_exif: bool = false,
            /// Read images where links in an image folder lead to, outside of it.
            follow_links: bool = false,
            /// Pixels above which an image is shrunk; without it, what the model's folder says, and in
            /// `eval` first of all the run that trained it.
            max_pixels: Option<usize> = None,
            /// Pixels below which an image is enlarged; without it, as `max_pixels`.
            min_pixels: Option<usize> = None,
        }
    }
}

impl ModelSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.lora_r > 0, "lora_r", 0, POSITIVE)?;
        demand(self.lora_alpha > 0.0, "lora_alpha", self.lora_alpha, "above 0")?;
        let dropout = self.lora_dropout;
        demand((0.0..1.0).contains(&dropout), "lora_dropout", dropout, FRACTION)?;
        let is_named = !self.model_name_or_path.trim().is_empty();
        demand(is_named, "model_name_or_path", "nothing", "a model")
    }

    /// The settings of LoRA where there is none.
    pub(crate) fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        const LORA: [&str; 5] =
            ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_vision"];
        match self.use_peft {
            true => Vec::new(),
            false => LORA.map(|name| (name, "it counts with `--use_peft true`")).to_vec(),
        }
    }
}
