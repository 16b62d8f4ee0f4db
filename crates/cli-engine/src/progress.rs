//! A run as it goes: a bar on a terminal, else a line a step.

use std::time::{Duration, Instant};

use base::console::{self, AroundGuard};
use base::metrics::{step_line, step_metrics};
use cli::progress::around_bar;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use train::Observer;

const TEMPLATE: &str = "step {pos}/{len} {bar:30} {msg}";

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
        Self { _around: around_bar(&bar), bar, start: Instant::now(), first: None }
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
        let eta = clock(self.remaining(step, total_steps));
        if self.bar.is_hidden() {
            let line = step_line(step, total_steps, metrics);
            console::show(&format!("{line} ETA {eta}"));
        } else {
            let text = step_metrics(metrics);
            self.bar.set_message(format!("{text} ETA {eta}"));
            self.bar.set_position(step);
        }
    }

    fn on_message(&mut self, message: &str) {
        console::show(message);
    }
}

/// `1:02:03`
fn clock(duration: Duration) -> String {
    let secs = duration.as_secs();
    format!("{}:{:02}:{:02}", secs / 3_600, secs / 60 % 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_told_in_hours() {
        assert_eq!(clock(Duration::from_secs(3_723)), "1:02:03");
    }
}
