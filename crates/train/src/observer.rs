//! Who a run tells how it goes, and who looks at its policy. What is measured, and how, is not known here.

use std::error::Error;
use std::path::Path;

use base::run_folder::StopFlag;
use models::VisionLanguageModel;
use serde_json::{Map, Value};

/// Hears of a run as it goes, and measures its policy.
pub trait Observer {
    /// The metrics of a finished step, `step` of `total_steps`.
    fn on_step(&mut self, step: u64, total_steps: u64, metrics: &Map<String, Value>);
    /// Something the user should read.
    fn on_message(&mut self, message: &str);

    /// Measures the policy where an evaluation is due. `None` where `policy.stop` was raised before the end. Whatever it
    /// measures, it must leave the weights as they are.
    ///
    /// # Errors
    /// Ends the run, with a checkpoint; the next process evaluates again before it goes on.
    fn evaluate(&mut self, _policy: &PolicyAt<'_>) -> Result<Option<Figures>, EvaluationError> {
        Ok(Some(Figures::new()))
    }
}

/// The policy after a step at which an evaluation is due.
pub struct PolicyAt<'a> {
    /// The weights in memory, adapters included.
    pub model: &'a dyn VisionLanguageModel,
    /// Steps done.
    pub step: u64,
    /// Where results may go.
    pub folder: &'a Path,
    /// The name that the folder gets when all of them are there.
    pub name: &'a Path,
    /// Raised where the run is to end: the evaluation is then broken off.
    pub stop: &'a StopFlag,
}

/// What was measured, by name.
pub type Figures = Vec<(String, f64)>;

/// Why it could not be measured.
pub type EvaluationError = Box<dyn Error + Send + Sync>;
