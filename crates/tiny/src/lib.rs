//! Model and data of the demo and the experiments: drawn scenes with exact boxes, and a tiny
//! Qwen2.5-VL with its own tokenizer. Both are written as files, without libtorch.

pub mod model;
pub mod scenes;
pub mod tokenizer;
