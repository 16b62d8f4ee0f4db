//! The commands that need no libtorch: configuration to one call.

mod data;
mod doctor;
pub mod eval;
mod launch;
mod reward;

pub use data::{data_check, data_convert};
pub use doctor::{LibtorchFacts, doctor};
pub use launch::launch;
pub use reward::reward;
