//! The commands but `demo`: configuration to one call.

mod data;
mod eval;
mod generate;
mod logprobs;
mod merge;
mod plan;
mod reward;
mod training;

pub use data::{data_check, data_convert};
pub use eval::eval;
pub use generate::generate;
pub use logprobs::logprobs;
pub use merge::merge;
pub use plan::plan;
pub use reward::reward;
pub use training::{check_grpo, check_sft, grpo, sft};
