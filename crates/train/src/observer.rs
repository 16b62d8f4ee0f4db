//! Callbacks of a training run: progress, messages, evaluation. This crate knows nothing about the metrics of an evaluation.

use std::error::Error;
use std::path::Path;

use base::run_folder::StopFlag;
use base::world::World;
use models::VisionLanguageModel;
use serde_json::{Map, Value};

/// Callbacks of a training run.
pub trait Observer {
    /// The metrics of a finished step, `step` of `total_steps`.
    fn on_step(&mut self, step: u64, total_steps: u64, metrics: &Map<String, Value>);
    /// Something the user should read.
    fn on_message(&mut self, message: &str);

    /// Evaluates the policy, on all ranks at once; the metrics of rank 0 count. `None` where `policy.stop` was raised before the end. It must not change the weights.
    ///
    /// # Errors
    /// Ends the run with a checkpoint; the next process repeats the evaluation.
    fn evaluate(&mut self, _policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>, EvaluationError> {
        Ok(Some(EvalMetrics::new()))
    }
}

/// The policy after a step at which an evaluation is due.
pub struct PolicyAt<'a> {
    /// The weights in memory, adapters included.
    pub model: &'a dyn VisionLanguageModel,
    /// Steps done.
    pub step: u64,
    /// Where results go; none on ranks above 0.
    pub results: Option<ResultsAt<'a>>,
    /// The ranks that evaluate together.
    pub world: &'a dyn World,
    /// Raised to end the run: the evaluation should then stop.
    pub stop: &'a StopFlag,
}

/// Where results of an evaluation go.
#[derive(Clone, Copy, Debug)]
pub struct ResultsAt<'a> {
    /// A folder for them.
    pub folder: &'a Path,
    /// The folder's name once it is complete.
    pub name: &'a Path,
}

/// Metrics of an evaluation, by name.
pub type EvalMetrics = Vec<(String, f64)>;

/// Why an evaluation failed.
pub type EvaluationError = Box<dyn Error + Send + Sync>;
