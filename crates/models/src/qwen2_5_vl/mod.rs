//! Qwen2.5-VL.
//!
//! Source: huggingface/transformers v5.17, `src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py`,
//! class `Qwen2_5_VLForConditionalGeneration`.
//!
//! | part | the hub's names | transformers 5's names |
//! |---|---|---|
//! | text | `model.embed_tokens`, `model.layers.*`, `model.norm` | `model.language_model.*` |
//! | vision | `visual.*` | `model.visual.*` |
//! | head | `lm_head.weight`, absent or equal to the embedding when tied | the same |

mod config;
mod tiny;
mod vision;
mod windows;

pub use config::{Config, VisionConfig};

use crate::family::Family;
use crate::names::QWEN_NAMES;
use crate::model::Part;

/// The family.
pub const FAMILY: Family = Family {
    model_type: "qwen2_5_vl",
    names: QWEN_NAMES,
    part_of: Part::of_qwen,
    vision_modules: &[Part::Vision, Part::Merger],
    read_config: |file| Ok(Box::new(Config::of(file)?)),
    tiny_config: tiny::config,
};
