//! Layers that families share.

pub mod attention;
pub mod axial;
pub mod decoder;
pub mod linear;
mod mlp;
pub mod mrope;
pub mod norm;
pub mod packed;
pub mod position_table;
pub mod rotary;
mod varlen;
mod vision_block;

pub use decoder::{DecoderLayer, DecoderOptions, TextModel};
pub use linear::{Linear, after_norm, forward_all};
pub use mlp::{GatedMlp, Mlp, PlainMlp, activation_of};
pub use norm::{LayerNorm, Norm, RmsNorm};
pub use packed::PackedWeights;
pub use vision_block::VisionBlock;
