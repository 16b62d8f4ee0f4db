//! Qwen2-VL.
//!
//! Source: huggingface/transformers v5.17, `src/transformers/models/qwen2_vl/modeling_qwen2_vl.py`,
//! class `Qwen2VLForConditionalGeneration`. Weights have the names of Qwen2.5-VL's.

mod config;
mod tiny;
mod vision;

pub use config::{Config, VisionConfig};

use crate::family::Family;
use crate::model::Part;
use crate::names::QWEN_NAMES;

/// The family.
pub const FAMILY: Family = Family {
    model_type: "qwen2_vl",
    names: QWEN_NAMES,
    part_of: Part::of_qwen,
    vision_modules: &[Part::Vision, Part::Merger],
    read_config: |file| Ok(Box::new(Config::of(file)?)),
    tiny_config: tiny::config,
};
