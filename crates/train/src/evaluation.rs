//! Evaluations during a run: held-out rows, and whatever the observer measures.
//!
//! A step that is to be evaluated is logged once its figures are there. Until then its metrics wait, in a checkpoint too:
//! an evaluation that was broken off is made up for before the next step.

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::observer::PolicyAt;
use crate::session::Session;
use crate::{TrainError, out_of_memory};

/// EvalMetrics that are named in a message.
const MAX_SAID: usize = 8;

impl Session<'_> {
    /// Whether an evaluation is due after the steps that are done.
    pub fn evaluation_is_due(&self) -> bool {
        let last = self.step == self.schedule.total_steps;
        match self.step {
            0 => self.settings.eval_on_start,
            step => self
                .settings
                .eval_every
                .map(|every| every.steps(self.steps_per_epoch))
                .is_some_and(|every| step.is_multiple_of(every) || last),
        }
    }

    /// Evaluates where that is due, and logs the step that waits for it. `score_validation` scores the rows that were held out.
    ///
    /// # Errors
    /// What `score_validation` and the observer say, and a figure that is not finite: with a checkpoint, so that nothing is lost.
    pub fn evaluate(
        &mut self,
        score_validation: impl FnOnce(&Session<'_>) -> Result<Map<String, Value>, TrainError>,
    ) -> Result<(), TrainError> {
        let Some(mut metrics) = self.waiting.take() else {
            return Ok(());
        };
        // Another process may have begun the step with other settings.
        if !self.evaluation_is_due() {
            return self.publish(&metrics);
        }
        let start = Instant::now();
        match self.figures(score_validation) {
            Ok(figures) => {
                self.log_eval_metrics(&figures);
                metrics.extend(figures);
                book(&mut metrics, start.elapsed().as_secs_f64());
                // The next step is not to answer for the time and memory of this.
                self.clock.restart();
                torch::reset_peak_live_bytes(self.model.compute().1);
                self.publish(&metrics)?;
                // A signal that came too late to break it off.
                if self.stop.is_raised() {
                    self.keep()?;
                }
                Ok(())
            }
            Err(TrainError::Stopped) => {
                self.waiting = Some(metrics);
                self.keep()
            }
            Err(error) => {
                // It is made up for by the next process.
                self.waiting = Some(metrics);
                Err(error)
            }
        }
    }

    fn figures(
        &mut self,
        score_validation: impl FnOnce(&Session<'_>) -> Result<Map<String, Value>, TrainError>,
    ) -> Result<Map<String, Value>, TrainError> {
        if self.stop.is_raised() {
            return Err(TrainError::Stopped);
        }
        let device = self.model.compute().1;
        let mut figures = out_of_memory::step(device, || score_validation(self))?;
        let pending = self.run.begin_evaluation(self.step)?;
        let policy = PolicyAt {
            model: self.model.as_ref(),
            step: self.step,
            folder: pending.path(),
            name: pending.name(),
            stop: &self.stop,
        };
        let (step, observer) = (self.step, &mut self.observer);
        let measured = out_of_memory::step(device, || {
            observer.evaluate(&policy).map_err(|source| TrainError::Evaluation { step, source })
        })?;
        let measured = measured.ok_or(TrainError::Stopped)?;
        for (name, value) in &measured {
            if !value.is_finite() {
                let (name, value) = (name.clone(), *value);
                return Err(TrainError::EvalMetric { step, name, value });
            }
            figures.insert(format!("eval/{name}"), json!(value));
        }
        if !measured.is_empty() {
            pending.commit()?;
        }
        Ok(figures)
    }

    fn log_eval_metrics(&mut self, figures: &Map<String, Value>) {
        if figures.is_empty() {
            return;
        }
        let said = figures.iter().take(MAX_SAID).filter_map(|(name, value)| {
            let name = name.strip_prefix("eval/").unwrap_or(name);
            Some(format!("{name} {:.4}", value.as_f64()?))
        });
        let said = said.collect::<Vec<_>>().join(", ");
        let more = figures.len().saturating_sub(MAX_SAID);
        let more = match more {
            0 => String::new(),
            more => format!(", and {more} more in metrics.jsonl"),
        };
        self.log(&format!("evaluated after step {}: {said}{more}", self.step));
    }
}

/// Adds the time of the evaluation to that of the step.
fn book(metrics: &mut Map<String, Value>, secs: f64) {
    let all = metrics.entry("secs").or_insert_with(|| json!({}));
    if let Value::Object(all) = all {
        let total = all.get("total").and_then(Value::as_f64).unwrap_or_default();
        all.insert("evaluation".into(), json!(secs));
        all.insert("total".into(), json!(total + secs));
    }
}
