//! What completions are worth: one box, labelled boxes, or any rewards.

use std::path::PathBuf;

use base::Example;
use config::{EvalConfig, EvalTask, Extractor};
use rewards::{
    BoxFormat, BoxUnits, Explanation, FoundBox, ImageSizes, OverlongOptions, PluginOptions,
    RewardFamily, RewardInput, RewardOptions, RewardSet,
};
use serde_json::{Map, Value, json};

use crate::EvalError;
use crate::box_units::Units;
use crate::coco_file::Objects;
use crate::completions::StoredCompletion;
use crate::defaults::box_units;
use crate::detection;
use crate::questions::{Question, Truth};
use crate::rec::{self, BoxReader};
use crate::results::{Scored, ShownBox};
use crate::unread_reason;

/// Completions that rewards score at a time.
const BATCH: usize = 256;

/// Scores completions by the rules of a task.
pub struct Scorer {
    rules: Rules,
    correct_above: f64,
    /// Units of the boxes that the model writes.
    completion_units: BoxFormat,
    /// Units of the boxes in solutions.
    solution_units: BoxFormat,
}

enum Rules {
    Box(BoxReader),
    Objects,
    Rewards(RewardSet),
}

impl Scorer {
    /// The rules that a configuration asks for, for a model of `family` with patches of `patch_size`
    /// px.
    ///
    /// # Errors
    /// Rewards that do not exist or do not start.
    pub fn new(
        config: &EvalConfig,
        family: RewardFamily,
        patch_size: usize,
        judge_cache: PathBuf,
    ) -> Result<Self, EvalError> {
        let options = reward_options(config, family, patch_size, judge_cache);
        let of = |name: &str| RewardSet::build(&[name.to_owned()], None, &options);
        let rules = match config.questions.task {
            Some(EvalTask::Rec) => {
                let extractor = config.scoring.extractor.unwrap_or(Extractor::Thinking);
                Rules::Box(BoxReader::new(extractor, family, patch_size)?)
            }
            Some(EvalTask::Ovd | EvalTask::OvdEval) => Rules::Objects,
            Some(EvalTask::Gui) => Rules::Rewards(of("point_in_box")?),
            Some(EvalTask::Reward) => {
                let weights = config.rewards.reward_weights.as_deref();
                Rules::Rewards(RewardSet::build(&config.rewards.reward_funcs, weights, &options)?)
            }
            _ => Rules::Rewards(of("accuracy")?),
        };
        let [completion_units, solution_units] = box_units(config).on_image(family);
        Ok(Self {
            rules,
            correct_above: config.scoring.correct_above,
            completion_units,
            solution_units,
        })
    }

    /// In which units boxes are taken to be.
    pub(crate) fn units(&self) -> Units {
        Units { completion: self.completion_units, solution: self.solution_units }
    }

    /// Looks at a row before it is asked.
    ///
    /// # Errors
    /// Where no completion to it could be scored.
    pub fn check(&self, example: &Example, method: Option<&str>) -> Result<(), String> {
        let Rules::Rewards(rewards) = &self.rules else {
            return Ok(());
        };
        let method = method.or(example.accu_reward_method.as_deref());
        // Rewards name the row by its number; here its place stands before the message.
        rewards
            .check(0, &example.solution, method)
            .map_err(|error| error.to_string().replace("row 0: ", ""))
    }

    /// Scores the completions to questions; those to one question side by side.
    ///
    /// # Errors
    /// A reward that fails, or gives what is no number.
    pub fn score(
        &self,
        answered: &[(&Question, &StoredCompletion)],
        method: Option<&str>,
    ) -> Result<Vec<Scored>, EvalError> {
        let mut all = Vec::with_capacity(answered.len());
        for batch in answered.chunks(BATCH) {
            match &self.rules {
                Rules::Rewards(rewards) => self.by_rewards(rewards, batch, method, &mut all)?,
                Rules::Box(reader) => {
                    for (question, completion) in batch {
                        all.push(self.by_box(reader, question, completion)?);
                    }
                }
                Rules::Objects => {
                    for (question, completion) in batch {
                        all.push(self.by_objects(question, completion));
                    }
                }
            }
        }
        for scored in &all {
            refuse_non_finite(scored)?;
        }
        Ok(all)
    }

    fn by_box(
        &self,
        reader: &BoxReader,
        question: &Question,
        completion: &StoredCompletion,
    ) -> Result<Scored, EvalError> {
        let mut scored = unscored(question, completion);
        let (Truth::Box(truth), Some(sizes)) = (&question.truth, completion.sizes()) else {
            return Ok(scored);
        };
        let truth = sizes.convert(*truth, self.solution_units, BoxFormat::Absolute);
        let units = self.completion_units;
        let read = reader.read(&completion.model_output, truth, units, sizes)?;
        let shown = |corners, iou| ShownBox::new(corners, "", iou);
        scored.ground_truth = json!(<[f64; 4]>::from(truth));
        scored.extracted_answer = json!(read.found.map_or([0.0; 4], Into::into));
        scored.correct = u8::from(read.iou > self.correct_above);
        scored.score = read.iou;
        scored.unread = read.unread.map(str::to_owned);
        scored.reason = match read.unread {
            None => format!("IoU {:.3}", read.iou),
            Some(reason) => reason.to_owned(),
        };
        scored.truths = vec![shown(truth.into(), None)];
        let found = read.found.map(|found| shown(found.into(), Some(read.iou)));
        scored.predicted = found.into_iter().collect();
        scored.values = named([
            ("iou", read.iou),
            ("well_formed", f64::from(u8::from(read.well_formed))),
            ("iou_anywhere", read.iou_anywhere),
        ]);
        Ok(scored)
    }

