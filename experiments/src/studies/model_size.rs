//! Three sizes of model, each before and after the same reinforcement learning (table 7 in small).

use std::path::PathBuf;

use anyhow::Result;
use report::Table;
use serde_json::json;

use super::reward_hacking::{MIDDLE, run_name, train};
use super::{Kind, less, per_seed};
use crate::claims::Claim;
use crate::page::{Study, cell, chart};
use crate::rollouts::thinned;
use crate::runs::{Figures, Runs, Task};

pub const KIND: Kind = Kind {
    name: "model-size",
    work,
    page,
};

const WINDOW: usize = 8;

fn name_of(runs: &Runs<'_>, size: usize) -> &'static str {
    runs.lab.plan.shapes[size].0
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
    let base = runs.detection_base(size)?;
    let task = Task {
        name: &run_of(runs, size),
        model: &base,
        rows: runs.detection()?.join("train_hard.jsonl"),
        template: "odLength",
    };
    runs.grpo(
        &task,
        &runs.lab.plan.detection_grpo,
        json!({"reward_method": "odLength", "beta": 0.0, "save_total_limit": 1}),
    )
}

/// Figures of a size before and after.
fn figures(runs: &Runs<'_>, size: usize) -> Result<[Figures; 2]> {
    let name = name_of(runs, size);
    let before = runs.eval_detection(&format!("base-{name}"), &runs.detection_base(size)?)?;
    let after = runs.eval_detection(&format!("size-{name}"), &trained(runs, size)?)?;
    Ok([before, after])
}

fn work(runs: &Runs<'_>) -> Result<()> {
    for size in 0..runs.lab.plan.shapes.len() {
        figures(runs, size)?;
    }
    Ok(())
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let of = |size: usize, after: usize, metric: &str| {
        per_seed(runs, |seed| figures(seed, size)?[after].get(metric))
    };
    let shapes = runs.first().map(|seed| seed.lab.plan.shapes);
    let names = shapes
        .map(|shapes| shapes.map(|(name, _)| name))
        .unwrap_or_default();
    let metrics = ["ap", "ap50", "precision", "recall", "boxes"];
    let mut rows = Vec::new();
    for (size, name) in names.iter().enumerate() {
        for (after, when) in ["base", "RL"].into_iter().enumerate() {
            let mut row = vec![format!("{name}, {when}")];
            for metric in metrics {
                row.push(cell(&of(size, after, metric)?, 3));
            }
            rows.push(row);
        }
    }
    let lines = names.iter().enumerate().map(|(size, name)| {
        let curves = runs.iter().map(|seed| {
            let metrics =
                report::read_metrics(&seed.at(&run_of(seed, size)).join("metrics.jsonl"))?;
            let points: Vec<[f64; 2]> = metrics
                .iter()
                .filter_map(|row| {
                    Some([
                        row.get("step")?.as_f64()?,
                        row.get("rewards/accuracy")?.as_f64()?,
                    ])
                })
                .collect();
            Ok(thinned(&points, WINDOW))
        });
        Ok(((*name).to_owned(), curves.collect::<Result<_>>()?))
    });
    let lines = lines.collect::<Result<_>>()?;
    let mut claims = Vec::new();
    for (size, name) in names.iter().enumerate() {
        claims.push(Claim::new(
            &format!("{name}: RL ends above its base, AP"),
            less(&of(size, 1, "ap")?, &of(size, 0, "ap")?),
        ));
    }
    for (size, pair) in names.windows(2).enumerate() {
        let text = format!("after RL {} ends above {}, AP", pair[1], pair[0]);
        claims.push(Claim::new(
            &text,
            less(&of(size + 1, 1, "ap")?, &of(size, 1, "ap")?),
        ));
    }
    let header = ["model", "AP", "AP50", "precision", "recall", "boxes"];
    Ok(Study {
        name: KIND.name,
        title: "Size of the model",
        what: "Three sizes (about 0.2, 0.6 and 1.8 million parameters), each with the same steps of supervised \
               training as its base and the same steps of GRPO by odLength."
            .into(),
        paper: "On COCO_filtered RL lifts 3B from 14.2 to 21.1 mAP, 7B from 14.4 to 21.9 and 32B from 18.6 to 23.0; \
                on OVDEval from 25.46 to 31.01, 29.08 to 32.42 and 32.79 to 36.79 (table 7).",
        claims,
        tables: vec![(
            "Held-out pictures".into(),
            Table {
                header: header.map(str::to_owned).into(),
                rows,
                caption: String::new(),
            },
        )],
        charts: vec![chart("Reward by odLength in training", "step", "reward", lines)],
    })
}
