//! True answers scored by the rewards of the run: one that does not earn full marks cannot be learned.
//!
//! A true answer is written as a model would write it: with thinking, and where a reward reads one box,
//! in the units of the model's boxes, rounded to whole numbers. Rewards that ask a model or another
//! program, and those that do not compare with the solution, are left out.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use base::Example;
use config::DataCheckConfig;
use data::check::{Finding, Kind, RowProbe, SeenImage};
use rewards::boxes::parse_solution;
use rewards::{
    BoundingBox, BoxAnswers, BoxFormat, BoxUnits, ImageSizes, OverlongOptions, PluginOptions,
    RewardFamily, RewardInput, RewardOptions, RewardSet, compares_boxes, missing_box_reward,
};

/// The method that asks a language model.
const JUDGE: &str = "llm";
/// What a box rounded to whole pixels should still score.
const FULL_BOX_SCORE: f64 = 0.75;
const FULL_SCORE: f64 = 1.0 - 1e-6;

/// How a true answer is written for a reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As the row has it.
    AsGiven,
    /// One box in the model's units.
    Box,
    /// A click on the middle of the box.
    Click,
}

/// The rewards that are tried.
pub struct TrueScores {
    sets: Vec<(Form, RewardSet)>,
    /// Of what the model writes and of solutions, for [`Form::Box`].
    units: Option<[BoxFormat; 2]>,
    /// Whether boxes of lists would have to be converted, which is not tried.
    lists_differ: bool,
    /// That no reward compares boxes though the task is to find one.
    no_box_reward: Option<String>,
    /// Rows of which that holds.
    uncompared: AtomicU64,
    /// Rows whose true answers are boxes although texts are compared.
    boxes: BoxAnswers,
}

impl TrueScores {
    /// The rewards of the configuration that can be tried, for a model of `family`.
    ///
    /// # Errors
    /// Rewards that `grpo` would refuse.
    pub fn new(config: &DataCheckConfig, family: RewardFamily, patch_size: usize) -> Result<Self> {
        let box_units =
            BoxUnits { answer: config.box_format, solution: config.solution_box_format };
        let is_customized = config.is_reward_customized_from_vlm_module;
        let options = RewardOptions {
            family,
            task_type: config.task_type.clone(),
            is_reward_customized_from_vlm_module: is_customized,
            patch_size,
            box_units,
            plugins: PluginOptions::default(),
            overlong: OverlongOptions::new(1, None),
        };
        let mut sets = Vec::new();
        for form in [Form::AsGiven, Form::Box, Form::Click] {
            let names = config.reward_funcs.iter();
            let names: Vec<String> =
                names.filter(|name| form_of(name, is_customized) == Some(form)).cloned().collect();
            if !names.is_empty() {
                sets.push((form, RewardSet::build(&names, None, &options)?));
            }
        }
        Ok(Self {
            sets,
            units: box_units.of_one_box(family),
            lists_differ: box_units.of_lists(family).is_some_and(|[answer, truth]| answer != truth),
            uncompared: AtomicU64::new(0),
            boxes: BoxAnswers::new(
                config.task_type.as_deref(),
                &config.reward_funcs,
                is_customized,
            ),
            no_box_reward: missing_box_reward(
                config.task_type.as_deref(),
                &config.reward_funcs,
                is_customized,
            ),
        })
    }

    /// Names of the rewards that are tried.
    pub fn names(&self) -> Vec<String> {
        let names = self.sets.iter().flat_map(|(_, set)| set.names());
        names.map(str::to_owned).collect()
    }

    /// Whether rows are looked at in vain.
    pub fn is_idle(&self) -> bool {
        self.sets.is_empty() && self.no_box_reward.is_none()
    }