    fn by_objects(&self, question: &Question, completion: &StoredCompletion) -> Scored {
        let mut scored = unscored(question, completion);
        let (Truth::Objects(objects), Some(sizes)) = (&question.truth, completion.sizes()) else {
            return scored;
        };
        let on_image = |corners| sizes.convert(corners, self.completion_units, BoxFormat::Absolute);
        let objects = &self.in_pixels(objects, sizes);
        let image = detection::compare(objects, &completion.model_output, on_image);
        scored.correct = u8::from(image.f1() >= 1.0);
        scored.score = image.f1();
        scored.reason = image.reason();
        scored.unread = (!image.is_readable()).then(|| match completion.model_output.trim() {
            "" => "the answer is empty".to_owned(),
            _ => "no list of boxes".to_owned(),
        });
        scored.extracted_answer = json!(image.predicted);
        scored.ground_truth = json!(image.truths);
        scored.values = image.values();
        scored.truths = image.truths;
        scored.predicted = image.predicted;
        scored
    }

    /// The true boxes in pixels of the image: those of rows may be in other units.
    fn in_pixels(&self, objects: &Objects, sizes: ImageSizes) -> Objects {
        let mut objects = objects.clone();
        let is_of_row = objects.is_of_row;
        for truth in objects.truths.iter_mut().filter(|_| is_of_row) {
            let corners = truth.corners.into();
            let units = self.solution_units;
            truth.corners = sizes.convert(corners, units, BoxFormat::Absolute).into();
        }
        objects
    }

    fn by_rewards(
        &self,
        rewards: &RewardSet,
        batch: &[(&Question, &StoredCompletion)],
        method: Option<&str>,
        all: &mut Vec<Scored>,
    ) -> Result<(), EvalError> {
        let inputs: Vec<RewardInput<'_>> = batch
            .iter()
            .filter_map(|(question, completion)| reward_input(question, completion, method))
            .collect();
        let scores = rewards.score(&inputs).map_err(|error| {
            let at = error.row().and_then(|row| batch.get(row));
            EvalError::Scoring {
                place: at.map_or_else(|| "rewards".to_owned(), |(q, _)| q.place.clone()),
                source: Box::new(error),
            }
        })?;
        // As in the metrics of training; `accuracy` alone is the share of correct completions.
        let names = rewards.names().map(|name| format!("rewards/{name}"));
        let names: Vec<String> = names.collect();
        for (index, ((question, completion), input)) in batch.iter().zip(&inputs).enumerate() {
            let mut scored = unscored(question, completion);
            scored.score = scores.total[index];
            let first = scores.per_reward[0][index];
            scored.correct = u8::from(first.is_some_and(|first| first > self.correct_above));
            let each = names.iter().zip(&scores.per_reward);
            let each = each.filter_map(|(name, scores)| Some((name.as_str(), scores[index]?)));
            scored.values = match names.len() {
                1 => Map::new(),
                _ => named(each),
            };
            // A judge would be asked a second time.
            if rewards.is_by_row() {
                let why = rewards.explain(input).map_err(|error| EvalError::Scoring {
                    place: question.place.clone(),
                    source: Box::new(error),
                })?;
                self.explain(&mut scored, why, completion.sizes());
            }
            all.push(scored);
        }
        Ok(())
    }

    fn explain(
        &self,
        scored: &mut Scored,
        why: Vec<Option<Explanation>>,
        sizes: Option<ImageSizes>,
    ) {
        for why in why.into_iter().flatten() {
            if scored.reason.is_empty() {
                scored.unread = unread_reason::is_unread(&why.reason).then(|| why.reason.clone());
                scored.reason = why.reason;
                scored.extracted_answer = json!(why.answer);
            }
            let Some(sizes) = sizes else { continue };
            // Boxes come in the units of the solution, but shares of the image in its pixels.
            let units = match self.solution_units {
                BoxFormat::Relative1 => BoxFormat::Absolute,
                units => units,
            };
            let shown = |found: &FoundBox| {
                let corners = sizes.convert(found.corners, units, BoxFormat::Absolute);
                ShownBox::new(corners.into(), &found.label, None)
            };
            if scored.truths.is_empty() && scored.predicted.is_empty() {
                scored.truths = why.truths.iter().map(shown).collect();
                scored.predicted = why.predicted.iter().map(shown).collect();
            }
        }
    }
}

