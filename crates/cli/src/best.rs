//! `RUN@best`: the checkpoint that an evaluation of the run thinks best of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base::metrics::{self, Better};
use serde_json::Value;

use crate::which_model::look_at;

const METRICS: &str = "metrics.jsonl";
const PREFIX: &str = "eval/";
/// Held-out rows of `sft`.
const LOSS: &str = "loss";

/// A figure of the evaluations by step.
struct Curve {
    figure: String,
    points: Vec<(u64, f64)>,
}

impl Curve {
    fn less_is_better(&self) -> bool {
        let metric = metrics::find(&format!("{PREFIX}{}", self.figure));
        metric.is_some_and(|metric| metric.better == Better::Lower)
    }

    /// Of one of `--eval_config`: `val/accuracy`.
    fn is_of_an_evaluation(&self) -> bool {
        self.figure.contains('/') && evaluation(&self.figure) != "rewards"
    }

    /// The figure of the rows that were held out, not that of one of several rewards.
    fn is_of_held_out_rows(&self) -> bool {
        [LOSS, "reward"].contains(&self.figure.as_str())
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

/// The best of `checkpoints`, by the evaluation or figure `asked`, else by the first that the run has; says by which.
///
/// # Errors
/// Where the run was not evaluated, or not by that figure, and where no evaluated step has a checkpoint.
pub fn checkpoint(
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
            "run `{shown}` has no evaluation or figure `{}`\nhint: there are {}",
            asked.unwrap_or_default(),
            names(&curves).join(", ")
        )
    })?;
    let has_checkpoint = |step: u64| checkpoints.iter().any(|(of, _)| *of == step);
    let figure = &curve.figure;
    let Some((step, value)) = curve.best(has_checkpoint) else {
        bail!(
            "run `{shown}`: no step that was evaluated by `{figure}` has a checkpoint\n\
             hint: with --save_steps equal to --eval_steps each has one, unless --save_total_limit removes it"
        );
    };
    let found = checkpoints.iter().find(|(of, _)| *of == step);
    let folder = found.map(|(_, folder)| folder.clone()).context("a checkpoint that is gone")?;
    look_at(&folder)?;
    let count = curve.points.len();
    base::say!(
        "model `{shown}@best`: {}, by `{figure}` {value:.4}, the {} of {}{}",
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
    let of = |curve: &Curve| evaluation(&curve.figure).to_owned();
    let is_one = |curve: &&Curve| curve.is_of_an_evaluation() || curve.is_of_held_out_rows();
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
    curves.iter().map(|curve| format!("`{}`", curve.figure)).collect()
}

/// `val` of `val/accuracy`.
fn evaluation(figure: &str) -> &str {
    figure.split('/').next().unwrap_or(figure)
}

/// The figure that is asked for, or the first of the evaluation that is. Of those of `--eval_config` the first figure is
/// the one that the task is about; they go before held-out rows.
fn choose<'a>(curves: &'a [Curve], asked: Option<&str>) -> Option<&'a Curve> {
    match asked {
        Some(name) => curves
            .iter()
            .find(|curve| curve.figure == name)
            .or_else(|| curves.iter().find(|curve| evaluation(&curve.figure) == name)),
        None => {
            let named = curves.iter().find(|curve| curve.is_of_an_evaluation());
            named.or_else(|| curves.iter().find(|curve| curve.is_of_held_out_rows()))
        }
    }
}

/// The figures of all evaluations, in the order in which they were written.
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
        let (Some(step), Some(figures)) = (line["step"].as_u64(), line.as_object()) else {
            continue;
        };
        let of_evaluations = figures
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value.as_f64()?)));
        for (figure, value) in of_evaluations {
            match curves.iter_mut().find(|curve| curve.figure == figure) {
                Some(curve) => curve.points.push((step, value)),
                None => {
                    curves.push(Curve { figure: figure.to_owned(), points: vec![(step, value)] })
                }
            }
        }
    }
    Ok(curves)
}
