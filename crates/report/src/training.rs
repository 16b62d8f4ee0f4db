//! From `metrics.jsonl` to curves.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ReportError;
use crate::svg::{Colour, LineChart, Series};

/// One step of `metrics.jsonl`.
pub type MetricsRow = Map<String, Value>;

/// Reads `metrics.jsonl`, one object a line; empty lines are passed over.
///
/// # Errors
/// Where the file cannot be read, and on a line that is no JSON object.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsRow>, ReportError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ReportError::Io { path: path.to_owned(), source })?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|source| ReportError::Metrics {
                path: path.to_owned(),
                line: index + 1,
                source,
            })
        })
        .collect()
}

/// How a metric is shown.
struct Shown {
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    colour: Colour,
    from_zero: bool,
}

const fn shown(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    colour: Colour,
    from_zero: bool,
) -> Shown {
    Shown { key, title, unit, colour, from_zero }
}

/// Metrics with a chart of their own, in the order of the page.
const SHOWN: [Shown; 8] = [
    shown("reward", "Reward", "mean sum of rewards", Colour::Blue, true),
    shown("rewards/accuracy", "Accuracy reward", "mean", Colour::Green, true),
    shown("rewards/format", "Format reward", "mean", Colour::Purple, true),
    shown("kl", "KL to the reference", "nats per token", Colour::Orange, true),
    shown("completion_length", "Completion length", "mean tokens", Colour::Teal, true),
    shown("loss", "Loss", "", Colour::Red, false),
    shown("grad_norm", "Gradient norm", "before clipping", Colour::Grey, true),
    shown("entropy", "Entropy", "nats per token", Colour::Orange, true),
];

/// The curves of a run over its steps: reward, each single reward, KL, completion length, loss,
/// gradient norm, entropy. `accuracy_title` says what the accuracy reward is, such as `IoU`.
///
/// A metric that no row has gets no chart; one that a step has as `null` gets a gap there.
pub fn training_charts(rows: &[MetricsRow], accuracy_title: Option<&str>) -> Vec<LineChart> {
    let is_shown = |key: &str| SHOWN.iter().any(|shown| shown.key == key);
    let mut other_rewards: Vec<&str> = rows
        .iter()
        .flat_map(|row| row.keys())
        .map(String::as_str)
        .filter(|key| key.starts_with("rewards/") && !is_shown(key))
        .collect();
    other_rewards.sort_unstable();
    other_rewards.dedup();

    let mut charts = Vec::new();
    for shown in &SHOWN {
        let title = match (shown.key, accuracy_title) {
            ("rewards/accuracy", Some(title)) => title,
            _ => shown.title,
        };
        charts.extend(chart_of(rows, shown, shown.key, title));
        if shown.key == "rewards/format" {
            for key in &other_rewards {
                let shown = shown_reward();
                let name = key.trim_start_matches("rewards/");
                charts.extend(chart_of(rows, &shown, key, &format!("Reward `{name}`")));
            }
        }
    }
    charts
}

const fn shown_reward() -> Shown {
    shown("", "", "mean", Colour::Blue, true)
}

/// The reward over the steps, for a README; `None` where no row has a reward.
pub fn reward_curve(rows: &[MetricsRow]) -> Option<LineChart> {
    chart_of(rows, &SHOWN[0], SHOWN[0].key, SHOWN[0].title)
}

fn chart_of(rows: &[MetricsRow], shown: &Shown, key: &str, title: &str) -> Option<LineChart> {
    let points = points(rows, key);
    if !points.iter().any(|point| point[1].is_finite()) {
        return None;
    }
    let window = smoothing_window(points.len());
    let mut y_label = shown.unit.to_owned();
    let mut series = Series::new(title, shown.colour, points);
    if window > 1 {
        let separator = if y_label.is_empty() { "" } else { "; " };
        y_label += &format!("{separator}line: mean of {window} steps, faint: each step");
        series = series.smoothed(window);
    }
    Some(LineChart {
        title: title.to_owned(),
        x_label: "step".to_owned(),
        y_label,
        series: vec![series],
        y_includes: if shown.from_zero { vec![0.0] } else { vec![] },
    })
}

/// `[step, value]` of every row that has the metric; NaN where it is not a number.
fn points(rows: &[MetricsRow], key: &str) -> Vec<[f64; 2]> {
    rows.iter()
        .filter_map(|row| {
            let step = row.get("step")?.as_f64()?;
            let value = row.get(key)?;
            Some([step, value.as_f64().unwrap_or(f64::NAN)])
        })
        .collect()
}

/// An odd number of steps, about a fifteenth of the run; 1 (none) for runs under 20 steps.
fn smoothing_window(num_points: usize) -> usize {
    if num_points < 20 {
        return 1;
    }
    2 * (num_points / 30).max(1) + 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(values: &[Value]) -> Vec<MetricsRow> {
        values.iter().map(|value| value.as_object().expect("an object").clone()).collect()
    }

    #[test]
    fn metrics_that_are_there_get_charts_in_order() {
        let rows = rows(&[
            json!({"step": 1, "loss": 0.1, "reward": 0.5, "rewards/length": 1.0}),
            json!({"step": 2, "loss": 0.2, "reward": null, "rewards/accuracy": 0.25}),
            json!({"step": 3, "loss": 0.3, "reward": 1.5, "kl": null}),
        ]);
        let charts = training_charts(&rows, Some("IoU"));
        let titles: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["Reward", "IoU", "Reward `length`", "Loss"]);
        let reward = &charts[0].series[0].points;
        assert_eq!((reward[0], reward[2]), ([1.0, 0.5], [3.0, 1.5]));
        assert!(reward[1][1].is_nan());
        assert_eq!(reward_curve(&rows).map(|c| c.title), Some("Reward".to_owned()));
        assert!(reward_curve(&[]).is_none());
    }

    #[test]
    fn long_runs_are_smoothed_and_say_so() {
        let rows: Vec<MetricsRow> = (1..=300)
            .map(|step| {
                let row = json!({"step": step, "reward": step % 2});
                row.as_object().expect("an object").clone()
            })
            .collect();
        let chart = reward_curve(&rows).expect("a reward");
        assert!(chart.y_label.contains("mean of 21 steps"), "{}", chart.y_label);
        let middle = chart.series[0].points[150][1];
        assert!((middle - 0.5).abs() < 0.03, "{middle}");
        assert_eq!(chart.series[0].raw[150], [151.0, 1.0]);
    }
}
