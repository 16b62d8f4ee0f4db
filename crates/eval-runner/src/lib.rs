//! Evaluations asked of a model: what [`eval`] leaves to libtorch.
//!
//! [`runner`] puts questions to a model and hands over each answer as it ends; [`asking`] does so for an
//! [`eval::Evaluation`] and its folder, [`rec`] for rows whose answers are boxes.

pub mod asking;
pub mod rec;
pub mod runner;

pub use asking::{Progress, answer, set_up};
pub use rec::{RecEvaluator, RecOptions};

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
}
