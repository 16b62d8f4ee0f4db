//! The time of a step by phase.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// Seconds by phase of the current step.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    phases: RefCell<BTreeMap<&'static str, f64>>,
}

impl Clock {
    pub fn new() -> Self {
        Clock { start: Instant::now(), phases: RefCell::default() }
    }

    /// Runs `work` and adds its time to `phase`.
    pub fn time<R>(&self, phase: &'static str, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.book(phase, start.elapsed());
        result
    }

    /// Adds time to `phase`.
    pub fn book(&self, phase: &'static str, time: Duration) {
        *self.phases.borrow_mut().entry(phase).or_default() += time.as_secs_f64();
    }

    /// Seconds since the step began.
    pub fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Restarts the total and keeps the phases since the last lap: a checkpoint is written after its step's metrics, so its time is in the
    /// next line.
    pub fn restart(&mut self) {
        self.start = Instant::now();
    }

    /// Seconds so far by phase and in all; starts anew.
    pub fn lap(&mut self) -> Map<String, Value> {
        let mut secs: Map<String, Value> = self
            .phases
            .take()
            .into_iter()
            .map(|(name, secs)| (name.to_string(), json!(secs)))
            .collect();
        secs.insert("total".into(), json!(self.start.elapsed().as_secs_f64()));
        self.start = Instant::now();
        secs
    }
}
