//! Alerts: signs that a run learns nothing though no step fails. They read only the metrics of steps; `rules.rs` has the table of
//! thresholds.
//!
//! A resumed run rebuilds its alerts from `metrics.jsonl` and `alerts.jsonl` ([`Alerts::of_run`]). With `--logging_steps` above 1 it then
//! knows only the earlier steps that were logged.

mod logging;
mod rules;

use std::collections::VecDeque;
use std::path::PathBuf;

use base::metric;
use base::run_folder::{RunError, RunFolder};
use serde_json::{Map, Value, json};

use rules::{Found, RULES, Rule, Step, Tally, WINDOW, mean};

/// An alert that began or is over.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its name.
    pub name: &'static str,
    /// Steps done.
    pub step: u64,
    /// Whether it is over.
    pub is_over: bool,
    /// What was counted.
    evidence: Map<String, Value>,
    /// What was found, why, and what to try.
    pub message: String,
}

impl Alert {
    /// A line of `alerts.jsonl`.
    pub fn line(&self) -> Value {
        let mut line = Map::new();
        line.insert("step".into(), self.step.into());
        line.insert("alert".into(), self.name.into());
        let state = if self.is_over { "over" } else { "on" };
        line.insert("state".into(), state.into());
        line.extend(self.evidence.clone());
        line.insert("message".into(), self.message.as_str().into());
        Value::Object(line)
    }

    /// What the user reads.
    pub fn text(&self) -> String {
        let (name, step) = (self.name, self.step);
        if self.is_over {
            format!("alert `{name}` is over after step {step}: {}", self.message)
        } else {
            format!("alert `{name}` after step {step}: {}", self.message)
        }
    }
}

/// A rule that is true, since when and why.
#[derive(Clone, Debug)]
struct Active {
    since: u64,
    message: String,
}

/// The alerts of a run, fed with the metrics of each step.
#[derive(Clone, Debug, Default)]
pub struct Alerts {
    /// The newest steps.
    window: VecDeque<Step>,
    num_steps: u64,
    /// What each rule counted since the start, and over how many steps.
    since_start: [(Tally, u64); RULES.len()],
    active: [Option<Active>; RULES.len()],
    learnt: Learnt,
    /// The run's folder.
    run: PathBuf,
}

impl Alerts {
    /// Those of a run as far as it is logged.
    ///
    /// # Errors
    /// Where the run's files cannot be read.
    pub fn of_run(run: &RunFolder) -> Result<Self, RunError> {
        let mut alerts = Self { run: run.path().to_owned(), ..Self::default() };
        run.each_step(|metrics| {
            let step = metrics.get("step").and_then(Value::as_u64);
            alerts.count(step.unwrap_or_default(), &metrics);
        })?;
        run.each_alert(|line| {
            let named = |rule: &Rule| line.get("alert").and_then(Value::as_str) == Some(rule.name);
            // One of another version, which nothing here would end.
            let Some(index) = RULES.iter().position(named) else {
                return;
            };
            let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default();
            alerts.active[index] = (text("state") == "on").then(|| Active {
                since: line.get("step").and_then(Value::as_u64).unwrap_or_default(),
                message: text("message").to_owned(),
            });
        })?;
        Ok(alerts)
    }

    /// Takes the metrics of a step; returns the alerts that begin or end with it.
    pub fn observe(&mut self, step: u64, metrics: &Map<String, Value>) -> Vec<Alert> {
        self.count(step, metrics);
        self.judge(step, WINDOW)
    }

    /// At the end of a run: one that is shorter than rules look back is judged by all its steps.
    pub fn conclude(&mut self, step: u64) -> Vec<Alert> {
        if self.num_steps < WINDOW as u64 { self.judge(step, 1) } else { Vec::new() }
    }

