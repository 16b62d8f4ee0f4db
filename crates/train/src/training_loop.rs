//! The loop of a run, the same for `grpo` and `sft`: evaluate, step, log, checkpoint.

use serde_json::{Map, Value};

use crate::TrainError;
use crate::out_of_memory;
use crate::session::{Outcome, Session};

/// What a step of a run is.
pub(crate) trait Method {
    /// One batch: takes its prompts and updates the policy. Returns the step's metrics.
    ///
    /// # Errors
    /// What ends the run.
    fn step(&mut self, session: &mut Session<'_>) -> Result<Map<String, Value>, TrainError>;

    /// Metrics of the validation rows, each named `eval/..`; none without any.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] where the run is to end.
    fn validate(&mut self, session: &Session<'_>) -> Result<Map<String, Value>, TrainError>;

    /// The position in the data behind the prompts that were taken.
    fn cursor(&self) -> u64;
}

/// Trains until all steps are done or the run is stopped.
///
/// # Errors
/// What ended the run early; what was checkpointed stands.
pub(crate) fn train(
    mut session: Session<'_>,
    method: &mut impl Method,
) -> Result<Outcome, TrainError> {
    session.stop.begin();
    match steps(&mut session, method) {
        Ok(()) => session.outcome(),
        Err(error) => Err(session.fail(error)),
    }
}

fn steps(session: &mut Session<'_>, method: &mut impl Method) -> Result<(), TrainError> {
    // Before the first step, or where the last process was interrupted.
    session.evaluate(|session| method.validate(session))?;
    while session.goes_on() {
        let device = session.model.compute().1;
        let metrics = out_of_memory::step(device, || method.step(session))?;
        session.finish_step(metrics, method.cursor())?;
        session.evaluate(|session| method.validate(session))?;
    }
    Ok(())
}