/// The accuracy method that a task means; none where the rows say it.
pub fn method_of(task: EvalTask) -> Option<&'static str> {
    match task {
        EvalTask::Mcq => Some("mcq"),
        EvalTask::YesNo => Some("yes_no"),
        EvalTask::Math => Some("math"),
        EvalTask::Match | EvalTask::AllMatch => Some("all_match"),
        _ => None,
    }
}

fn named<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> Map<String, Value> {
    let values = values.into_iter();
    values.map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn reward_input<'a>(
    question: &'a Question,
    completion: &'a StoredCompletion,
    method: Option<&'a str>,
) -> Option<RewardInput<'a>> {
    let example = question.example.as_ref().ok()?;
    Some(RewardInput {
        completion: &completion.model_output,
        solution: &example.solution,
        problem: Some(&example.problem),
        accu_reward_method: method.or(example.accu_reward_method.as_deref()),
        images: &example.images,
        image_sizes: &completion.image_sizes,
        image_grid_thw: &completion.image_grid_thw,
        columns: &example.columns,
        sample: Some(&question.place),
        step: None,
        completion_tokens: Some(completion.tokens),
    })
}

/// The completion as it is, worth nothing.
pub(crate) fn unscored(question: &Question, completion: &StoredCompletion) -> Scored {
    let example = question.example.as_ref().ok();
    Scored {
        image: completion.image.clone(),
        question: completion.question.clone(),
        ground_truth: json!(example.map(|example| &example.answer)),
        model_output: completion.model_output.clone(),
        input_size: heights_first(&completion.input_sizes),
        image_size: heights_first(&completion.image_sizes),
        extracted_answer: Value::Null,
        correct: 0,
        score: 0.0,
        values: Map::new(),
        reason: String::new(),
        unread: None,
        finish_reason: Some(completion.finish_reason),
        truths: Vec::new(),
        predicted: Vec::new(),
        image_id: question.image_id(),
        image_paths: example.map(|example| example.images.clone()).unwrap_or_default(),
        subset: String::new(),
        place: question.place.clone(),
        row: completion.row,
        completion_index: completion.completion_index,
        bad: None,
    }
}

/// A row that could not be asked.
pub(crate) fn bad(question: &Question, [row, completion_index]: [usize; 2], cause: &str) -> Scored {
    let known = question.example.as_ref().ok();
    let truths = match &question.truth {
        Truth::Objects(objects) => detection::truths(objects),
        _ => Vec::new(),
    };
    Scored {
        image: known.map_or(Value::Null, |example| json!(example.columns.get("image"))),
        question: known.map_or_else(String::new, |example| example.problem.clone()),
        ground_truth: json!(known.map(|example| &example.answer)),
        model_output: String::new(),
        input_size: Value::Null,
        image_size: Value::Null,
        extracted_answer: Value::Null,
        correct: 0,
        score: 0.0,
        values: Map::new(),
        reason: String::new(),
        unread: None,
        finish_reason: None,
        truths,
        predicted: Vec::new(),
        image_id: question.image_id(),
        image_paths: Vec::new(),
        subset: String::new(),
        place: question.place.clone(),
        row,
        completion_index,
        bad: Some(cause.to_owned()),
    }
}

fn heights_first(sizes: &[[u32; 2]]) -> Value {
    let turned: Vec<[u32; 2]> = sizes.iter().map(|[width, height]| [*height, *width]).collect();
    match turned.as_slice() {
        [one] => json!(one),
        all => json!(all),
    }
}

fn refuse_non_finite(scored: &Scored) -> Result<(), EvalError> {
    let values = scored.values.iter().map(|(name, value)| (name.as_str(), value.as_f64()));
    let mut values = std::iter::once(("score", Some(scored.score))).chain(values);
    // A number that JSON cannot hold has become null.
    match values.find(|(_, value)| !value.is_some_and(f64::is_finite)) {
        Some((name, _)) => {
            Err(EvalError::NotFinite { place: scored.place.clone(), name: name.to_owned() })
        }
        None => Ok(()),
    }
}

fn reward_options(
    config: &EvalConfig,
    family: RewardFamily,
    patch_size: usize,
    judge_cache: PathBuf,
) -> RewardOptions {
    let references = &config.references;
    let most = references.overlong_max_tokens;
    let mut options = RewardOptions::new(&config.rewards, family, patch_size, most);
    options.task_type = references.task_type.clone();
    options.is_reward_customized_from_vlm_module &= config.questions.task == Some(EvalTask::Reward);
    let cache = references.judge_cache.as_deref().map(PathBuf::from);
    options.plugins.judge.cache = Some(cache.unwrap_or(judge_cache));
    options
}

/// Whether VLM-R1's format reward of REC is earned.
pub(crate) fn rec_format(family: RewardFamily, patch_size: usize) -> Result<RewardSet, EvalError> {
    let options = RewardOptions {
        family,
        task_type: Some("rec".to_owned()),
        is_reward_customized_from_vlm_module: true,
        patch_size,
        box_units: BoxUnits::default(),
        plugins: PluginOptions::default(),
        overlong: OverlongOptions::default(),
    };
    Ok(RewardSet::build(&[rec::FORMAT.to_owned()], None, &options)?)
}
