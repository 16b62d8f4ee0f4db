//! Evaluations asked of a model: what [`eval`] leaves to libtorch.
//!
//! [`runner`] puts questions to a model and hands over each completion as it ends; [`sampling`] does so for an
//! [`eval::Evaluation`] and its folder, [`rec`] for rows whose completions are boxes.

mod dealt;
pub mod rec;
pub mod runner;
pub mod sampling;

pub use rec::{RecEvaluator, RecOptions};
pub use sampling::{Kept, Progress, sample_missing, set_up};

/// Why a model could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The evaluation.
    #[error(transparent)]
    Eval(#[from] eval::EvalError),
    /// Sampling.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// The data.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// The ranks.
    #[error(transparent)]
    World(#[from] base::world::WorldError),
    /// What another rank failed by.
    #[error("rank {rank} failed: {cause}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error.
        cause: String,
    },
    /// What a rank sent to another.
    #[error("completions on their way between ranks: {0}")]
    Message(#[from] serde_json::Error),
}