    /// Counts a row whose boxes are not compared as boxes.
    fn count_boxes(&self, example: &Example) {
        let method = example.accu_reward_method.as_deref();
        self.boxes.add(&example.solution, method);
        if self.no_box_reward.is_some() && !method.is_some_and(compares_boxes) {
            self.uncompared.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn score(&self, form: Form, set: &RewardSet, row: &Row<'_>) -> Result<Vec<f64>, String> {
        let example = row.example;
        let method = example.accu_reward_method.as_deref();
        set.check(0, &example.solution, method).map_err(|error| error.to_string())?;
        let answer = match form {
            Form::AsGiven => example.answer.clone(),
            Form::Box | Form::Click => self.boxed(form, row)?,
        };
        let completion = format!("<think>It is known.</think><answer>{answer}</answer>");
        let input = RewardInput {
            problem: Some(&example.problem),
            accu_reward_method: method,
            images: &example.images,
            image_sizes: &row.sizes,
            image_grid_thw: &row.grids,
            ..RewardInput::new(&completion, &example.solution, &example.columns)
        };
        let scores = set.score(&[input]).map_err(|error| error.to_string())?;
        let each = scores.per_reward.into_iter();
        // Where a reward does not apply to the row it has nothing against it.
        Ok(each.map(|scores| scores[0].unwrap_or(1.0)).collect())
    }

    /// The true box as the model would write it.
    fn boxed(&self, form: Form, row: &Row<'_>) -> Result<String, String> {
        let truth = parse_solution(&row.example.solution)?;
        let found = match (self.units, row.box_sizes()) {
            (Some([completion, solution]), Some(sizes)) => {
                sizes.convert(truth, solution, completion)
            }
            _ => truth,
        };
        let BoundingBox { x1, y1, x2, y2 } = found;
        let is_share = self.units.is_some_and(|[completion, _]| completion == BoxFormat::Relative1);
        let digits = if is_share { 4 } else { 0 };
        let shown = |x: f64| format!("{x:.digits$}");
        Ok(match form {
            Form::Click => {
                format!("click [{}, {}]", shown((x1 + x2) / 2.0), shown((y1 + y2) / 2.0))
            }
            Form::AsGiven | Form::Box => {
                format!("{{\"bbox_2d\": [{}]}}", [x1, y1, x2, y2].map(shown).join(", "))
            }
        })
    }

    fn is_tried(&self, form: Form, example: &Example) -> bool {
        let method = example.accu_reward_method.as_deref();
        form != Form::AsGiven || (method != Some(JUDGE) && !self.lists_differ)
    }
}

/// How a true answer is written for the reward `name`; none where it is not tried.
fn form_of(name: &str, is_customized: bool) -> Option<Form> {
    match name {
        "accuracy" if is_customized => Some(Form::Box),
        "accuracy" | "count" | "json_valid" => Some(Form::AsGiven),
        "giou" | "diou" | "point_in_box" => Some(Form::Box),
        "click" => Some(Form::Click),
        _ => None,
    }
}

/// A row with the sizes of its images.
struct Row<'a> {
    example: &'a Example,
    sizes: Vec<[u32; 2]>,
    inputs: Vec<[u32; 2]>,
    grids: Vec<[usize; 3]>,
}

impl Row<'_> {
    /// Sizes of the image that boxes are in.
    fn box_sizes(&self) -> Option<ImageSizes> {
        Some(ImageSizes { original: *self.sizes.first()?, input: *self.inputs.first()? })
    }
}

impl RowProbe for TrueScores {
    fn look(&self, example: &Example, images: &[SeenImage]) -> Vec<Finding> {
        let row = Row {
            example,
            sizes: images.iter().map(|image| image.facts.size).collect(),
            inputs: images.iter().map(|image| image.shape.input_size).collect(),
            grids: images.iter().map(|image| image.shape.layout.tiles[0]).collect(),
        };
        let mut findings = Vec::new();
        self.count_boxes(example);
        for (form, set) in &self.sets {
            if !self.is_tried(*form, example) {
                continue;
            }
            let full = if *form == Form::Box { FULL_BOX_SCORE } else { FULL_SCORE };
            match self.score(*form, set, &row) {
                Err(reason) => findings.push(Finding::new(Kind::Unscorable, reason)),
                Ok(scores) => {
                    let low = set.names().zip(scores).filter(|(_, score)| *score < full);
                    findings.extend(low.map(|(name, score)| low_score(name, score, example)));
                }
            }
        }
        findings
    }

    fn look_at_all(&self) -> Vec<Finding> {
        let rows = self.uncompared.load(Ordering::Relaxed);
        let of_task = self.no_box_reward.as_ref().filter(|_| rows > 0);
        let of_task = of_task.map(|text| match rows {
            1 => format!("1 row: {text}"),
            rows => format!("{rows} rows: {text}"),
        });
        let warning = of_task.or_else(|| self.boxes.warning());
        // The way out is what is expected of this kind.
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let finding = warning.map(|text| Finding::new(Kind::NoBoxReward, first(text)));
        finding.into_iter().collect()
    }
}

fn low_score(name: &str, score: f64, example: &Example) -> Finding {
    let answer: String = example.answer.chars().take(80).collect();
    let text = format!("`{name}` gives the true answer {score:.3}: `{answer}`");
    Finding::new(Kind::LowTrueScore, text)
}
