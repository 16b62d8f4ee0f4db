//! `eval`: a model answers questions.

mod progress;
mod run;
mod trained_as;
mod warnings;

use anyhow::Result;
use config::EvalConfig;

use crate::ranks::joined;

pub use progress::EvalProgress;
pub use run::name_odd_rows;
pub use trained_as::{TRAINED_AS, TrainedAs, file_of};
pub use warnings::Warned;

/// Evaluates; two evaluations are compared here where the front could not know that this is meant.
///
/// # Errors
/// Where a model or a file cannot be used, and where the evaluation was asked to stop.
pub fn eval(config: &EvalConfig) -> Result<()> {
    match config.run.compare.is_empty() {
        true => joined(&config.ranks, &config.machine.device, config.machine.num_threads)?
            .run(|joined| run::run(joined, config)),
        false => cli::commands::eval::compare(config),
    }
}
