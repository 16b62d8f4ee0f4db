//! Layers that all families share.

pub mod attention;
mod gated;
pub mod linear;
pub mod norm;
pub mod packed;
pub mod rotary;
mod varlen;

pub use gated::gated;
pub use linear::{Linear, forward_all};
pub use norm::RmsNorm;
