//! The rules: a table of thresholds, and for each rule what it counts and what it says.

use std::path::Path;

use base::metric;
use base::metrics::reward_of;
use serde_json::{Map, Value};

/// Steps that a rule looks back on. Before the run ends, it is not judged on fewer.
pub(super) const WINDOW: usize = 20;

/// How many a rule counted and of how many, over the steps that it looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub hits: u64,
    pub of: u64,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.of += other.of;
    }

    /// None where there was nothing to count.
    pub fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.hits as f64 / self.of as f64)
    }
}

/// The metrics of a step that rules read.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Steps done.
    pub step: u64,
    /// Mean of the weighted sum.
    pub reward: Option<f64>,
    /// Mean of each reward; `None` where it gave no completion a score.
    pub rewards: Vec<(String, Option<f64>)>,
    /// What each rule counts, in the order of [`RULES`]; `None` where the metrics lack it.
    pub tallies: [Option<Tally>; RULES.len()],
}

impl Step {
    /// Reads the metrics of a step.
    pub fn read(step: u64, metrics: &Map<String, Value>) -> Self {
        let mean = |(name, value): (&String, &Value)| {
            let is_mean = value.is_number() || value.is_null();
            let reward = reward_of(name).filter(|_| is_mean)?;
            Some((reward.to_owned(), value.as_f64()))
        };
        let count = |name: &str| metrics.get(name).and_then(Value::as_u64);
        Self {
            step,
            reward: metrics.get(metric!("reward")).and_then(Value::as_f64),
            rewards: metrics.iter().filter_map(mean).collect(),
            tallies: RULES.map(|rule| {
                let (hits, of) = (count(rule.hits)?, count(rule.of)?);
                Some(Tally { hits, of })
            }),
        }
    }
}

/// What a rule found in the steps that it looked at.
pub(super) struct Found<'a> {
    pub tally: Tally,
    /// The newest of these steps, at most [`WINDOW`].
    pub steps: &'a [Step],
    /// How many there are.
    pub num_steps: u64,
    /// The run's folder, as the user named it.
    pub run: &'a Path,
}

impl Found<'_> {
    /// Mean of the weighted sum over the newest steps.
    pub fn reward(&self) -> Option<f64> {
        mean(self.steps.iter().filter_map(|step| step.reward))
    }

    /// The rewards by name, in the order of the metrics.
    fn names(&self) -> impl Iterator<Item = &str> {
        let last = self.steps.last().map_or(&[][..], |step| &step.rewards);
        last.iter().map(|(name, _)| name.as_str())
    }

    /// Mean of each reward over the newest steps, of those that gave any score.
    fn rewards(&self) -> Vec<(&str, f64)> {
        let of = |name: &str| {
            let all = self.steps.iter().flat_map(|step| &step.rewards);
            mean(all.filter(|(other, _)| other == name).filter_map(|(_, mean)| *mean))
        };
        self.names().filter_map(|name| Some((name, of(name)?))).collect()
    }

    /// The rewards that returned `None` for every completion; empty where nothing was sampled.
    fn silent(&self) -> Vec<&str> {
        if self.reward().is_none() {
            return Vec::new();
        }
        let heard = self.rewards();
        self.names().filter(|name| heard.iter().all(|(other, _)| other != name)).collect()
    }

    /// `77 of 80 (96.2 %) over 20 steps`
    pub fn counted(&self) -> String {
        let Tally { hits, of } = self.tally;
        let percent = 100.0 * self.tally.share().unwrap_or_default();
        let steps = if self.num_steps == 1 { "step" } else { "steps" };
        format!("{hits} of {of} ({percent:.1} %) over {} {steps}", self.num_steps)
    }

    /// A command that shows the rollouts of the last step.
    fn rollouts(&self) -> String {
        let step = self.steps.last().map_or(0, |step| step.step);
        let file = self.run.join(format!("rollouts/step_{step:06}.jsonl"));
        let file = file.display().to_string();
        let file = match file.contains(|c: char| !c.is_ascii_alphanumeric() && !"/._-+".contains(c))
        {
            true => format!("'{}'", file.replace('\'', r"'\''")),
            false => file,
        };
        format!("`vlm-r1 reward --input {file} --explain true` with the run's rewards")
    }

    /// What that command is for.
    fn explained(&self) -> String {
        format!("{} shows what they read of the completions", self.rollouts())
    }
}

