//! Logs a session's steps and its end with their alerts.

use base::metrics::{ALERTS, step_line};
use serde_json::{Map, Value, json};

use crate::TrainError;
use crate::session::Session;

impl Session<'_> {
    /// Logs the finished step, and the alerts that begin or end with it.
    pub(crate) fn log_step(&mut self, metrics: &Map<String, Value>) -> Result<(), TrainError> {
        let (step, total) = (self.progress.step, self.schedule.total_steps);
        let alerts = self.run.alerts.observe(step, metrics);
        let mut shown = metrics.clone();
        shown.insert(ALERTS.into(), json!(self.run.alerts.marks()));
        let Some(folder) = &self.run.folder else { return Ok(()) };
        folder.log_line(&step_line(step, total, &shown));
        self.run.observer.on_step(step, total, &shown);
        for alert in alerts {
            self.run.write(|folder| folder.log_alert(&alert.line()))?;
            self.log(&alert.text());
        }
        Ok(())
    }

    /// Logs at the end of the process what was learnt, and the active alerts.
    pub(crate) fn log_end(&mut self, is_finished: bool) -> Result<(), TrainError> {
        if is_finished {
            // The summary names those that begin only now.
            for alert in self.run.alerts.conclude(self.progress.step) {
                self.run.write(|folder| folder.log_alert(&alert.line()))?;
            }
        }
        for line in self.run.alerts.summary() {
            self.log(&line);
        }
        Ok(())
    }
}
