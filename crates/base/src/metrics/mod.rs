//! The metrics of a step, declared once: [`TABLE`]. The table of `docs/run-folder.md`, the line of a step, the tags of
//! TensorBoard and what several ranks make of their metrics all come from it. How a metric is computed is not known here.
//!
//! To add a metric, add an entry to `table.rs` and renew the page (`page.rs` says how).

mod page;
mod reduce;
mod step_line;
mod table;

use serde_json::{Map, Value};

pub use page::with_tables;
pub use reduce::{ReduceError, reduce};
pub use step_line::{ALERTS, step_line, step_metrics};
pub use table::TABLE;

/// A command that writes metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `vlm-r1 grpo`.
    Grpo,
    /// `vlm-r1 sft`.
    Sft,
}

/// All of them.
pub const COMMANDS: &[Command] = &[Command::Grpo, Command::Sft];

/// What a metric is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// No unit: a score, a norm, a rate.
    Number,
    /// A number of things that the help names.
    Count,
    /// From 0 to 1.
    Share,
    /// Nats.
    Nats,
    /// Tokens.
    Tokens,
    /// Tokens a second.
    TokensPerSec,
    /// Bytes.
    Bytes,
    /// Seconds.
    Secs,
}

impl Unit {
    /// Its name; empty for a plain number.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Number => "",
            Unit::Count => "count",
            Unit::Share => "share",
            Unit::Nats => "nats",
            Unit::Tokens => "tokens",
            Unit::TokensPerSec => "tokens/s",
            Unit::Bytes => "bytes",
            Unit::Secs => "s",
        }
    }
}

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Higher ones.
    Higher,
    /// Lower ones.
    Lower,
    /// It is no aim of the run.
    Neither,
}

/// What several ranks make of the values that each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// All have the same value, as they compute it from what they gathered before; another value is an error.
    Equal,
    /// Each has its part: a count, or a mean over the completions of all ranks to which it adds its own.
    Sum,
    /// The largest: the slowest rank, the fullest memory.
    Max,
    /// Rank 0 alone has it.
    Main,
}

/// Where the line of a step shows a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nowhere.
    No,
    /// `reward 0.5312`: a word and decimals.
    Named(&'static str, usize),
    /// `2.5 s`: decimals and the unit.
    WithUnit(usize),
    /// `(accuracy 0.3125, format 0.9375)`: all of a pattern, by what stands in its place, where there are several.
    Parts(usize),
}

/// A metric, or all that a pattern names.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The key of `metrics.jsonl`, and the tag of TensorBoard. Keys of an object within are joined by `/`. What stands in
    /// braces is any text: `rewards/{reward}`.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// Which values are better.
    pub better: Better,
    /// What ranks make of it.
    pub reduction: Reduction,
    /// The commands that write it.
    pub commands: &'static [Command],
    /// How the line of a step shows it.
    pub shown: Shown,
    /// Whether it measures the machine or the process (time, memory, caches), so that two equal runs differ in it.
    pub is_measured: bool,
    /// What it is, in Markdown.
    pub help: &'static str,
}

impl Metric {
    const fn new(
        name: &'static str,
        unit: Unit,
        reduction: Reduction,
        help: &'static str,
    ) -> Metric {
        Metric {
            name,
            unit,
            better: Better::Neither,
            reduction,
            commands: COMMANDS,
            shown: Shown::No,
            is_measured: false,
            help,
        }
    }

    const fn better(mut self, better: Better) -> Metric {
        self.better = better;
        self
    }

    const fn of(mut self, command: &'static [Command]) -> Metric {
        self.commands = command;
        self
    }

    const fn shown(mut self, shown: Shown) -> Metric {
        self.shown = shown;
        self
    }

    const fn measured(mut self) -> Metric {
        self.is_measured = true;
        self
    }

    /// Whether it is the metric of that name.
    pub fn is_called(&self, name: &str) -> bool {
        is_match(self.name, name)
    }

    /// Whether its name is a pattern.
    pub fn is_pattern(&self) -> bool {
        self.name.contains('{')
    }
}

fn is_match(pattern: &str, name: &str) -> bool {
    let Some((literal, rest)) = pattern.split_once('{') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(literal) else {
        return false;
    };
    let rest = rest.split_once('}').map_or("", |(_, rest)| rest);
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8());
    ends.into_iter().any(|end| is_match(rest, &name[end..]))
}

/// The metric of that name, the first that it fits.
pub fn find(name: &str) -> Option<&'static Metric> {
    TABLE.iter().find(|metric| metric.is_called(name))
}

/// As [`find`], among those that `command` writes.
pub fn find_of(command: Command, name: &str) -> Option<&'static Metric> {
    let of = |metric: &&Metric| metric.commands.contains(&command) && metric.is_called(name);
    TABLE.iter().find(of)
}

/// The reward whose mean `name` is: `accuracy` of `rewards/accuracy`. Counters of a reward are none.
pub fn reward_of(name: &str) -> Option<&str> {
    const MEAN: &str = "rewards/{reward}";
    let is_mean = find(name).is_some_and(|metric| metric.name == MEAN);
    name.strip_prefix("rewards/").filter(|_| is_mean)
}

/// The metrics of a step by name: those of an object within have their keys joined by `/`.
pub fn flat(metrics: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut all = Vec::with_capacity(metrics.len());
    flatten("", metrics, &mut all);
    all
}

