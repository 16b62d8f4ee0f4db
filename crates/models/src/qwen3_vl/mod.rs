//! Qwen3-VL, dense.
//!
//! Source: huggingface/transformers v5.17, `src/transformers/models/qwen3_vl/modeling_qwen3_vl.py`,
//! class `Qwen3VLForConditionalGeneration`. Weights are named as in transformers 5 on the hub too.

mod config;
mod tiny;
mod vision;

pub use config::{Config, VisionConfig};

use crate::family::Family;
use crate::model::Part;
use crate::names::QWEN_NAMES;

/// The family.
pub const FAMILY: Family = Family {
    model_type: "qwen3_vl",
    names: QWEN_NAMES,
    part_of: Part::of_qwen,
    vision_modules: &[Part::Vision, Part::Merger],
    read_config: |file| Ok(Box::new(Config::of(file)?)),
    tiny_config: tiny::config,
};
