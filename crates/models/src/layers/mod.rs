//! Layers that all families share.

pub mod attention;
pub mod linear;
pub mod norm;
pub mod rotary;
mod varlen;

pub use linear::Linear;
pub use norm::RmsNorm;
