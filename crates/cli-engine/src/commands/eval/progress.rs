//! An evaluation as it goes: a bar on a terminal, else a line for each tenth.

use std::time::{Duration, Instant};

use base::console::AroundGuard;
use eval_runner::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use cli::progress::around_bar;

const TEMPLATE: &str = "{prefix}{pos}/{len} completions {bar:30} ETA {eta}";

/// Shows on stderr how many completions are sampled.
pub struct EvalProgress {
    bar: ProgressBar,
    _around: AroundGuard,
    /// Completions that were there at the start.
    before: usize,
    start: Instant,
    tenths: usize,
    /// What stands before each line.
    label: String,
    /// The least time between two lines, and when the last was shown.
    pause: Duration,
    shown: Instant,
}

impl EvalProgress {
    /// Nothing is shown before the first completion; without a terminal, no line before `pause` is over.
    pub fn new(before: usize, label: String, pause: Duration) -> Self {
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_prefix(label.clone());
        bar.set_position(before as u64);
        bar.reset_eta();
        Self {
            _around: around_bar(&bar),
            bar,
            before,
            start: Instant::now(),
            tenths: 0,
            label,
            pause,
            shown: Instant::now(),
        }
    }

    /// Takes the bar down.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for EvalProgress {
    fn on_completion(&mut self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        let tenths = 10 * done / total.max(1);
        let is_new = tenths > self.tenths || done == total;
        if self.bar.is_hidden() && is_new && self.shown.elapsed() >= self.pause {
            (self.tenths, self.shown) = (tenths, Instant::now());
            let secs = self.start.elapsed().as_secs_f64();
            let rate = (done - self.before) as f64 / secs.max(1e-9);
            let left = (total - done) as f64 / rate;
            base::say!(
                "{}{done}/{total} completions, {rate:.1} a second, {left:.0} s left",
                self.label
            );
        }
    }

    fn on_bad(&mut self, place: &str, cause: &str) {
        base::say!("bad row: {place}: {cause}");
    }
}
