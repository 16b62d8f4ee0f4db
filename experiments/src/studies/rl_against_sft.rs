//! Reinforcement learning against supervised fine-tuning from one base model, on the same rows, for
//! as many of them: in the domain and outside it, along the way (figure 5 and table 2 in small).

use anyhow::{Context, Result};
use report::{LineChart, Table};
use serde_json::json;

use super::{Kind, less};
use crate::claims::{Claim, mean};
use crate::grounding::TEST_PARTS;
use crate::page::{Curves, Study, cell, chart};
use crate::plan::Sft;
use crate::runs::{Metrics, Runs, Task};

pub const KIND: Kind = Kind { name: "rl-against-sft", work: |runs| work(runs).map(|_| ()), page };

/// How a model went on from the base.
#[derive(Clone, Copy, PartialEq)]
enum Arm {
    Rl,
    /// As the paper's: a box alone, the learning rate of reinforcement learning.
    Sft,
    /// The same with a learning rate of its own.
    TunedSft,
    /// Completions with thinking, with that learning rate.
    ThinkingSft,
}

impl Arm {
    const ALL: [Self; 4] = [Self::Rl, Self::Sft, Self::TunedSft, Self::ThinkingSft];

    fn name(self) -> &'static str {
        match self {
            Self::Rl => "rl",
            Self::Sft => "sft",
            Self::TunedSft => "sft-tuned",
            Self::ThinkingSft => "sft-thinking",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Rl => "RL",
            Self::Sft => "SFT",
            Self::TunedSft => "SFT, tuned",
            Self::ThinkingSft => "SFT, thinking",
        }
    }

    /// How it is asked and how its completions are read: with thinking or without.
    fn thinks(self) -> bool {
        matches!(self, Self::Rl | Self::ThinkingSft)
    }
}

/// Metrics of a model after some steps.
struct Points(Vec<(usize, Metrics)>);

fn eval(runs: &Runs<'_>, name: &str, model: &std::path::Path, thinks: bool) -> Result<Metrics> {
    let extractor = if thinks { "thinking" } else { "baseline" };
    runs.eval_grounding(&format!("{name}-{extractor}"), model, extractor)
}

/// All arms of a seed, each at every step that is evaluated.
fn work(runs: &Runs<'_>) -> Result<Vec<(Arm, Points)>> {
    let base = runs.grounding_base()?;
    let data = runs.grounding()?;
    let plan = &runs.workspace.plan;
    let grpo = &plan.grounding_grpo;
    let mut arms = Vec::new();
    for arm in Arm::ALL {
        let name = format!("grounding/{}", arm.name());
        let task = |rows: &str, template| Task {
            name: &name,
            model: &base,
            rows: data.join(rows),
            template,
        };
        let sft = |lr| Sft { steps: grpo.steps, batch: grpo.prompts, lr };
        let end = match arm {
            Arm::Rl => runs.grpo(
                &task("train.jsonl", "rec"),
                grpo,
                json!({"task_type": "rec", "is_reward_customized_from_vlm_module": true, "beta": 0.04}),
            )?,
            Arm::Sft => runs.sft(&task("train.jsonl", "sft_rec"), &sft(grpo.lr), json!({}))?,
            Arm::TunedSft => runs.sft(&task("train.jsonl", "sft_rec"), &sft(plan.tuned_sft_lr), json!({}))?,
            Arm::ThinkingSft => {
                let task = task("train_thinking.jsonl", "rec");
                runs.sft(&task, &sft(plan.tuned_sft_lr), json!({}))?
            }
        };
        let mut points = vec![(0, eval(runs, "base", &base, arm.thinks())?)];
        for step in (plan.eval_every..=grpo.steps).step_by(plan.eval_every) {
            let model = end.with_file_name(format!("checkpoint-{step}"));
            let metrics = eval(runs, &format!("{}-{step}", arm.name()), &model, arm.thinks())?;
            points.push((step, metrics));
        }
        arms.push((arm, Points(points)));
    }
    Ok(arms)
}

impl Points {
    /// Accuracy of a part, or over the parts outside the domain, at each step.
    fn curve(&self, part: &str) -> Result<Vec<[f64; 2]>> {
        let at = |(step, metrics): &(usize, Metrics)| Ok([*step as f64, accuracy(metrics, part)?]);
        self.0.iter().map(at).collect()
    }
}

/// Share of correct completions; [`OUTSIDE`] is the mean of all parts but the first.
fn accuracy(metrics: &Metrics, part: &str) -> Result<f64> {
    if part != OUTSIDE {
        return metrics.part(part, "accuracy");
    }
    let outside = TEST_PARTS[1..].iter();
    let parts: Result<Vec<f64>> = outside.map(|part| metrics.part(part, "accuracy")).collect();
    Ok(mean(&parts?))
}

