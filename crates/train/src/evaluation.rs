//! Evaluations during a run: the validation rows, and what the observer measures.
//!
//! A step that is evaluated is logged with the evaluation's metrics. Until then its own metrics wait, in a checkpoint too, so an
//! interrupted evaluation is repeated before the next step.

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::observer::{PolicyAt, ResultsAt};
use crate::session::Session;
use crate::{TrainError, out_of_memory};

/// Metrics named in a message.
const MAX_LOGGED: usize = 8;

impl Session<'_> {
    /// Whether an evaluation is due after the steps that are done.
    pub fn evaluation_is_due(&self) -> bool {
        let last = self.progress.step == self.schedule.total_steps;
        match self.progress.step {
            0 => self.settings.sections.eval.eval_on_start,
            step => self
                .settings
                .eval_interval()
                .map(|every| every.steps(self.progress.steps_per_epoch))
                .is_some_and(|every| step.is_multiple_of(every) || last),
        }
    }

    /// Evaluates where that is due, and logs the step that waits for it.
    ///
    /// # Errors
    /// Those of `score_validation` and the observer, and a metric that is not finite; a checkpoint is written, so that nothing is lost.
    pub fn evaluate(
        &mut self,
        score_validation: impl FnOnce(&Session<'_>) -> Result<Map<String, Value>, TrainError>,
    ) -> Result<(), TrainError> {
        let Some(mut metrics) = self.run.waiting.take() else {
            return Ok(());
        };
        // Another process may have begun the step with other settings.
        if !self.evaluation_is_due() {
            let published = self.publish(&metrics);
            return self.agree("metrics are written", published);
        }
        let start = Instant::now();
        match self.eval_metrics(score_validation) {
            Ok(eval_metrics) => {
                self.log_eval_metrics(&eval_metrics);
                metrics.extend(eval_metrics);
                book(&mut metrics, start.elapsed().as_secs_f64());
                // Time and memory of the evaluation do not count for the next step.
                self.clock.restart();
                torch::reset_peak_live_bytes(self.model.compute().1);
                let published = self.publish(&metrics);
                self.agree("metrics are written", published)?;
                // A signal that came too late to interrupt it.
                self.vote_on_stop()?;
                if self.stops() {
                    self.keep()?;
                }
                Ok(())
            }
            Err(TrainError::Stopped) => {
                self.run.waiting = Some(metrics);
                self.keep()
            }
            Err(error) => {
                // The next process repeats it.
                self.run.waiting = Some(metrics);
                Err(error)
            }
        }
    }

    fn eval_metrics(
        &mut self,
        score_validation: impl FnOnce(&Session<'_>) -> Result<Map<String, Value>, TrainError>,
    ) -> Result<Map<String, Value>, TrainError> {
        if self.stops() {
            return Err(TrainError::Stopped);
        }
        self.ranks.world.at(&format!("evaluation after step {}", self.progress.step));
        let device = self.model.compute().1;
        let mut metrics = out_of_memory::step(device, || score_validation(self))?;
        let step = self.progress.step;
        let pending = self.run.write(|folder| folder.begin_evaluation(step).map(Some));
        let pending = self.agree("an evaluation is begun", pending)?;
        let results = pending.as_ref();
        let policy = PolicyAt {
            model: self.model.as_ref(),
            step,
            results: results.map(|at| ResultsAt { folder: at.path(), name: at.name() }),
            world: self.ranks.world.as_ref(),
            stop: &self.stop,
        };
        let observer = &mut self.run.observer;
        let measured = out_of_memory::step(device, || {
            let measured = observer.evaluate(&policy);
            measured
                .map_err(|source| TrainError::Evaluation { step, source })?
                .ok_or(TrainError::Stopped)
        });
        let measured = self.agree("an evaluation", measured)?;
        let measured = self.ranks.of_main("metrics of an evaluation", &measured)?;
        for (name, value) in &measured {
            if !value.is_finite() {
                let (name, value) = (name.clone(), *value);
                return Err(TrainError::EvalMetric { step, name, value });
            }
            metrics.insert(format!("eval/{name}"), json!(value));
        }
        let committed = match pending {
            Some(pending) if !measured.is_empty() => pending.commit().map(drop),
            _ => Ok(()),
        };
        self.agree("an evaluation is whole", committed.map_err(TrainError::from))?;
        Ok(metrics)
    }

    fn log_eval_metrics(&mut self, metrics: &Map<String, Value>) {
        if metrics.is_empty() {
            return;
        }
        let logged = metrics.iter().take(MAX_LOGGED).filter_map(|(name, value)| {
            let name = name.strip_prefix("eval/").unwrap_or(name);
            Some(format!("{name} {:.4}", value.as_f64()?))
        });
        let logged = logged.collect::<Vec<_>>().join(", ");
        let more = metrics.len().saturating_sub(MAX_LOGGED);
        let more = match more {
            0 => String::new(),
            more => format!(", and {more} more in metrics.jsonl"),
        };
        self.log(&format!("evaluated after step {}: {logged}{more}", self.progress.step));
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
