//! Three sizes of model, each before and after the same reinforcement learning (table 7 in small).

use std::path::PathBuf;

use anyhow::Result;

use super::reward_hacking::{MIDDLE, run_name, train};
use super::{Arms, Kind, line};
use crate::page::{Study, chart};
use crate::runs::{Metrics, Runs};

pub const KIND: Kind = Kind { name: "model-size", work, page };

fn name_of(runs: &Runs<'_>, size: usize) -> &'static str {
    runs.workspace.plan.shapes[size].0
}

/// The run of a size; that of the middle one belongs to all studies of detection.
fn run_of(runs: &Runs<'_>, size: usize) -> String {
    if size == MIDDLE {
        return run_name("odLength", 0.0);
    }
    format!("detection/odLength-{}", name_of(runs, size))
}

fn trained(runs: &Runs<'_>, size: usize) -> Result<PathBuf> {
    if size == MIDDLE {
        return train(runs, "odLength", 0.0);
    }
    let name = run_of(runs, size);
    runs.detection_grpo(&name, size, "train_hard.jsonl", "odLength", 0.0)
}

/// Metrics of a size before and after.
fn size_metrics(runs: &Runs<'_>, size: usize) -> Result<[Metrics; 2]> {
    let name = name_of(runs, size);
    let before = runs.eval_detection(&format!("base-{name}"), &runs.detection_base(size)?)?;
    let after = runs.eval_detection(&format!("size-{name}"), &trained(runs, size)?)?;
    Ok([before, after])
}

fn work(runs: &Runs<'_>) -> Result<()> {
    for size in 0..runs.workspace.plan.shapes.len() {
        size_metrics(runs, size)?;
    }
    Ok(())
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let names = runs.first().map(|seed| seed.workspace.plan.shapes.map(|(name, _)| name));
    let names = names.unwrap_or_default();
    let title = |size: usize, after: usize| format!("{}, {}", names[size], ["base", "RL"][after]);
    let both = (0..names.len()).flat_map(|size| [(size, 0), (size, 1)]);
    let arms = Arms::gather(
        runs,
        both.map(|(size, after)| (title(size, after), (size, after))),
        |seed, (size, after)| Ok(size_metrics(seed, size)?[after].clone()),
    )?;
    let mut claims = Vec::new();
    for (size, name) in names.iter().enumerate() {
        let text = format!("{name}: RL ends above its base, AP");
        claims.push(arms.claim(&text, "ap", &title(size, 1), &title(size, 0))?);
    }
    for (size, pair) in names.windows(2).enumerate() {
        let text = format!("after RL {} ends above {}, AP", pair[1], pair[0]);
        claims.push(arms.claim(&text, "ap", &title(size + 1, 1), &title(size, 1))?);
    }
    let lines =
        names.iter().enumerate().map(|(size, name)| line(runs, name, |seed| rewards(seed, size)));
    let lines = lines.collect::<Result<_>>()?;
    Ok(Study {
        name: KIND.name,
        title: "Size of the model",
        what: "Three sizes (0.2, 0.7 and 1.3 million parameters), each with the same steps of supervised \
               training as its base and the same steps of GRPO by odLength."
            .into(),
        paper: "On COCO_filtered RL lifts 3B from 14.2 to 21.1 mAP, 7B from 14.4 to 21.9 and 32B from 18.6 to 23.0; \
                on OVDEval from 25.46 to 31.01, 29.08 to 32.42 and 32.79 to 36.79 (table 7).",
        claims,
        tables: vec![arms.detection_table("model")?],
        charts: vec![chart(
            "Reward by odLength in training",
            "step",
            "reward",
            lines,
        )],
    })
}

/// Reward by odLength at each step.
fn rewards(runs: &Runs<'_>, size: usize) -> Result<Vec<[f64; 2]>> {
    let rows = report::read_metrics(&runs.at(&run_of(runs, size)).join("metrics.jsonl"))?;
    let value = |row: &report::training::MetricsRow, key: &str| row.get(key)?.as_f64();
    let point = |row| Some([value(row, "step")?, value(row, "rewards/accuracy")?]);
    Ok(rows.iter().filter_map(point).collect())
}