/// When an alert is on, and its message.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// Its name in `alerts.jsonl`, and in the line of a step with spaces.
    pub name: &'static str,
    /// The metric that is counted.
    hits: &'static str,
    /// The metric that has the total.
    of: &'static str,
    /// The share at which the alert begins.
    pub from: f64,
    /// The share below which it is over: lower than `from`, so that a share near the limit does not start it again and again.
    pub over_below: f64,
    /// The share from which a stronger alert takes its place.
    pub until: f64,
    /// Whether all steps since the start count, not only the last [`WINDOW`].
    pub since_start: bool,
    /// What was found, why, and what to try.
    pub says: fn(&Found<'_>) -> String,
}

/// All thresholds.
pub(super) const RULES: [Rule; 4] = [
    Rule {
        name: "no_signal",
        hits: metric!("zero_spread_groups"),
        of: metric!("groups"),
        from: 0.9,
        over_below: 0.85,
        until: f64::INFINITY,
        since_start: false,
        says: no_signal,
    },
    Rule {
        name: "all_cut_off",
        hits: metric!("cut_off_completions"),
        of: metric!("completions"),
        from: 0.9,
        over_below: 0.85,
        until: f64::INFINITY,
        since_start: false,
        says: cut_off,
    },
    Rule {
        name: "many_cut_off",
        hits: metric!("cut_off_completions"),
        of: metric!("completions"),
        from: 0.5,
        over_below: 0.45,
        until: 0.9,
        since_start: false,
        says: cut_off,
    },
    Rule {
        name: "reward_zero",
        hits: metric!("zero_reward_completions"),
        of: metric!("completions"),
        from: 1.0,
        over_below: 1.0,
        until: f64::INFINITY,
        since_start: true,
        says: reward_zero,
    },
];

/// How far a mean reward may be from 0 or 1 for all completions to be called wrong or right.
const ALIKE: f64 = 0.1;

/// What it means that a reward gives no score.
const SILENT: &str = "None says that a reward does not apply to a row, and counts as 0";

fn no_signal(found: &Found<'_>) -> String {
    let silent = found.silent();
    if !silent.is_empty() && silent.len() == found.names().count() {
        return format!(
            "groups whose rewards are all equal: {}; no reward gave a score, {} returned None for every completion: {SILENT}, so nothing is learnt\nhint: {}",
            found.counted(),
            silent.join(", "),
            unasked(found),
        );
    }
    let mut means = found.rewards();
    if means.is_empty() {
        means.extend(found.reward().map(|mean| ("reward", mean)));
    }
    let every = |of: &dyn Fn(f64) -> bool| !means.is_empty() && means.iter().all(|(_, m)| of(*m));
    let (which, hint) = if every(&|mean| mean <= ALIKE) {
        let hint = "easier data, a higher --temperature, more --num_generations or a cold start by `vlm-r1 sft`";
        ("all wrong", format!("{hint}; {}", found.explained()))
    } else if every(&|mean| mean >= 1.0 - ALIKE) {
        let hint = "harder data, or stop here: the model answers these questions; a higher --temperature makes completions differ";
        ("all right", hint.to_owned())
    } else {
        let hint = "a higher --temperature, more --num_generations, or --reward_funcs that tell completions apart";
        ("all alike", format!("{hint}; {}", found.explained()))
    };
    let means: Vec<String> = means
        .iter()
        .map(|(name, mean)| format!("{name} {mean:.4}"))
        .chain(silent.iter().map(|name| format!("{name} None for every completion")))
        .collect();
    format!(
        "groups whose rewards are all equal: {}; they have no advantages, so nothing is learnt from them: {which}, mean {}\nhint: {hint}",
        found.counted(),
        means.join(", "),
    )
}

fn cut_off(found: &Found<'_>) -> String {
    format!(
        "completions cut off at --max_completion_length: {}; they often have no answer yet and are scored without one\nhint: a higher --max_completion_length, a --question_template that asks for less, a lower --temperature, or a cold start by `vlm-r1 sft` where the model never ends a completion",
        found.counted(),
    )
}

fn unasked(found: &Found<'_>) -> String {
    format!(
        "check what each reward needs of a row before it scores (a column, an accuracy method, a form of the solution); {} shows the columns of the rows",
        found.rollouts()
    )
}

fn reward_zero(found: &Found<'_>) -> String {
    let silent = found.silent();
    if !silent.is_empty() && silent.len() == found.names().count() {
        return format!(
            "no reward gave any completion a score: {}; {} returned None for each: {SILENT}\nhint: {}",
            found.counted(),
            silent.join(", "),
            unasked(found),
        );
    }
    format!(
        "every reward of every completion is 0 since the start: {}; either no completion is right or the rewards do not fit the data\nhint: {}; compare --reward_funcs, --task_type and --is_reward_customized_from_vlm_module with the form of the solutions, or take easier data",
        found.counted(),
        found.explained(),
    )
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u64);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}
