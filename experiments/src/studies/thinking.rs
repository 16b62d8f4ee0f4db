//! The "aha moment" of detection: whether thinking comes to name what is there before the boxes, and
//! whether answers follow it.

use anyhow::Result;
use report::Table;

use super::reward_hacking::{method_metrics, run_name};
use super::{Kind, less, line};
use crate::claims::Claim;
use crate::page::{Study, cell, chart};
use crate::rollouts::{Completion, by_step};
use crate::runs::Runs;

pub const KIND: Kind = Kind {
    name: "thinking",
    work: |runs| {
        for method in METHODS {
            method_metrics(runs, method, 0.0)?;
        }
        Ok(())
    },
    page,
};

/// The reward of the paper's observation, and one that is hacked beside it.
const METHODS: [&str; 2] = ["odLength", "od_ap"];
/// Steps at the start and at the end that are compared.
const ENDS: usize = 16;

type Measure = fn(&Completion) -> bool;

/// What is followed over training.
const MEASURES: [(&str, Measure); 3] = [
    ("thinking names just what is there", Completion::names_what_is_there),
    ("thinking names something", Completion::names_something),
    ("the answer has the labels of the thinking", Completion::answer_follows_thinking),
];

/// Share of the completions to questions of which something is there.
fn share(step: &[Completion], measure: Measure) -> f64 {
    let asked: Vec<&Completion> = step.iter().filter(|c| c.something_is_there()).collect();
    asked.iter().filter(|c| measure(c)).count() as f64 / asked.len().max(1) as f64
}

fn curve(runs: &Runs<'_>, method: &str, measure: Measure) -> Result<Vec<[f64; 2]>> {
    let steps = runs.workspace.plan.detection_grpo.steps;
    by_step(&runs.at(&run_name(method, 0.0)), steps, |step| share(step, measure))
}

/// Means of the first and the last steps.
fn ends(points: &[[f64; 2]]) -> [f64; 2] {
    let num = ENDS.min(points.len());
    let mean = |part: &[[f64; 2]]| part.iter().map(|point| point[1]).sum::<f64>() / num as f64;
    [mean(&points[..num]), mean(&points[points.len() - num..])]
}

fn page(runs: &[Runs<'_>]) -> Result<Study> {
    let (mut rows, mut charts, mut claims) = (Vec::new(), Vec::new(), Vec::new());
    for (title, measure) in MEASURES {
        let mut lines = Vec::new();
        for method in METHODS {
            let curves: Vec<Vec<[f64; 2]>> =
                runs.iter().map(|seed| curve(seed, method, measure)).collect::<Result<_>>()?;
            let both: Vec<[f64; 2]> = curves.iter().map(|points| ends(points)).collect();
            let [first, last] =
                [0, 1].map(|end| both.iter().map(|pair| pair[end]).collect::<Vec<f64>>());
            rows.push(vec![format!("{method}: {title}"), cell(&first, 3), cell(&last, 3)]);
            claims.push(Claim::new(
                &format!("{method}: {title}, more at the end than at the start"),
                less(&last, &first),
            ));
            lines.push(line(runs, method, |seed| curve(seed, method, measure))?);
        }
        charts.push(chart(title, "step", "share of completions", lines));
    }
    Ok(Study {
        name: KIND.name,
        title: "Thinking that says what is there",
        what: format!(
            "Completions in training, of questions of which something is there. The base model's thinking has three \
             habits: it names what is there, repeats the whole list, or says nothing of either. Start and end are \
             means over {ENDS} steps."
        ),
        paper: "With odLength the model comes to say first which of the listed objects exist, and then boxes \
                these; told by examples, without numbers (the \"OD aha moment\").",
        claims,
        tables: vec![(
            "Share of completions".into(),
            Table {
                header: ["habit", "start", "end"].map(str::to_owned).into(),
                rows,
                caption: String::new(),
            },
        )],
        charts,
    })
}
