//! Rewards of detection that are hacked, and one that is not, with and without a weight on the
//! divergence from the base (figure 6 and table 5 in small).

use std::path::PathBuf;

use anyhow::Result;
use report::Table;
use serde_json::json;

use super::{Kind, less, per_seed};
use crate::claims::Claim;
use crate::page::{Study, cell, chart};
use crate::rollouts::{by_step, mean_of, thinned};
use crate::runs::{Figures, Runs, Task};

pub const KIND: Kind = Kind {
    name: "reward-hacking",
    work,
    page,
};

/// Accuracy methods of detection.
const METHODS: [&str; 4] = ["od_ap50", "od_ap", "odLength", "map_strict"];
/// Weights on the divergence.
const BETAS: [f64; 2] = [0.0, 0.04];
/// Size of the model: that of all studies but one.
pub const MIDDLE: usize = 1;
/// Steps that a point of a curve is the mean of.
const WINDOW: usize = 8;

/// One arm.
#[derive(Clone, Copy)]
struct Arm {
    method: &'static str,
    beta: f64,
}

impl Arm {
    fn all() -> impl Iterator<Item = Self> {
        BETAS
            .into_iter()
            .flat_map(|beta| METHODS.map(|method| Self { method, beta }))
    }

    fn title(self) -> String {
        format!("{}, beta {}", self.method, self.beta)
    }
}

/// Name of the run that learns by `method`.
pub fn run_name(method: &str, beta: f64) -> String {
    format!("detection/{method}-beta-{beta}")
}

/// Reinforcement learning by one method on the hard rows; the folder of the last checkpoint.
///
/// # Errors
/// A run that fails.
pub fn train(runs: &Runs<'_>, method: &str, beta: f64) -> Result<PathBuf> {
    let base = runs.detection_base(MIDDLE)?;
    let task = Task {
        name: &run_name(method, beta),
        model: &base,
        rows: runs.detection()?.join("train_hard.jsonl"),
        template: "odLength",
    };
    runs.grpo(
        &task,
        &runs.lab.plan.detection_grpo,
        json!({"reward_method": method, "beta": beta, "save_total_limit": 1}),
    )
}

/// Figures of the base model.
///
/// # Errors
/// A run that fails.
pub fn base_figures(runs: &Runs<'_>) -> Result<Figures> {
    runs.eval_detection("base-middle", &runs.detection_base(MIDDLE)?)
}

/// Figures of the model that `method` trained.
///
/// # Errors
/// A run that fails.
pub fn figures(runs: &Runs<'_>, method: &str, beta: f64) -> Result<Figures> {
    let model = train(runs, method, beta)?;
    runs.eval_detection(&format!("{method}-beta-{beta}"), &model)
}

fn work(runs: &Runs<'_>) -> Result<()> {
    base_figures(runs)?;
    for arm in Arm::all() {
        figures(runs, arm.method, arm.beta)?;
    }
    Ok(())
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let of = |arm: Arm, metric: &str| {
        per_seed(runs, |seed| {
            figures(seed, arm.method, arm.beta)?.get(metric)
        })
    };
    let base = |metric: &str| per_seed(runs, |seed| base_figures(seed)?.get(metric));
    let metrics = ["ap", "ap50", "precision", "recall", "boxes"];
    let mut rows = vec![vec!["base".to_owned()]];
    for metric in metrics {
        rows[0].push(cell(&base(metric)?, 3));
    }
    for arm in Arm::all() {
        let mut row = vec![arm.title()];
        for metric in metrics {
            row.push(cell(&of(arm, metric)?, 3));
        }
        rows.push(row);
    }
    let steps = runs
        .first()
        .map_or(0, |seed| seed.lab.plan.detection_grpo.steps);
    let mut charts = Vec::new();
    for beta in BETAS {
        for (title, label, measure) in [
            (
                "Boxes of an answer",
                "boxes",
                (|c| c.num_boxes() as f64) as fn(&crate::rollouts::Completion) -> f64,
            ),
            ("Length of an answer", "tokens", |c| c.tokens as f64),
        ] {
            let lines = METHODS.map(|method| {
                let curves = runs.iter().map(|seed| {
                    let run = seed.at(&run_name(method, beta));
                    let points = by_step(&run, steps, |step| mean_of(step, measure))?;
                    Ok(thinned(&points, WINDOW))
                });
                Ok((method.to_owned(), curves.collect::<Result<_>>()?))
            });
            let lines = lines.into_iter().collect::<Result<_>>()?;
            charts.push(chart(
                &format!("{title}, beta {beta}"),
                "step",
                label,
                lines,
            ));
        }
    }
    let free = |method| Arm { method, beta: 0.0 };
    let claims = vec![
        Claim::new(
            "AP50 as the reward: more boxes than the base",
            less(&of(free("od_ap50"), "boxes")?, &base("boxes")?),
        ),
        Claim::new(
            "AP as the reward: more boxes than the base",
            less(&of(free("od_ap"), "boxes")?, &base("boxes")?),
        ),
        Claim::new(
            "AP50 as the reward ends below the base (base less AP50), precision",
            less(&base("precision")?, &of(free("od_ap50"), "precision")?),
        ),
        Claim::new(
            "AP as the reward ends below the base (base less AP), precision",
            less(&base("precision")?, &of(free("od_ap"), "precision")?),
        ),
        Claim::new(
            "AP as the reward ends below the base (base less AP), AP",
            less(&base("ap")?, &of(free("od_ap"), "ap")?),
        ),
        Claim::new(
            "odLength lists fewer boxes than AP (AP less odLength)",
            less(
                &of(free("od_ap"), "boxes")?,
                &of(free("odLength"), "boxes")?,
            ),
        ),
        Claim::new(
            "odLength ends above AP, precision",
            less(
                &of(free("odLength"), "precision")?,
                &of(free("od_ap"), "precision")?,
            ),
        ),
        Claim::new(
            "odLength ends above AP, AP",
            less(&of(free("odLength"), "ap")?, &of(free("od_ap"), "ap")?),
        ),
        Claim::new(
            "odLength ends above the base, AP",
            less(&of(free("odLength"), "ap")?, &base("ap")?),
        ),
        Claim::new(
            "map_strict lists fewer boxes than AP (AP less map_strict)",
            less(
                &of(free("od_ap"), "boxes")?,
                &of(free("map_strict"), "boxes")?,
            ),
        ),
        Claim::new(
            "with AP, a KL of 0.04 lists fewer boxes than none",
            less(
                &of(free("od_ap"), "boxes")?,
                &of(
                    Arm {
                        method: "od_ap",
                        beta: 0.04,
                    },
                    "boxes",
                )?,
            ),
        ),
    ];
    let header = ["reward", "AP", "AP50", "precision", "recall", "boxes"];
    Ok(Study {
        name: KIND.name,
        title: "Reward hacking in detection",
        what: format!(
            "{steps} steps of GRPO on questions with near misses, by four rewards, with and without KL. Held-out \
             pictures ask for what is there and for near misses; all categories of the file count."
        ),
        paper: "With AP50 or mAP as the reward, answers grow from 150 to about 1,060 tokens, because categories \
                that the truth lacks do not count; COCO mAP ends at 11.4 and 11.8, below the base's 14.2. odLength \
                stops it (190 down to 115 tokens) and ends at 21.1 (figure 6, table 5).",
        claims,
        tables: vec![(
            "Held-out pictures".into(),
            Table {
                header: header.map(str::to_owned).into(),
                rows,
                caption: String::new(),
            },
        )],
        charts,
    })
}
