//! `eval`: a model answers questions, or two that have are compared.

mod compare;
mod compare_page;
pub mod page;
mod pictures;
mod progress;
mod run;
mod trained_as;
mod warnings;

use anyhow::Result;
use config::EvalConfig;

pub use progress::Answers;
pub use run::name_odd_rows;
pub use trained_as::{TRAINED_AS, TrainedAs, file_of};
pub use warnings::Warned;

/// Evaluates, or compares two evaluations.
///
/// # Errors
/// Where a model or a file cannot be used, and where the evaluation was asked to stop.
pub fn eval(config: &EvalConfig) -> Result<()> {
    match config.run.compare.as_slice() {
        [before, after] => {
            compare::compare(before, after, config.run.html.as_deref(), config.run.html_rows)
        }
        _ => run::run(config),
    }
}
