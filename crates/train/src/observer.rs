//! Callbacks of a training run: progress, messages, evaluation. This crate knows nothing about the metrics of an evaluation.

use std::error::Error;
use std::path::Path;

use base::run_folder::StopFlag;
use models::VisionLanguageModel;
use serde_json::{Map, Value};

/// Callbacks of a training run.
pub trait Observer {
    /// The metrics of a finished step, `step` of `total_steps`.
    fn on_step(&mut self, step: u64, total_steps: u64, metrics: &Map<String, Value>);
    /// Something the user should read.
    fn on_message(&mut self, message: &str);

    /// Evaluates the policy. `None` where `policy.stop` was raised before the end. It must not change the weights.
    ///
    /// # Errors
    /// Ends the run with a checkpoint; the next process repeats the evaluation.
    fn evaluate(&mut self, _policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>, EvaluationError> {
        Ok(Some(EvalMetrics::new()))
    }
}

/// The key of the active alerts in the metrics shown.
pub(crate) const MARKS: &str = "alerts";

/// The metrics of a step's line, and their names there.
const SHOWN: [(&str, &str); 4] =
    [("reward", "reward"), ("loss", "loss"), ("kl", "kl"), ("completion_length", "tokens")];

/// A step as a line: `step 3/40 reward 0.5312 loss 0.0012 2.5 s`, and the active alerts.
pub fn step_line(step: u64, total_steps: u64, metrics: &Map<String, Value>) -> String {
    let text = step_metrics(metrics);
    format!("step {step}/{total_steps} {text}").trim_end().to_owned()
}

/// [`step_line`] without the step: `reward 0.5312 loss 0.0012 2.5 s [no signal]`.
pub fn step_metrics(metrics: &Map<String, Value>) -> String {
    let mut parts = Vec::new();
    for (key, name) in SHOWN {
        if let Some(value) = metrics.get(key).and_then(Value::as_f64) {
            parts.push(match key {
                "completion_length" => format!("{name} {value:.1}"),
                _ => format!("{name} {value:.4}"),
            });
        }
        if key == "reward" {
            parts.extend(rewards_by_name(metrics));
        }
    }
    let secs = metrics.get("secs").and_then(|secs| secs.get("total"));
    if let Some(secs) = secs.and_then(Value::as_f64) {
        parts.push(format!("{secs:.1} s"));
    }
    let marks = metrics.get(MARKS).and_then(Value::as_array);
    let marks: Vec<&str> = marks.into_iter().flatten().filter_map(Value::as_str).collect();
    if !marks.is_empty() {
        parts.push(format!("[{}]", marks.join(", ").replace('_', " ")));
    }
    parts.join(" ")
}

/// `(accuracy 0.3125, format 0.9375)`, where the reward is the sum of several.
fn rewards_by_name(metrics: &Map<String, Value>) -> Option<String> {
    let each = metrics.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("rewards/")?;
        Some(format!("{name} {:.4}", value.as_f64()?))
    });
    let each: Vec<String> = each.collect();
    (each.len() > 1).then(|| format!("({})", each.join(", ")))
}

/// The policy after a step at which an evaluation is due.
pub struct PolicyAt<'a> {
    /// The weights in memory, adapters included.
    pub model: &'a dyn VisionLanguageModel,
    /// Steps done.
    pub step: u64,
    /// A folder for results.
    pub folder: &'a Path,
    /// The folder's name once it is complete.
    pub name: &'a Path,
    /// Raised to end the run: the evaluation should then stop.
    pub stop: &'a StopFlag,
}

/// Metrics of an evaluation, by name.
pub type EvalMetrics = Vec<(String, f64)>;

/// Why an evaluation failed.
pub type EvaluationError = Box<dyn Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_step_is_a_short_line() {
        let mut metrics = json!({"loss": 0.00123, "reward": 0.53125, "other": 1, "secs": {"total": 2.55}, "alerts": []});
        let line = |metrics: &Value| step_line(3, 40, metrics.as_object().unwrap());
        assert_eq!(line(&metrics), "step 3/40 reward 0.5312 loss 0.0012 2.5 s");
        metrics[MARKS] = json!(["no_signal", "all_cut_off"]);
        assert_eq!(
            line(&metrics),
            "step 3/40 reward 0.5312 loss 0.0012 2.5 s [no signal, all cut off]"
        );
        assert_eq!(line(&json!({})), "step 3/40");
        let metrics = json!({
            "reward": 1.25, "rewards/accuracy": 0.3125, "rewards/format": 0.9375, "completion_length": 64.0,
        });
        assert_eq!(
            line(&metrics),
            "step 3/40 reward 1.2500 (accuracy 0.3125, format 0.9375) tokens 64.0"
        );
        assert_eq!(
            line(&json!({"reward": 0.5, "rewards/accuracy": 0.5})),
            "step 3/40 reward 0.5000"
        );
    }
}
