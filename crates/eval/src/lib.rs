//! Benchmarks: a model answers held-out questions, rules score the answers.
//!
//! [`rec`] is referring-expression comprehension as VLM-R1 evaluates it; [`baselines`] are the scores
//! that it must beat to mean anything. How text is sampled is `engine`'s duty, what an answer is
//! worth `rewards`'.

pub mod baselines;
pub mod rec;

pub use baselines::{best_constant_box, constant_box_ious, shuffled_images, true_boxes};
pub use rec::{RecAnswer, RecEvaluation, RecEvaluator, RecOptions, RecSummary};

use std::path::PathBuf;

/// Why an evaluation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to evaluate.
    #[error("nothing to evaluate: no rows")]
    NoRows,
    /// No answers asked for.
    #[error("`answers_per_question`: got 0, expected 1 or more")]
    NoAnswers,
    /// A row that this benchmark cannot use.
    #[error("{line}: {cause}")]
    Row {
        /// File and line.
        line: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Results that JSON cannot hold.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The data.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// The rewards.
    #[error(transparent)]
    Reward(#[from] rewards::RewardError),
    /// Sampling.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// Intervals.
    #[error(transparent)]
    Report(#[from] report::ReportError),
}
