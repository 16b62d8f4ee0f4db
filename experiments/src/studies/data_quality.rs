//! Hard descriptions with near misses as training data, against plain categories that are all there
//! (table 6 in small).

use anyhow::Result;

use super::reward_hacking::{MIDDLE, base_metrics, method_metrics, run_name, steps};
use super::{Arms, Kind, line};
use crate::page::{Study, chart};
use crate::rollouts::{by_step, mean_of};
use crate::runs::{Metrics, Runs};

pub const KIND: Kind = Kind {
    name: "data-quality",
    work: |runs| {
        base_metrics(runs)?;
        method_metrics(runs, "odLength", 0.0)?;
        plain_metrics(runs).map(|_| ())
    },
    page,
};

const PLAIN: &str = "detection/odLength-plain";

fn plain_metrics(runs: &Runs<'_>) -> Result<Metrics> {
    let model = runs.detection_grpo(PLAIN, MIDDLE, "train_plain.jsonl", "odLength", 0.0)?;
    runs.eval_detection("odLength-plain", &model)
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    const BASE: &str = "base";
    const EASY: &str = "plain categories, all there";
    const HARD: &str = "hard descriptions, near misses";
    let arms = Arms::gather(
        runs,
        [BASE, EASY, HARD].map(|title| (title.to_owned(), title)),
        |seed, arm| match arm {
            HARD => method_metrics(seed, "odLength", 0.0),
            EASY => plain_metrics(seed),
            _ => base_metrics(seed),
        },
    )?;
    let steps = steps(runs);
    let boxes = |title: &str, run: &str| {
        line(runs, title, |seed| {
            by_step(&seed.at(run), steps, |step| mean_of(step, |c| c.num_boxes() as f64))
        })
    };
    let lines = vec![boxes("hard", &run_name("odLength", 0.0))?, boxes("plain", PLAIN)?];
    Ok(Study {
        name: KIND.name,
        title: "Quality of the training data",
        what: format!(
            "{steps} steps of GRPO by odLength from one base model, on the same images. The hard questions ask for \
             colour and kind and name near misses that are not there; the plain ones ask for kinds, all of which \
             are there. Held-out questions are hard."
        ),
        paper: "Training on D3 (hard descriptions, negatives) reaches 21.1 mAP and 31.01 NMS-AP; on plain COCO data \
                12.6 and 24.48, below the base's 14.2 and 25.46 (table 6).",
        claims: vec![
            arms.claim("hard data ends above plain data, AP", "ap", HARD, EASY)?,
            arms.claim("hard data ends above plain data, precision", "precision", HARD, EASY)?,
            arms.claim("plain data ends below the base, AP", "ap", BASE, EASY)?,
        ],
        tables: vec![arms.detection_table("training data")?],
        charts: vec![chart("Boxes of a completion in training", "step", "boxes", lines)],
    })
}
