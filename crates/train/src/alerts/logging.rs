//! Logs a session's steps and its end with their alerts.

use base::metrics::{ALERTS, step_line};
use serde_json::{Map, Value, json};

use crate::TrainError;
use crate::session::Session;

impl Session<'_> {
    /// Logs the finished step, and the alerts that begin or end with it.
    pub(crate) fn log_step(&mut self, metrics: &Map<String, Value>) -> Result<(), TrainError> {
        let (step, total) = (self.step, self.schedule.total_steps);
        let alerts = self.alerts.observe(step, metrics);
        let mut shown = metrics.clone();
        shown.insert(ALERTS.into(), json!(self.alerts.marks()));
        self.run.log_line(&step_line(step, total, &shown));
        self.observer.on_step(step, total, &shown);
        for alert in alerts {
            self.run.log_alert(&alert.line())?;
            self.log(&alert.text());
        }
        Ok(())
    }

    /// Logs at the end of the process what was learnt, and the active alerts.
    pub(crate) fn log_end(&mut self, is_finished: bool) -> Result<(), TrainError> {
        if is_finished {
            // The summary names those that begin only now.
            for alert in self.alerts.conclude(self.step) {
                self.run.log_alert(&alert.line())?;
            }
        }
        for line in self.alerts.summary() {
            self.log(&line);
        }
        Ok(())
    }
}
