//! A step as a line of the terminal and of `log.txt`: which metrics, in which order and form, says [`TABLE`].

use serde_json::{Map, Value};

use super::{Metric, Shown, TABLE, flat, reward_of};

/// The key of the active alerts in the metrics that are shown.
pub const ALERTS: &str = "alerts";

/// A step as a line: `step 3/40 reward 0.5312 loss 0.0012 2.5 s`, and the active alerts.
pub fn step_line(step: u64, total_steps: u64, metrics: &Map<String, Value>) -> String {
    let text = step_metrics(metrics);
    format!("step {step}/{total_steps} {text}").trim_end().to_owned()
}

/// [`step_line`] without the step: `reward 0.5312 loss 0.0012 2.5 s [no signal]`.
pub fn step_metrics(metrics: &Map<String, Value>) -> String {
    let values = flat(metrics);
    let mut parts = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for metric in TABLE.iter().filter(|metric| metric.shown != Shown::No) {
        // `loss` stands twice, once for each command.
        if !names.contains(&metric.name) {
            names.push(metric.name);
            parts.extend(part(metric, &values));
        }
    }
    let marks = metrics.get(ALERTS).and_then(Value::as_array);
    let marks: Vec<&str> = marks.into_iter().flatten().filter_map(Value::as_str).collect();
    if !marks.is_empty() {
        parts.push(format!("[{}]", marks.join(", ").replace('_', " ")));
    }
    parts.join(" ")
}

fn part(metric: &Metric, values: &[(String, &Value)]) -> Option<String> {
    let value = || {
        let found = values.iter().find(|(name, _)| name == metric.name);
        found.and_then(|(_, value)| value.as_f64())
    };
    match metric.shown {
        Shown::No => None,
        Shown::Named(word, decimals) => Some(format!("{word} {:.decimals$}", value()?)),
        Shown::WithUnit(decimals) => {
            Some(format!("{:.decimals$} {}", value()?, metric.unit.name()))
        }
        Shown::Parts(decimals) => {
            let each = values.iter().filter_map(|(name, value)| {
                Some(format!("{} {:.decimals$}", reward_of(name)?, value.as_f64()?))
            });
            let each: Vec<String> = each.collect();
            (each.len() > 1).then(|| format!("({})", each.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_is_a_short_line() {
        let mut metrics = json!({"loss": 0.00123, "reward": 0.53125, "other": 1, "secs": {"total": 2.55}, "alerts": []});
        let line = |metrics: &Value| step_line(3, 40, metrics.as_object().unwrap());
        assert_eq!(line(&metrics), "step 3/40 reward 0.5312 loss 0.0012 2.5 s");
        metrics[ALERTS] = json!(["no_signal", "all_cut_off"]);
        assert_eq!(
            line(&metrics),
            "step 3/40 reward 0.5312 loss 0.0012 2.5 s [no signal, all cut off]"
        );
        assert_eq!(line(&json!({})), "step 3/40");
        let metrics = json!({
            "completion_length": 64.0, "kl": 0.5, "reward": 1.25, "rewards/format": 0.9375,
            "rewards/accuracy": 0.3125, "rewards/accuracy/judge_asked": 7,
        });
        assert_eq!(
            line(&metrics),
            "step 3/40 reward 1.2500 (format 0.9375, accuracy 0.3125) kl 0.5000 tokens 64.0"
        );
        assert_eq!(
            line(&json!({"reward": 0.5, "rewards/accuracy": 0.5})),
            "step 3/40 reward 0.5000"
        );
    }
}
