//! What the demo found: scores of each model, what a blind one scores, and whether the goal is met.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::eval::{RecEvaluation, RecSummary, best_constant_box, constant_box_ious};
use ::rewards::boxes::BoundingBox;
use report::{Interval, mean_interval, paired_difference_interval};
use serde_json::{Map, Value, json};

use crate::PageError;

/// Seed of the bootstrap.
const BOOTSTRAP_SEED: u64 = 42;
/// How much the score is to rise.
const AIM: f64 = 0.10;

/// One model's completions to the held-out questions.
pub struct Scored {
    /// Its name in tables.
    pub name: &'static str,
    /// Likeliest completions.
    pub greedy: RecEvaluation,
    /// Metrics of these.
    pub greedy_summary: RecSummary,
    /// Metrics of completions drawn at temperature 1.
    pub sampled_summary: RecSummary,
}

/// All that the report says in numbers.
pub struct Results {
    /// Start, end, and what as many steps of SFT made of the start.
    pub models: Vec<Scored>,
    /// Start and end, asked about other images than they see.
    pub shuffled: [RecSummary; 2],
    /// The box that is the best answer to every question.
    pub constant_box: BoundingBox,
    /// What it scores.
    pub constant: Interval,
    /// End less start, question by question: score, and IoU where both are well-formed.
    pub gain: Interval,
    /// As `gain`, of sampled completions.
    pub gain_sampled: Interval,
    /// IoU end less start where both answer well-formed; `None` where they never do.
    pub gain_well_formed: Option<Interval>,
    /// The same of sampled completions.
    pub gain_well_formed_sampled: Option<Interval>,
    /// Seconds by stage.
    pub secs: Map<String, Value>,
    /// Seed of the demo.
    pub seed: u64,
}

impl Results {
    /// Gathers the evaluations; the first two models are start and end.
    ///
    /// # Errors
    /// Evaluations without completions.
    pub fn new(
        models: [(&'static str, RecEvaluation, RecEvaluation); 4],
        shuffled: [RecEvaluation; 2],
        truths: &[BoundingBox],
        secs: &BTreeMap<String, f64>,
        seed: u64,
    ) -> Result<Self, PageError> {
        let [(_, start, start_sampled), (_, end, end_sampled), ..] = &models;
        let scores =
            |evaluation: &RecEvaluation| evaluation.per_question(|completion| completion.iou);
        let gain = |before, after| {
            paired_difference_interval(&scores(before), &scores(after), BOOTSTRAP_SEED)
        };
        let (gain, gain_sampled) = (gain(start, end)?, gain(start_sampled, end_sampled)?);
        let gain_well_formed = gain_well_formed(start, end)?;
        let gain_well_formed_sampled = self::gain_well_formed(start_sampled, end_sampled)?;
        let constant_box = best_constant_box(truths).ok_or(PageError::NoRows)?;
        let [start_shuffled, end_shuffled] = shuffled;
        let scored =
            |(name, greedy, sampled): (_, RecEvaluation, RecEvaluation)| -> Result<Scored, PageError> {
                Ok(Scored {
                    name,
                    greedy_summary: greedy.summary()?,
                    sampled_summary: sampled.summary()?,
                    greedy,
                })
            };
        Ok(Self {
            models: models.into_iter().map(scored).collect::<Result<_, PageError>>()?,
            shuffled: [start_shuffled.summary()?, end_shuffled.summary()?],
            constant_box,
            constant: mean_interval(&constant_box_ious(constant_box, truths), BOOTSTRAP_SEED)?,
            gain,
            gain_sampled,
            gain_well_formed,
            gain_well_formed_sampled,
            secs: secs.iter().map(|(stage, secs)| (stage.clone(), json!(secs))).collect(),
            seed,
        })
    }

    /// The model before GRPO.
    pub fn start(&self) -> &Scored {
        &self.models[0]
    }

    /// The model after GRPO.
    pub fn end(&self) -> &Scored {
        &self.models[1]
    }

    /// Whether the held-out score rose by [`AIM`], intervals apart.
    pub fn reached(&self) -> bool {
        let (start, end) = (&self.start().greedy_summary.iou, &self.end().greedy_summary.iou);
        end.mean - start.mean >= AIM && end.low > start.high
    }

    /// One line on what came out.
    pub fn headline(&self) -> String {
        let (start, end) = (&self.start().greedy_summary, &self.end().greedy_summary);
        let verdict = if self.reached() { "reached" } else { "missed" };
        format!(
            "held-out IoU {} -> {} (aim of +{AIM:.2}, intervals apart: {verdict}), well-formed {:.0} % -> {:.0} %",
            start.iou,
            end.iou,
            100.0 * start.well_formed.mean,
            100.0 * end.well_formed.mean
        )
    }

    /// All metrics.
    pub fn to_json(&self) -> Value {
        let of = |i: &Interval| json!({"mean": i.mean, "low": i.low, "high": i.high});
        let model = |m: &Scored| {
            let value = json!({"greedy": m.greedy_summary.to_json(), "sampled": m.sampled_summary.to_json()});
            (m.name.to_owned(), value)
        };
        json!({
            "seed": self.seed,
            "questions": self.gain.num_values,
            "aim_reached": self.reached(),
            "models": self.models.iter().map(model).collect::<Map<_, _>>(),
            "shuffled_pictures": {
                "start": self.shuffled[0].to_json(),
                "end": self.shuffled[1].to_json(),
            },
            "best_constant_box": {"box": <[f64; 4]>::from(self.constant_box), "iou": of(&self.constant)},
            "gain": {
                "greedy": of(&self.gain),
                "sampled": of(&self.gain_sampled),
                "well_formed_greedy": self.gain_well_formed.as_ref().map(of),
                "well_formed_sampled": self.gain_well_formed_sampled.as_ref().map(of),
            },
            "secs": self.secs,
        })
    }

    /// Writes them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PageError> {
        fs::write(path, format!("{:#}\n", self.to_json()))
            .map_err(|source| PageError::Io { path: path.to_owned(), source })
    }
}

/// IoU of well-formed completions, after less before, over the questions to which both have some.
fn gain_well_formed(
    before: &RecEvaluation,
    after: &RecEvaluation,
) -> Result<Option<Interval>, PageError> {
    let after: std::collections::HashMap<usize, f64> =
        after.iou_well_formed().into_iter().collect();
    let (first, second): (Vec<f64>, Vec<f64>) = before
        .iou_well_formed()
        .into_iter()
        .filter_map(|(row, iou)| Some((iou, *after.get(&row)?)))
        .unzip();
    if first.is_empty() {
        return Ok(None);
    }
    Ok(Some(paired_difference_interval(&first, &second, BOOTSTRAP_SEED)?))
}
