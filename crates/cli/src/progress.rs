//! A run as it goes: a bar on a terminal, else a line a step.

use std::time::{Duration, Instant};

use base::console::{self, AroundGuard};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use train::Observer;

const TEMPLATE: &str = "step {pos}/{len} {bar:30} {msg}";

/// Metrics that are shown, with how.
const SHOWN: [(&str, &str); 4] = [
    ("reward", "reward"),
    ("loss", "loss"),
    ("kl", "kl"),
    ("completion_length", "tokens"),
];

/// Has all that is said go around `bar`.
pub fn around_bar(bar: &ProgressBar) -> AroundGuard {
    let bar = bar.clone();
    console::around(move |speak| bar.suspend(speak))
}

/// Shows a run on stderr.
pub struct Progress {
    bar: ProgressBar,
    _around: AroundGuard,
    start: Instant,
    /// The first step that this process did: those before cost it no time.
    first: Option<u64>,
}

impl Progress {
    /// Nothing is shown before the first step.
    pub fn new() -> Self {
        let bar = ProgressBar::no_length();
        Self {
            _around: around_bar(&bar),
            bar,
            start: Instant::now(),
            first: None,
        }
    }

    /// Takes the bar down.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Runs what shows something of its own.
    pub fn suspend<R>(&self, other: impl FnOnce() -> R) -> R {
        // A bar that is suspended cannot be suspended again by what is said meanwhile.
        self.bar.suspend(|| {
            let _around = console::around(|speak| speak());
            other()
        })
    }

    /// Time that the steps left will take at the rate so far.
    fn remaining(&self, step: u64, total_steps: u64) -> Duration {
        let done = step + 1 - self.first.unwrap_or(step);
        let left = total_steps.saturating_sub(step);
        self.start.elapsed().mul_f64(left as f64 / done as f64)
    }
}

impl Observer for Progress {
    fn on_step(&mut self, step: u64, total_steps: u64, metrics: &Map<String, Value>) {
        if self.first.is_none() {
            self.first = Some(step);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                self.bar.set_style(style);
            }
            self.bar.set_length(total_steps);
        }
        let message = format!(
            "{}ETA {}",
            shown(metrics),
            clock(self.remaining(step, total_steps))
        );
        if self.bar.is_hidden() {
            console::show(&format!("step {step}/{total_steps} {message}"));
        } else {
            self.bar.set_message(message);
            self.bar.set_position(step);
        }
    }

    fn on_message(&mut self, message: &str) {
        console::show(message);
    }
}

/// `reward 0.5312 loss 0.0012 `
fn shown(metrics: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (key, name) in SHOWN {
        if let Some(value) = metrics.get(key).and_then(Value::as_f64) {
            text.push_str(&format!("{name} {value:.4} "));
        }
    }
    if let Some(secs) = metrics
        .get("secs")
        .and_then(|secs| secs.get("total"))
        .and_then(Value::as_f64)
    {
        text.push_str(&format!("{secs:.1} s "));
    }
    text
}

/// `1:02:03`
fn clock(duration: Duration) -> String {
    let secs = duration.as_secs();
    format!("{}:{:02}:{:02}", secs / 3_600, secs / 60 % 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_step_is_a_short_line() {
        let metrics =
            json!({"loss": 0.00123, "reward": 0.53125, "other": 1, "secs": {"total": 2.55}});
        assert_eq!(
            shown(metrics.as_object().unwrap()),
            "reward 0.5312 loss 0.0012 2.5 s "
        );
        assert_eq!(shown(&Map::new()), "");
        assert_eq!(clock(Duration::from_secs(3_723)), "1:02:03");
    }
}
