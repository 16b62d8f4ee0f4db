//! Reinforcement learning against supervised fine-tuning from one base model, on the same rows, for
//! as many of them: in the domain and outside it, along the way (figure 5 and table 2 in small).

use anyhow::Result;
use report::Table;
use serde_json::json;

use super::{Kind, less, per_seed};
use crate::claims::{Claim, mean};
use crate::grounding::TEST_PARTS;
use crate::page::{Study, cell, chart};
use crate::plan::Sft;
use crate::runs::{Figures, Runs, Task};

pub const KIND: Kind = Kind {
    name: "rl-against-sft",
    work: |runs| work(runs).map(|_| ()),
    page,
};

/// How a model went on from the base.
#[derive(Clone, Copy, PartialEq)]
enum Arm {
    Rl,
    /// As the paper's: a box alone, the learning rate of reinforcement learning.
    Sft,
    /// The same with a learning rate of its own.
    TunedSft,
    /// Answers with thinking, with that learning rate.
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
            Self::Rl => "RL (GRPO)",
            Self::Sft => "SFT, as the paper's",
            Self::TunedSft => "SFT, tuned learning rate",
            Self::ThinkingSft => "SFT with thinking",
        }
    }

    /// How it is asked and how its answers are read: with thinking or without.
    fn thinks(self) -> bool {
        matches!(self, Self::Rl | Self::ThinkingSft)
    }
}

/// Figures of a model after some steps.
struct Points(Vec<(usize, Figures)>);

fn eval(runs: &Runs<'_>, name: &str, model: &std::path::Path, thinks: bool) -> Result<Figures> {
    let extractor = if thinks { "thinking" } else { "baseline" };
    runs.eval_grounding(&format!("{name}-{extractor}"), model, extractor)
}

/// All arms of a seed, each at every step that is evaluated.
fn work(runs: &Runs<'_>) -> Result<Vec<(Arm, Points)>> {
    let base = runs.grounding_base()?;
    let data = runs.grounding()?;
    let plan = &runs.lab.plan;
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
        let sft = |lr| Sft {
            steps: grpo.steps,
            batch: grpo.prompts,
            lr,
        };
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
            let figures = eval(
                runs,
                &format!("{}-{step}", arm.name()),
                &model,
                arm.thinks(),
            )?;
            points.push((step, figures));
        }
        arms.push((arm, Points(points)));
    }
    Ok(arms)
}

impl Points {
    /// Accuracy of a part, or over the parts outside the domain, at each step.
    fn curve(&self, part: &str) -> Result<Vec<[f64; 2]>> {
        let at = |(step, figures): &(usize, Figures)| Ok([*step as f64, accuracy(figures, part)?]);
        self.0.iter().map(at).collect()
    }
}

/// Share of right answers; `outside` is the mean of all parts but the first.
fn accuracy(figures: &Figures, part: &str) -> Result<f64> {
    if part != "outside" {
        return figures.part(part, "accuracy");
    }
    let parts: Result<Vec<f64>> = TEST_PARTS[1..]
        .iter()
        .map(|part| figures.part(part, "accuracy"))
        .collect();
    Ok(mean(&parts?))
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let seeds: Vec<_> = runs.iter().map(work).collect::<Result<_>>()?;
    let points = |seed: &'_ Vec<(Arm, Points)>, arm: Arm, part: &str| -> Result<Vec<[f64; 2]>> {
        let found = seed.iter().find(|(other, _)| *other == arm);
        found.map_or_else(|| Ok(Vec::new()), |(_, points)| points.curve(part))
    };
    let first = |arm, part: &str| -> Result<Vec<f64>> {
        seeds
            .iter()
            .map(|seed| Ok(points(seed, arm, part)?[0][1]))
            .collect()
    };
    let last = |arm, part: &str| -> Result<Vec<f64>> {
        seeds
            .iter()
            .map(|seed| {
                Ok(points(seed, arm, part)?
                    .last()
                    .map_or(f64::NAN, |point| point[1]))
            })
            .collect()
    };
    let shown = [
        "in_domain",
        "outside",
        "relation",
        "new_relation",
        "new_pair",
    ];
    let mut rows = Vec::new();
    for arm in Arm::ALL {
        for (when, values) in [
            ("base", &first as &dyn Fn(Arm, &str) -> Result<Vec<f64>>),
            ("end", &last),
        ] {
            let mut row = vec![format!("{}, {when}", arm.title())];
            for part in shown {
                row.push(cell(&values(arm, part)?, 3));
            }
            rows.push(row);
        }
    }
    let header = [
        "model",
        "in the domain",
        "outside, mean",
        "relations",
        "new relations",
        "new pairs",
    ];
    let mut charts = Vec::new();
    for (part, title) in shown.into_iter().zip([
        "In the domain",
        "Outside, mean of three",
        "Relations",
        "Relations unlike any seen",
        "Names that no training had",
    ]) {
        let lines = Arm::ALL.into_iter().map(|arm| {
            let curves = seeds
                .iter()
                .map(|seed| points(seed, arm, part))
                .collect::<Result<_>>()?;
            Ok((arm.title().to_owned(), curves))
        });
        charts.push(chart(
            title,
            "step",
            "share of IoU above 0.5",
            lines.collect::<Result<_>>()?,
        ));
    }
    let claims = vec![
        Claim::new(
            "in the domain RL rises above the base",
            less(&last(Arm::Rl, "in_domain")?, &first(Arm::Rl, "in_domain")?),
        ),
        Claim::new(
            "in the domain RL ends above the paper's SFT",
            less(&last(Arm::Rl, "in_domain")?, &last(Arm::Sft, "in_domain")?),
        ),
        Claim::new(
            "outside it RL rises above the base",
            less(&last(Arm::Rl, "outside")?, &first(Arm::Rl, "outside")?),
        ),
        Claim::new(
            "outside it SFT does not rise (base less SFT)",
            less(&first(Arm::Sft, "outside")?, &last(Arm::Sft, "outside")?),
        ),
        Claim::new(
            "outside it RL ends above the paper's SFT",
            less(&last(Arm::Rl, "outside")?, &last(Arm::Sft, "outside")?),
        ),
        Claim::new(
            "outside it RL ends above tuned SFT",
            less(&last(Arm::Rl, "outside")?, &last(Arm::TunedSft, "outside")?),
        ),
        Claim::new(
            "outside it RL ends above SFT with thinking",
            less(
                &last(Arm::Rl, "outside")?,
                &last(Arm::ThinkingSft, "outside")?,
            ),
        ),
    ];
    let responses = per_seed(runs, |runs| Ok(runs.lab.plan.grounding_grpo.steps as f64))?;
    Ok(Study {
        name: KIND.name,
        title: "RL against SFT: in the domain and outside it",
        what: format!(
            "From one base model, {} steps on the same rows: expressions by look, place and size. Outside the \
             domain: relations that only the base model met, relations with anchors that it never met them with, \
             and names that no training had.",
            mean(&responses)
        ),
        paper: "On RefCOCO both stay near the base for SFT and rise for RL (88.7 to 90.55 against 88.7); on \
                LISA-Grounding, out of the domain, RL rises from 56.51 to 63.14 while SFT falls to 54.82 (figure 5).",
        claims,
        tables: vec![(
            "Share of answers with an IoU above 0.5".into(),
            Table {
                header: header.map(str::to_owned).into(),
                rows,
                caption: String::new(),
            },
        )],
        charts,
    })
}