/// All parts outside the domain.
const OUTSIDE: &str = "outside";
const INSIDE: &str = TEST_PARTS[0];
/// What is shown, each with its title.
const SHOWN: [(&str, &str); 5] = [
    (INSIDE, "in domain"),
    (OUTSIDE, "outside, mean"),
    ("relation", "relations"),
    ("new_relation", "new relations"),
    ("new_pair", "new names"),
];

/// The finished arms of all seeds.
struct Seeds(Vec<Vec<(Arm, Points)>>);

impl Seeds {
    /// Accuracy along the way, a curve a seed.
    fn curves(&self, arm: Arm, part: &str) -> Result<Curves> {
        let of = |seed: &Vec<(Arm, Points)>| {
            let found = seed.iter().find(|(other, _)| *other == arm);
            found.context("an arm is missing")?.1.curve(part)
        };
        self.0.iter().map(of).collect()
    }

    /// Accuracy before the first and after the last step.
    fn ends(&self, arm: Arm, part: &str) -> Result<[Vec<f64>; 2]> {
        let curves = self.curves(arm, part)?;
        let first = curves.iter().filter_map(|curve| curve.first());
        let last = curves.iter().filter_map(|curve| curve.last());
        Ok([first.map(|point| point[1]).collect(), last.map(|point| point[1]).collect()])
    }

    fn table(&self) -> Result<(String, Table)> {
        let mut rows = Vec::new();
        for arm in Arm::ALL {
            for (end, when) in ["base", "end"].into_iter().enumerate() {
                let mut row = vec![format!("{}, {when}", arm.title())];
                for (part, _) in SHOWN {
                    row.push(cell(&self.ends(arm, part)?[end], 3));
                }
                rows.push(row);
            }
        }
        let header = std::iter::once("model").chain(SHOWN.map(|(_, title)| title));
        let table =
            Table { header: header.map(str::to_owned).collect(), rows, caption: String::new() };
        Ok(("Share of completions with an IoU above 0.5".to_owned(), table))
    }

    fn charts(&self) -> Result<Vec<LineChart>> {
        let chart_of = |(part, title): (&str, &str)| {
            let lines = Arm::ALL.map(|arm| Ok((arm.title().to_owned(), self.curves(arm, part)?)));
            let lines = lines.into_iter().collect::<Result<_>>()?;
            Ok(chart(title, "step", "share of IoU above 0.5", lines))
        };
        SHOWN.into_iter().map(chart_of).collect()
    }

    fn claims(&self) -> Result<Vec<Claim>> {
        let end = |arm, part: &str| Ok::<_, anyhow::Error>(self.ends(arm, part)?[1].clone());
        let rise = |arm, part: &str| {
            let [first, last] = self.ends(arm, part)?;
            Ok::<_, anyhow::Error>(less(&last, &first))
        };
        let above = |part: &str, other| {
            Ok::<_, anyhow::Error>(less(&end(Arm::Rl, part)?, &end(other, part)?))
        };
        let fall = |arm, part: &str| {
            let [first, last] = self.ends(arm, part)?;
            Ok::<_, anyhow::Error>(less(&first, &last))
        };
        Ok(vec![
            Claim::new("in the domain RL rises above the base", rise(Arm::Rl, INSIDE)?),
            Claim::new("in the domain RL ends above the paper's SFT", above(INSIDE, Arm::Sft)?),
            Claim::new("outside it RL rises above the base", rise(Arm::Rl, OUTSIDE)?),
            Claim::new("outside it the paper's SFT falls below the base", fall(Arm::Sft, OUTSIDE)?),
            Claim::new("outside it RL ends above the paper's SFT", above(OUTSIDE, Arm::Sft)?),
            Claim::new("outside it RL ends above tuned SFT", above(OUTSIDE, Arm::TunedSft)?),
            Claim::new(
                "outside it RL ends above SFT with thinking",
                above(OUTSIDE, Arm::ThinkingSft)?,
            ),
        ])
    }
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let seeds = Seeds(runs.iter().map(work).collect::<Result<_>>()?);
    let steps = runs.first().map_or(0, |seed| seed.workspace.plan.grounding_grpo.steps);
    Ok(Study {
        name: KIND.name,
        title: "RL against SFT: in the domain and outside it",
        what: format!(
            "From one base model, {steps} steps on the same rows: expressions by look, place and size. SFT is as the \
             paper's: a box alone, at the learning rate of RL; tuned at its own; with thinking in its completions. \
             Outside the domain: relations, which only the base model met; new relations, with anchors that it \
             never met them with; new names, which no training had."
        ),
        paper: "On RefCOCO SFT stays near the base and RL rises (88.7 to 90.55); on LISA-Grounding, out of the \
                domain, RL rises from 56.51 to 63.14 while SFT falls to 54.82 (figure 5).",
        claims: seeds.claims()?,
        tables: vec![seeds.table()?],
        charts: seeds.charts()?,
    })
}
