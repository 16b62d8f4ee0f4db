//! The commands that need no libtorch: configuration to one call.

mod data;
pub mod eval;
mod reward;

pub use data::{data_check, data_convert};
pub use reward::reward;