    /// The names of those that are on, for the line of a step.
    pub fn marks(&self) -> Vec<&'static str> {
        let active = RULES.iter().zip(&self.active);
        active.filter_map(|(rule, active)| active.as_ref().map(|_| rule.name)).collect()
    }

    /// What a run ends with: what was learnt, and the alerts that are on.
    pub fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.learnt.text().into_iter().collect();
        for (rule, active) in RULES.iter().zip(&self.active) {
            if let Some(Active { since, message }) = active {
                let name = rule.name;
                lines.push(format!("alert `{name}`, on since step {since}: {message}"));
            }
        }
        lines
    }

    fn count(&mut self, step: u64, metrics: &Map<String, Value>) {
        self.learnt.add(step, metrics);
        let facts = Step::read(step, metrics);
        // What was measured before the first step, or by a version that did not count.
        if facts.tallies.iter().all(Option::is_none) {
            return;
        }
        for ((tally, steps), new) in self.since_start.iter_mut().zip(&facts.tallies) {
            if let Some(new) = new {
                tally.add(*new);
                *steps += 1;
            }
        }
        self.num_steps += 1;
        self.window.push_back(facts);
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
    }

    /// Asks all rules, about no fewer than `min_steps`.
    fn judge(&mut self, step: u64, min_steps: usize) -> Vec<Alert> {
        let steps: &[Step] = self.window.make_contiguous();
        let mut alerts = Vec::new();
        for (index, rule) in RULES.iter().enumerate() {
            let (tally, num_steps) = find(rule, index, steps, self.since_start[index]);
            let found = Found { tally, steps, num_steps, run: &self.run };
            let Some(share) = found.tally.share() else {
                continue;
            };
            let active = &mut self.active[index];
            let is_on = share < rule.until
                && match active {
                    Some(_) => share >= rule.over_below,
                    None => share >= rule.from,
                };
            if found.num_steps < min_steps as u64 || is_on == active.is_some() {
                continue;
            }
            let alert = tell(rule, step, &found, share, is_on);
            *active = is_on.then(|| Active { since: step, message: alert.message.clone() });
            alerts.push(alert);
        }
        alerts
    }
}

/// What a rule counts in the steps that it looks at, and how many these are.
fn find(rule: &Rule, index: usize, steps: &[Step], all: (Tally, u64)) -> (Tally, u64) {
    if rule.since_start {
        return all;
    }
    let (mut tally, mut num_steps) = (Tally::default(), 0);
    for new in steps.iter().filter_map(|step| step.tallies[index]) {
        tally.add(new);
        num_steps += 1;
    }
    (tally, num_steps)
}

fn tell(rule: &Rule, step: u64, found: &Found<'_>, share: f64, is_on: bool) -> Alert {
    let mut evidence = Map::new();
    evidence.insert("share".into(), json!(share));
    evidence.insert("count".into(), json!(found.tally.hits));
    evidence.insert("of".into(), json!(found.tally.of));
    evidence.insert("steps".into(), json!(found.num_steps));
    evidence.insert("reward".into(), json!(found.reward()));
    let message = if is_on { (rule.says)(found) } else { found.counted() };
    Alert { name: rule.name, step, is_over: !is_on, evidence, message }
}

/// What shows learning, first one that a run has.
const LEARNT: [&str; 2] = [metric!("reward"), metric!("loss")];

/// A metric at the start and at the end of a run.
#[derive(Clone, Debug, Default)]
struct Learnt {
    metric: Option<&'static str>,
    first: Vec<(u64, f64)>,
    last: VecDeque<(u64, f64)>,
    count: usize,
}

impl Learnt {
    fn add(&mut self, step: u64, metrics: &Map<String, Value>) {
        let has = |name: &&str| metrics.get(*name).is_some_and(Value::is_number);
        let Some(metric) = self.metric.or(LEARNT.into_iter().find(has)) else {
            return;
        };
        self.metric = Some(metric);
        let Some(value) = metrics.get(metric).and_then(Value::as_f64) else {
            return;
        };
        self.count += 1;
        if self.first.len() < WINDOW {
            self.first.push((step, value));
        }
        self.last.push_back((step, value));
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
    }

    /// `reward 0.1023 over steps 1 to 20, 0.3124 over steps 281 to 300`
    fn text(&self) -> Option<String> {
        let metric = self.metric?;
        // Short runs are halved, so that the two do not overlap.
        let width = (self.count / 2).clamp(1, WINDOW);
        let of = |values: &[(u64, f64)]| {
            let (from, to) = (values.first()?.0, values.last()?.0);
            let mean = mean(values.iter().map(|(_, value)| *value))?;
            Some(if from == to {
                format!("{mean:.4} in step {from}")
            } else {
                format!("{mean:.4} over steps {from} to {to}")
            })
        };
        let last: Vec<(u64, f64)> = self.last.iter().copied().collect();
        let start = of(&self.first[..width.min(self.first.len())])?;
        if self.count == 1 {
            return Some(format!("{metric} {start}"));
        }
        let end = of(&last[last.len().saturating_sub(width)..])?;
        Some(format!("{metric} {start}, {end}"))
    }
}

#[cfg(test)]
mod tests;
