//! Layers that all families share.

pub mod attention;
pub mod linear;
mod mlp;
pub mod norm;
pub mod packed;
pub mod rotary;
mod varlen;

pub use linear::{Linear, forward_all, normed_all};
pub use mlp::GatedMlp;
pub use norm::RmsNorm;
pub use packed::PackedWeights;
