//! Hard descriptions with near misses as training data, against plain categories that are all there
//! (table 6 in small).

use std::path::PathBuf;

use anyhow::Result;
use report::Table;
use serde_json::json;

use super::reward_hacking::{MIDDLE, base_figures, figures, run_name};
use super::{Kind, less, per_seed};
use crate::claims::Claim;
use crate::page::{Study, cell, chart};
use crate::rollouts::{by_step, mean_of, thinned};
use crate::runs::{Figures, Runs, Task};

pub const KIND: Kind = Kind {
    name: "data-quality",
    work: |runs| {
        base_figures(runs)?;
        figures(runs, "odLength", 0.0)?;
        plain_figures(runs).map(|_| ())
    },
    page,
};

const PLAIN: &str = "detection/odLength-plain";
const WINDOW: usize = 8;

fn plain(runs: &Runs<'_>) -> Result<PathBuf> {
    let base = runs.detection_base(MIDDLE)?;
    let task = Task {
        name: PLAIN,
        model: &base,
        rows: runs.detection()?.join("train_plain.jsonl"),
        template: "odLength",
    };
    runs.grpo(
        &task,
        &runs.lab.plan.detection_grpo,
        json!({"reward_method": "odLength", "beta": 0.0, "save_total_limit": 1}),
    )
}

fn plain_figures(runs: &Runs<'_>) -> Result<Figures> {
    let model = plain(runs)?;
    runs.eval_detection("odLength-plain", &model)
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let of = |arm: &str, metric: &str| {
        per_seed(runs, |seed| match arm {
            "base" => base_figures(seed)?.get(metric),
            "hard" => figures(seed, "odLength", 0.0)?.get(metric),
            _ => plain_figures(seed)?.get(metric),
        })
    };
    let metrics = ["ap", "ap50", "precision", "recall", "boxes"];
    let mut rows = Vec::new();
    for (arm, title) in [
        ("base", "base"),
        ("plain", "plain categories, all there"),
        ("hard", "hard descriptions, near misses"),
    ] {
        let mut row = vec![title.to_owned()];
        for metric in metrics {
            row.push(cell(&of(arm, metric)?, 3));
        }
        rows.push(row);
    }
    let steps = runs
        .first()
        .map_or(0, |seed| seed.lab.plan.detection_grpo.steps);
    let lines = [
        ("hard", run_name("odLength", 0.0)),
        ("plain", PLAIN.to_owned()),
    ]
    .map(|(name, run)| {
        let curves = runs.iter().map(|seed| {
            let points = by_step(&seed.at(&run), steps, |step| {
                mean_of(step, |c| c.num_boxes() as f64)
            })?;
            Ok(thinned(&points, WINDOW))
        });
        Ok((name.to_owned(), curves.collect::<Result<_>>()?))
    });
    let lines = lines.into_iter().collect::<Result<_>>()?;
    let claims = vec![
        Claim::new(
            "hard data ends above plain data, AP",
            less(&of("hard", "ap")?, &of("plain", "ap")?),
        ),
        Claim::new(
            "hard data ends above plain data, precision",
            less(&of("hard", "precision")?, &of("plain", "precision")?),
        ),
        Claim::new(
            "plain data ends below the base (base less plain), AP",
            less(&of("base", "ap")?, &of("plain", "ap")?),
        ),
    ];
    let header = [
        "training data",
        "AP",
        "AP50",
        "precision",
        "recall",
        "boxes",
    ];
    Ok(Study {
        name: KIND.name,
        title: "Quality of the training data",
        what: format!(
            "{steps} steps of GRPO by odLength from one base model, on the same pictures. The hard questions ask for \
             colour and kind and name near misses that are not there; the plain ones ask for kinds, all of which \
             are there. Held-out questions are hard."
        ),
        paper: "Training on D3 (hard descriptions, negatives) reaches 21.1 mAP and 31.01 NMS-AP; on plain COCO data \
                12.6 and 24.48, below the base's 14.2 and 25.46 (table 6).",
        claims,
        tables: vec![(
            "Held-out pictures".into(),
            Table {
                header: header.map(str::to_owned).into(),
                rows,
                caption: String::new(),
            },
        )],
        charts: vec![chart(
            "Boxes of an answer in training",
            "step",
            "boxes",
            lines,
        )],
    })
}
