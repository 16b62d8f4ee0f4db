//! `RUN@best`: the checkpoint that an evaluation of the run rates best.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base::metrics::{self, Better};
use serde_json::Value;

use crate::which_model::verify_checkpoint;

const METRICS: &str = "metrics.jsonl";
const PREFIX: &str = "eval/";
/// Validation loss of `sft`.
const LOSS: &str = "loss";

/// A metric of the evaluations by step.
struct Curve {
    metric: String,
    points: Vec<(u64, f64)>,
}

impl Curve {
    fn less_is_better(&self) -> bool {
        let declared = metrics::find(&format!("{PREFIX}{}", self.metric));
        declared.is_some_and(|metric| metric.better == Better::Lower)
    }

    /// Of one of `--eval_config`: `val/accuracy`.
    fn is_of_an_evaluation(&self) -> bool {
        self.metric.contains('/') && evaluation(&self.metric) != "rewards"
    }

    /// The metric of the validation rows, not that of one of several rewards.
    fn is_of_validation_rows(&self) -> bool {
        [LOSS, "reward"].contains(&self.metric.as_str())
    }

    /// The best of those that `counts`; of equal ones the first.
    fn best(&self, counts: impl Fn(u64) -> bool) -> Option<(u64, f64)> {
        let points = self.points.iter().filter(|(step, _)| counts(*step));
        let sign = if self.less_is_better() { -1.0 } else { 1.0 };
        points.copied().reduce(|best, point| match sign * point.1 > sign * best.1 {
            true => point,
            false => best,
        })
    }
}

/// The best of `checkpoints`, by the evaluation or metric `asked`, else by the first that the run has; says by which.
///
/// # Errors
/// Where the run was not evaluated, or not by that metric, and where no evaluated step has a checkpoint.
pub fn best_checkpoint(
    run: &Path,
    checkpoints: &[(u64, PathBuf)],
    asked: Option<&str>,
) -> Result<PathBuf> {
    let shown = run.display();
    let curves = curves(run)?;
    if curves.is_empty() {
        bail!(
            "run `{shown}` was not evaluated: which checkpoint is best is not known\nhint: `{shown}` is its newest, \
             `{shown}@N` that of step N; a run with --eval_steps and --eval_config or --val_split_ratio is evaluated"
        );
    }
    let curve = choose(&curves, asked).with_context(|| {
        format!(
            "run `{shown}` has no evaluation or metric `{}`\nhint: there are {}",
            asked.unwrap_or_default(),
            names(&curves).join(", ")
        )
    })?;
    let has_checkpoint = |step: u64| checkpoints.iter().any(|(of, _)| *of == step);
    let metric = &curve.metric;
    let Some((step, value)) = curve.best(has_checkpoint) else {
        bail!(
            "run `{shown}`: no step that was evaluated by `{metric}` has a checkpoint\n\
             hint: with --save_steps equal to --eval_steps each has one, unless --save_total_limit removes it"
        );
    };
    let found = checkpoints.iter().find(|(of, _)| *of == step);
    let folder = found.map(|(_, folder)| folder.clone()).context("a checkpoint that is gone")?;
    verify_checkpoint(&folder)?;
    let count = curve.points.len();
    base::say!(
        "model `{shown}@best`: {}, by `{metric}` {value:.4}, the {} of {}{}",
        folder.display(),
        if curve.less_is_better() { "least" } else { "highest" },
        base::console::count(count as u64, "evaluation"),
        others(&curves, curve, asked)
    );
    if let Some((better, of)) = curve.best(|_| true).filter(|(better, _)| *better != step) {
        base::say!("note: step {better} was better ({of:.4}) and has no checkpoint");
    }
    Ok(folder)
}

/// That there are other evaluations by which another could be best.
fn others(curves: &[Curve], chosen: &Curve, asked: Option<&str>) -> String {
    let of = |curve: &Curve| evaluation(&curve.metric).to_owned();
    let is_one = |curve: &&Curve| curve.is_of_an_evaluation() || curve.is_of_validation_rows();
    let mut names: Vec<String> = curves.iter().filter(is_one).map(of).collect();
    names.dedup();
    names.retain(|name| *name != of(chosen));
    match names.as_slice() {
        [] => String::new(),
        _ if asked.is_some() => String::new(),
        names => format!("; by another: `@best:{}`", names.join("`, `@best:")),
    }
}

fn names(curves: &[Curve]) -> Vec<String> {
    curves.iter().map(|curve| format!("`{}`", curve.metric)).collect()
}

/// `val` of `val/accuracy`.
fn evaluation(metric: &str) -> &str {
    metric.split('/').next().unwrap_or(metric)
}

/// The metric that is asked for, or the first of the evaluation that is. Of those of `--eval_config` the first metric is
/// the one that the task is about; they go before those of the validation rows.
fn choose<'a>(curves: &'a [Curve], asked: Option<&str>) -> Option<&'a Curve> {
    match asked {
        Some(name) => curves
            .iter()
            .find(|curve| curve.metric == name)
            .or_else(|| curves.iter().find(|curve| evaluation(&curve.metric) == name)),
        None => {
            let named = curves.iter().find(|curve| curve.is_of_an_evaluation());
            named.or_else(|| curves.iter().find(|curve| curve.is_of_validation_rows()))
        }
    }
}

/// The metrics of all evaluations, in the order in which they were written.
fn curves(run: &Path) -> Result<Vec<Curve>> {
    let path = run.join(METRICS);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut curves: Vec<Curve> = Vec::new();
    // A line that is torn or broken is told where the run goes on.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for line in lines {
        let (Some(step), Some(metrics)) = (line["step"].as_u64(), line.as_object()) else {
            continue;
        };
        let of_evaluations = metrics
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value.as_f64()?)));
        for (metric, value) in of_evaluations {
            match curves.iter_mut().find(|curve| curve.metric == metric) {
                Some(curve) => curve.points.push((step, value)),
                None => {
                    curves.push(Curve { metric: metric.to_owned(), points: vec![(step, value)] })
                }
            }
        }
    }
    Ok(curves)
}