fn flatten<'a>(prefix: &str, metrics: &'a Map<String, Value>, all: &mut Vec<(String, &'a Value)>) {
    for (key, value) in metrics {
        match value {
            Value::Object(inner) => flatten(&format!("{prefix}{key}/"), inner, all),
            value => all.push((format!("{prefix}{key}"), value)),
        }
    }
}

/// Names of a step's metrics that are not declared for `command`.
pub fn undeclared(command: Command, metrics: &Map<String, Value>) -> Vec<String> {
    let names = flat(metrics).into_iter().map(|(name, _)| name);
    names.filter(|name| find_of(command, name).is_none()).collect()
}

/// As [`undeclared`], where the command is not known: of the one that declares most of them.
pub fn undeclared_by_any(metrics: &Map<String, Value>) -> Vec<String> {
    let of_each = COMMANDS.iter().map(|command| undeclared(*command, metrics));
    of_each.min_by_key(Vec::len).unwrap_or_default()
}

/// Removes what measures the machine, so that the metrics of two equal runs are equal.
pub fn remove_measured(metrics: &mut Map<String, Value>) {
    let is_measured = |name: &str| find(name).is_some_and(|metric| metric.is_measured);
    metrics.retain(|name, value| match value {
        Value::Object(inner) => !inner.keys().all(|key| is_measured(&format!("{name}/{key}"))),
        _ => !is_measured(name),
    });
}

/// The entry of a name without a pattern; where there is none, the program does not compile if it is asked in a constant,
/// as [`metric!`](crate::metric!) does.
///
/// # Panics
/// If no entry has that name.
pub const fn declared(name: &str) -> &'static Metric {
    let mut index = 0;
    while index < TABLE.len() {
        if is_same(TABLE[index].name, name) {
            return &TABLE[index];
        }
        index += 1;
    }
    panic!("not declared in base/src/metrics/table.rs")
}

const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

/// The name of a declared metric. One that is not declared does not compile.
///
/// ```
/// assert_eq!(base::metric!("loss"), "loss");
/// ```
///
/// ```compile_fail
/// base::metric!("los");
/// ```
#[macro_export]
macro_rules! metric {
    ($name:literal) => {
        const { $crate::metrics::declared($name).name }
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_name_has_one_entry_in_a_command() {
        for (index, metric) in TABLE.iter().enumerate() {
            assert!(!metric.commands.is_empty() && !metric.help.is_empty(), "{}", metric.name);
            // Also none that an earlier pattern takes.
            let earlier = TABLE[..index].iter().filter(|other| other.is_called(metric.name));
            for other in earlier {
                let shared = other.commands.iter().any(|of| metric.commands.contains(of));
                assert!(!shared, "`{}` is `{}` too", metric.name, other.name);
            }
        }
    }

    #[test]
    fn patterns_take_texts_that_are_not_empty() {
        for (pattern, name, expected) in [
            ("loss", "loss", true),
            ("loss", "losses", false),
            ("rewards/{reward}", "rewards/accuracy", true),
            ("rewards/{reward}", "rewards/127.0.0.1/score", true),
            ("rewards/{reward}", "rewards/", false),
            ("rewards/{reward}/asked", "rewards/a/b/asked", true),
            ("rewards/{reward}/asked", "rewards/asked", false),
            ("eval/{evaluation}/{metric}", "eval/val/iou/0.5", true),
            ("eval/{evaluation}/{metric}", "eval/valé", false),
        ] {
            assert_eq!(is_match(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn counters_are_no_means() {
        assert_eq!(reward_of("rewards/127.0.0.1/score"), Some("127.0.0.1/score"));
        assert_eq!(reward_of("rewards/llm/judge_asked"), None);
        assert_eq!(reward_of("reward"), None);
        let asked = find("eval/rewards/llm/judge_asked").map(|metric| metric.unit);
        assert_eq!(asked, Some(Unit::Count));
    }

    #[test]
    fn what_a_command_does_not_write_is_not_declared_for_it() {
        let metrics = object(&json!({
            "step": 1, "loss": 0.5, "reward": null, "secs": {"total": 1.0, "lunch": 9.0}, "los": 1,
        }));
        assert_eq!(undeclared(Command::Grpo, &metrics), ["secs/lunch", "los"]);
        assert_eq!(undeclared(Command::Sft, &metrics), ["reward", "secs/lunch", "los"]);
        assert_eq!(undeclared_by_any(&metrics), ["secs/lunch", "los"]);
        assert_eq!(find_of(Command::Sft, "loss").map(|m| m.better), Some(Better::Lower));
        assert_eq!(find_of(Command::Grpo, "loss").map(|m| m.better), Some(Better::Neither));
    }

    #[test]
    fn two_equal_runs_differ_in_what_is_measured_alone() {
        let mut metrics = object(&json!({
            "step": 1, "loss": 0.5, "live_bytes": 7, "feature_cache/hits": 1, "secs": {"total": 1.0},
            "tokens_per_sec": 3.0, "oom_retries": 0, "other": {"x": 1},
        }));
        remove_measured(&mut metrics);
        let rest = json!({"step": 1, "loss": 0.5, "oom_retries": 0, "other": {"x": 1}});
        assert_eq!(Value::Object(metrics), rest);
    }
}
