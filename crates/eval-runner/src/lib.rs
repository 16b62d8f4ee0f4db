//! Evaluations asked of a model: what [`eval`] leaves to libtorch.
//!
//! [`runner`] puts questions to a model and hands over each completion as it ends; [`sampling`] does so for an
//! [`eval::Evaluation`] and its folder, [`rec`] for rows whose completions are boxes.

pub mod rec;
pub mod runner;
pub mod sampling;

pub use rec::{RecEvaluator, RecOptions};
pub use sampling::{Progress, sample_missing, set_up};

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
