//! What the demo and the experiments learn on: drawn scenes whose boxes are known exactly, and a tiny
//! Qwen2.5-VL with a tokenizer of its own. No libtorch: both are files.

pub mod model;
pub mod scenes;
pub mod tokenizer;
