//! Rewards of detection that are hacked, and one that is not, with and without a weight on the
//! divergence from the base (figure 6 and table 5 in small).

use std::path::PathBuf;

use anyhow::Result;
use report::LineChart;

use super::{Arms, Kind, line};
use crate::claims::Claim;
use crate::page::{Study, chart};
use crate::rollouts::{Completion, by_step, mean_of};
use crate::runs::{Metrics, Runs};

pub const KIND: Kind = Kind { name: "reward-hacking", work, page };

/// Accuracy methods of detection.
const METHODS: [&str; 4] = ["od_ap50", "od_ap", "odLength", "map_strict"];
/// Weights on the divergence.
const BETAS: [f64; 2] = [0.0, 0.04];
/// Size of the model: that of all studies but one.
pub const MIDDLE: usize = 1;

/// One arm.
#[derive(Clone, Copy)]
struct Arm {
    method: &'static str,
    beta: f64,
}

impl Arm {
    fn all() -> impl Iterator<Item = Self> {
        BETAS.into_iter().flat_map(|beta| METHODS.map(|method| Self { method, beta }))
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
    let name = run_name(method, beta);
    runs.detection_grpo(&name, MIDDLE, "train_hard.jsonl", method, beta)
}

/// Metrics of the base model.
///
/// # Errors
/// A run that fails.
pub fn base_metrics(runs: &Runs<'_>) -> Result<Metrics> {
    runs.eval_detection("base-middle", &runs.detection_base(MIDDLE)?)
}

/// Metrics of the model that `method` trained.
///
/// # Errors
/// A run that fails.
pub fn method_metrics(runs: &Runs<'_>, method: &str, beta: f64) -> Result<Metrics> {
    let model = train(runs, method, beta)?;
    runs.eval_detection(&format!("{method}-beta-{beta}"), &model)
}

fn work(runs: &Runs<'_>) -> Result<()> {
    base_metrics(runs)?;
    for arm in Arm::all() {
        method_metrics(runs, arm.method, arm.beta)?;
    }
    Ok(())
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let of_arm = |seed: &Runs<'_>, arm: Option<Arm>| match arm {
        None => base_metrics(seed),
        Some(arm) => method_metrics(seed, arm.method, arm.beta),
    };
    let all = std::iter::once(("base".to_owned(), None))
        .chain(Arm::all().map(|arm| (arm.title(), Some(arm))));
    let arms = Arms::gather(runs, all, of_arm)?;
    let steps = steps(runs);
    Ok(Study {
        name: KIND.name,
        title: "Reward hacking in detection",
        what: format!(
            "{steps} steps of GRPO on questions with near misses, by four rewards, with and without KL. Held-out \
             images ask for what is there and for near misses; all categories of the file count."
        ),
        paper: "With AP50 or mAP as the reward, completions grow from 150 to about 1,060 tokens, because categories \
                that the truth lacks do not count; COCO mAP ends at 11.4 and 11.8, below the base's 14.2. odLength \
                stops it (190 down to 115 tokens) and ends at 21.1 (figure 6, table 5).",
        claims: claims(&arms)?,
        tables: vec![arms.detection_table("reward")?],
        charts: charts(runs)?,
    })
}

/// Steps of the training.
pub fn steps(runs: &[Runs<'_>]) -> usize {
    runs.first().map_or(0, |seed| seed.workspace.plan.detection_grpo.steps)
}

fn claims(arms: &Arms) -> Result<Vec<Claim>> {
    let free = |method| Arm { method, beta: 0.0 }.title();
    let held = |method| Arm { method, beta: 0.04 }.title();
    let [ap50, ap, od_length, strict] = METHODS.map(free);
    let (base, with_kl) = ("base", held("od_ap"));
    [
        ("AP50 as the reward lists more boxes than the base", "boxes", &*ap50, base),
        ("AP as the reward lists more boxes than the base", "boxes", &ap, base),
        ("AP50 as the reward ends below the base, precision", "precision", base, &ap50),
        ("AP as the reward ends below the base, precision", "precision", base, &ap),
        ("AP50 as the reward ends below the base, AP", "ap", base, &ap50),
        ("AP as the reward ends below the base, AP", "ap", base, &ap),
        ("odLength lists fewer boxes than AP", "boxes", &ap, &od_length),
        ("odLength ends above AP, precision", "precision", &od_length, &ap),
        ("odLength ends above AP, AP", "ap", &od_length, &ap),
        ("odLength ends above the base, precision", "precision", &od_length, base),
        ("odLength ends above the base, AP", "ap", &od_length, base),
        ("map_strict lists fewer boxes than AP", "boxes", &ap, &strict),
        ("with AP, KL at 0.04 lists fewer boxes than none", "boxes", &ap, &with_kl),
    ]
    .into_iter()
    .map(|(text, metric, above, below)| arms.claim(text, metric, above, below))
    .collect()
}

type Measure = fn(&Completion) -> f64;

fn charts(runs: &[Runs<'_>]) -> Result<Vec<LineChart>> {
    let measures: [(&str, &str, Measure); 2] = [
        ("Boxes of a completion", "boxes", |c| c.num_boxes() as f64),
        ("Length of a completion", "tokens", |c| c.tokens as f64),
    ];
    let mut charts = Vec::new();
    for beta in BETAS {
        for (title, label, measure) in measures {
            let lines = METHODS.map(|method| {
                line(runs, method, |seed| {
                    let run = seed.at(&run_name(method, beta));
                    by_step(&run, steps(runs), |step| mean_of(step, measure))
                })
            });
            let lines = lines.into_iter().collect::<Result<_>>()?;
            charts.push(chart(&format!("{title}, beta {beta}"), "step", label, lines));
        }
    }
    Ok(charts)
}
