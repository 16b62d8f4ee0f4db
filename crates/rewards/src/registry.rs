//! The registry of rewards by name, and their weighted sum.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use config::{RewardBatch, RewardSection};
use serde_json::{Map, Value};

use crate::box_format::{BoxUnits, Comparison};
use crate::box_reward::BoxReward;
use crate::count::Count;
use crate::error::{MAX_SIZE, RewardError, known, nearest_and_known};
use crate::explain::Explanation;
use crate::families::RewardFamily;
use crate::generic::{Accuracy, Format, METHODS};
use crate::json_valid::JsonValid;
use crate::length::Length;
use crate::overlong::{Overlong, OverlongOptions};
use crate::plugins::{self, JudgeOptions, JudgedAccuracy, PluginOptions};
use crate::rec::RecFormat;
use crate::repetition::Repetition;

/// One completion with all that a reward may look at.
#[derive(Clone, Copy, Debug)]
pub struct RewardInput<'a> {
    /// The text of the completion.
    pub completion: &'a str,
    /// The true answer, `<answer> ... </answer>`.
    pub solution: &'a str,
    /// The question.
    pub problem: Option<&'a str>,
    /// How `accuracy` compares the two.
    pub accu_reward_method: Option<&'a str>,
    /// Image files, in the order of the row.
    pub images: &'a [PathBuf],
    /// Width and height of each image file, px.
    pub image_sizes: &'a [[u32; 2]],
    /// Patches in time, height, width of each image as the model sees it.
    pub image_grid_thw: &'a [[usize; 3]],
    /// The whole row as it came, for rewards of the user's own.
    pub columns: &'a Map<String, Value>,
    /// Where the row comes from, `train.jsonl:42`: for messages and rewards of the user's own.
    pub sample: Option<&'a str>,
    /// Step of the training that asks, from 1; none outside training.
    pub step: Option<u64>,
    /// Tokens of the completion without its end token, if they were counted.
    pub completion_tokens: Option<usize>,
}

impl<'a> RewardInput<'a> {
    /// A row with all other fields empty.
    pub fn new(completion: &'a str, solution: &'a str, columns: &'a Map<String, Value>) -> Self {
        Self {
            completion,
            solution,
            problem: None,
            accu_reward_method: None,
            images: &[],
            image_sizes: &[],
            image_grid_thw: &[],
            columns,
            sample: None,
            step: None,
            completion_tokens: None,
        }
    }
}

/// A rule that scores completions.
pub trait Reward: Send + Sync {
    /// The name that `--reward_funcs` and the metrics use.
    fn name(&self) -> &str;

    /// One score for each row, in order; `None` where the reward does not apply to the row.
    ///
    /// # Errors
    /// Where a row lacks what the reward needs. A bad completion is never an error: it scores low.
    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError>;

    /// Called when a step, or one request, has been scored completely.
    ///
    /// # Errors
    /// Where only the whole shows that the scores are worth nothing.
    fn conclude(&self) -> Result<(), RewardError> {
        Ok(())
    }

    /// Counters beside the scores, for the metrics. Their names are declared in [`base::metrics`].
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Largest size of a score; a larger one ends the run, because advantages square scores.
    fn max_size(&self) -> f64 {
        MAX_SIZE
    }

    /// Whether each row is scored in this process and by itself, so that rows can be timed one by
    /// one. A reward that compares rows, or asks others for a batch at a time, says no.
    fn is_by_row(&self) -> bool {
        true
    }

    /// Which completions of a training step must be shown at once, as the scores depend on them or on the place in the batch:
    /// what need not wait is scored while others are sampled. Unless said otherwise, [`Reward::is_by_row`] decides.
    fn batch(&self) -> RewardBatch {
        if self.is_by_row() { RewardBatch::Completion } else { RewardBatch::Step }
    }

    /// Explains the score of a row; `None` where there is nothing to explain.
    ///
    /// # Errors
    /// As [`Reward::score`]; rows in them count from 0, this one being 0.
    fn explain(&self, _row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        Ok(None)
    }

    /// Looks at a row of the data before any completion exists.
    ///
    /// # Errors
    /// Where no completion of this row could be scored.
    fn check(
        &self,
        _row: usize,
        _solution: &str,
        _accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        Ok(())
    }
}

/// Which rewards the names of `--reward_funcs` mean.
#[derive(Clone, Debug)]
pub struct RewardOptions {
    /// Family of the model.
    pub family: RewardFamily,
    /// `--task_type`; a family's own rewards exist for `rec`.
    pub task_type: Option<String>,
    /// Take the family's own rewards instead of the generic ones.
    pub is_reward_customized_from_vlm_module: bool,
    /// Edge of the model's image patches, px.
    pub patch_size: usize,
    /// In which units boxes are given.
    pub box_units: BoxUnits,
    /// How rewards of the user's own are run.
    pub plugins: PluginOptions,
    /// Lengths of the reward `overlong`.
    pub overlong: OverlongOptions,
}

impl RewardOptions {
    /// What the settings say, for a model of `family` with image patches of `patch_size` px. What they leave open is the
    /// caller's to fill in: the task, what is asked for at once, the flag that ends waits, the folder of the judge's replies.
    pub fn new(
        settings: &RewardSection,
        family: RewardFamily,
        patch_size: usize,
        overlong_max_tokens: usize,
    ) -> Self {
        let path = |text: &Option<String>| text.as_deref().map(PathBuf::from);
        Self {
            family,
            task_type: None,
            is_reward_customized_from_vlm_module: settings.is_reward_customized_from_vlm_module,
            patch_size,
            box_units: BoxUnits {
                answer: settings.box_format,
                solution: settings.solution_box_format,
            },
            plugins: PluginOptions {
                workers: settings.reward_workers,
                timeout_secs: settings.reward_timeout_secs,
                retry_secs: settings.reward_retry_secs,
                python: settings.reward_python.clone(),
                api_key_file: path(&settings.reward_api_key_file),
                judge: JudgeOptions {
                    model: settings.judge_model.clone(),
                    prompt: path(&settings.judge_prompt),
                    images: settings.judge_images,
                    concurrency: settings.judge_concurrency,
                    max_failed: settings.judge_max_failed,
                    ..JudgeOptions::default()
                },
                ..PluginOptions::default()
            },
            overlong: OverlongOptions::new(overlong_max_tokens, settings.overlong_cache_tokens),
        }
    }
}

/// The scores of each reward and their weighted sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `[rewards][rows]`, unweighted; `None` where a reward does not apply.
    pub per_reward: Vec<Vec<Option<f64>>>,
    /// `[rows]`, the weighted sum of those that apply.
    pub total: Vec<f64>,
}

/// How long a reward took, by the clock.
#[derive(Clone, Debug, PartialEq)]
pub enum ScoringTime {
    /// For each row, scored by itself.
    Rows(Vec<Duration>),
    /// For the batch as a whole: [`Reward::is_by_row`] is false.
    Batch(Duration),
}

/// The rewards of a run, with their weights.
pub struct RewardSet {
    rewards: Vec<Box<dyn Reward>>,
    weights: Vec<f64>,
}

/// Names that `--reward_funcs` may hold.
const REWARDS: [&str; 12] = [
    "accuracy",
    "format",
    "length",
    "repetition",
    "count",
    "json_valid",
    "overlong",
    "llm",
    "giou",
    "diou",
    "point_in_box",
    "click",
];

/// Names that `accu_reward_method` may hold.
pub fn accuracy_methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, _)| *name).chain([plugins::JUDGE])
}

impl RewardSet {
    /// The rewards called `names`, each weighted 1 unless `weights` says otherwise.
    ///
    /// # Errors
    /// On a name that does not exist or stands twice, on a weight too many, too few or not finite,
    /// and on a family's own rewards asked for outside `rec`.
    pub fn build(
        names: &[String],
        weights: Option<&[f64]>,
        options: &RewardOptions,
    ) -> Result<Self, RewardError> {
        if names.is_empty() {
            return Err(RewardError::NoReward { known: known(&REWARDS) });
        }
        let rewards = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                if names[..index].contains(name) {
                    return Err(RewardError::RepeatedReward { name: name.clone() });
                }
                reward_by_name(name, options)
            })
            .collect::<Result<_, _>>()?;
        Self::new(rewards, weights)
    }

    /// Rewards that are already built, the user's own among them.
    ///
    /// # Errors
    /// On a name that stands twice and on a weight too many, too few or not finite.
    pub fn new(
        rewards: Vec<Box<dyn Reward>>,
        weights: Option<&[f64]>,
    ) -> Result<Self, RewardError> {
        for (index, reward) in rewards.iter().enumerate() {
            // Metrics and rows are keyed by name.
            if rewards[..index].iter().any(|r| r.name() == reward.name()) {
                return Err(RewardError::RepeatedReward { name: reward.name().to_owned() });
            }
        }
        let weights = weights.map_or_else(|| vec![1.0; rewards.len()], <[f64]>::to_vec);
        if weights.len() != rewards.len() {
            return Err(RewardError::WeightCount {
                weights: weights.len(),
                rewards: rewards.len(),
            });
        }
        for (reward, &weight) in rewards.iter().zip(&weights) {
            if !weight.is_finite() || weight.abs() > MAX_SIZE {
                return Err(RewardError::Weight { reward: reward.name().to_owned(), weight });
            }
        }
        Ok(Self { rewards, weights })
    }

    /// Names of the rewards, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rewards.iter().map(|reward| reward.name())
    }

    /// What the rewards counted since they were built: reward, counter, count.
    pub fn counters(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.rewards.iter().flat_map(|reward| {
            let counters = reward.counters().into_iter();
            counters.map(|(name, count)| (reward.name(), name, count))
        })
    }

    /// Whether each row is scored in this process and by itself ([`Reward::is_by_row`]).
    pub fn is_by_row(&self) -> bool {
        self.rewards.iter().all(|reward| reward.is_by_row())
    }

    /// Weights of the rewards, in order.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Why each reward says of a row what it says, in the order of [`RewardSet::names`].
    ///
    /// # Errors
    /// Where the row lacks what a reward needs.
    pub fn explain(&self, row: &RewardInput<'_>) -> Result<Vec<Option<Explanation>>, RewardError> {
        let rewards = self.rewards.iter();
        rewards.map(|reward| reward.explain(row)).collect()
    }

    /// Looks at a row of the data before any completion exists; `row` is for the message.
    ///
    /// # Errors
    /// Where no completion of this row could be scored.
    pub fn check(
        &self,
        row: usize,
        solution: &str,
        accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        self.rewards.iter().try_for_each(|reward| reward.check(row, solution, accu_reward_method))
    }

    /// Scores every row by every reward.
    ///
    /// # Errors
    /// Where a row lacks what a reward needs, and on a reward that is not finite.
    pub fn score(&self, rows: &[RewardInput<'_>]) -> Result<Scores, RewardError> {
        let scores = self.each_reward(|reward| concluded(reward, asked(reward, rows)?))?;
        Ok(self.summed(rows.len(), scores))
    }

    /// As [`RewardSet::score`], and how long each reward took, in the order of
    /// [`RewardSet::names`].
    ///
    /// # Errors
    /// As [`RewardSet::score`].
    pub fn score_timed(
        &self,
        rows: &[RewardInput<'_>],
    ) -> Result<(Scores, Vec<ScoringTime>), RewardError> {
        let timed = self.each_reward(|reward| concluded(reward, timed(reward, rows)?))?;
        let (scores, times) = timed.into_iter().unzip();
        Ok((self.summed(rows.len(), scores), times))
    }

    pub(crate) fn rewards(&self) -> impl Iterator<Item = &dyn Reward> {
        self.rewards.iter().map(AsRef::as_ref)
    }

    /// The weighted sums of what the rewards said of `num_rows` rows.
    pub fn summed(&self, num_rows: usize, per_reward: Vec<Vec<Option<f64>>>) -> Scores {
        let mut total = vec![0.0; num_rows];
        for (weight, scores) in self.weights.iter().zip(&per_reward) {
            for (score, total) in scores.iter().zip(&mut total) {
                *total += score.map_or(0.0, |value| weight * value);
            }
        }
        Scores { per_reward, total }
    }

    /// Calls `ask` for all rewards in parallel: some wait for other programs.
    fn each_reward<T: Send>(
        &self,
        ask: impl Fn(&dyn Reward) -> Result<T, RewardError> + Sync,
    ) -> Result<Vec<T>, RewardError> {
        if let [reward] = self.rewards.as_slice() {
            return Ok(vec![ask(reward.as_ref())?]);
        }
        let ask = &ask;
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .rewards
                .iter()
                .map(|reward| scope.spawn(move || ask(reward.as_ref())))
                .collect();
            threads.into_iter().map(joined).collect()
        })
    }
}

/// What a reward said of the whole of a step.
pub(crate) fn concluded<T>(reward: &dyn Reward, said: T) -> Result<T, RewardError> {
    reward.conclude()?;
    Ok(said)
}

/// The scores of one reward: one for each row, all of them finite.
pub(crate) fn asked(
    reward: &dyn Reward,
    rows: &[RewardInput<'_>],
) -> Result<Vec<Option<f64>>, RewardError> {
    checked(reward, rows.len(), reward.score(rows)?)
}

fn checked(
    reward: &dyn Reward,
    num_rows: usize,
    scores: Vec<Option<f64>>,
) -> Result<Vec<Option<f64>>, RewardError> {
    if scores.len() != num_rows {
        return Err(RewardError::ScoreCount {
            reward: reward.name().to_owned(),
            got: scores.len(),
            expected: num_rows,
        });
    }
    // Not a number is not within either.
    let is_within = |value: f64| value.abs() <= reward.max_size();
    let bad = |score: &Option<f64>| score.is_some_and(|value| !is_within(value));
    let Some(row) = scores.iter().position(bad) else {
        // Of zeros only the one without a sign.
        let positive = |score: Option<f64>| score.map(|value| value + 0.0);
        return Ok(scores.into_iter().map(positive).collect());
    };
    let (reward, value) = (reward.name().to_owned(), scores[row].unwrap_or_default());
    Err(match value.is_finite() {
        true => RewardError::TooLarge { reward, row, value },
        false => RewardError::NotFinite { reward, row, value },
    })
}

/// The scores of one reward, with the time that they took.
fn timed(
    reward: &dyn Reward,
    rows: &[RewardInput<'_>],
) -> Result<(Vec<Option<f64>>, ScoringTime), RewardError> {
    if !reward.is_by_row() {
        let start = Instant::now();
        let scores = asked(reward, rows)?;
        return Ok((scores, ScoringTime::Batch(start.elapsed())));
    }
    // Patterns are built where they are first used, which is no row's time.
    if let Some(first) = rows.first() {
        reward.score(std::slice::from_ref(first))?;
    }
    let mut scores = Vec::with_capacity(rows.len());
    let mut times = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let start = Instant::now();
        let score = reward.score(std::slice::from_ref(row));
        times.push(start.elapsed());
        // Errors count rows within what was asked: asked again, this one has its place.
        let score = score.or_else(|error| reward.score(&rows[..=index]).and(Err(error)));
        scores.extend(score?);
    }
    let scores = checked(reward, rows.len(), scores)?;
    Ok((scores, ScoringTime::Rows(times)))
}

/// The result of a thread; its panic is resumed here.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn reward_by_name(name: &str, options: &RewardOptions) -> Result<Box<dyn Reward>, RewardError> {
    if let Some(reward) = plugins::by_name(name, &options.plugins) {
        return reward;
    }
    let RewardOptions { family, patch_size, box_units, .. } = *options;
    let units = Comparison::new(box_units.of_one_box(family), patch_size);
    if let Some(reward) = BoxReward::by_name(name, units) {
        return reward;
    }
    match name {
        "count" => return Ok(Box::new(Count)),
        "repetition" => return Ok(Box::new(Repetition)),
        "json_valid" => return Ok(Box::new(JsonValid)),
        "overlong" => return Ok(Box::new(Overlong(options.overlong))),
        "length" => {
            let accuracy = reward_by_name("accuracy", options)?;
            return Ok(Box::new(Length { accuracy }));
        }
        _ => {}
    }
    let customised = options.is_reward_customized_from_vlm_module;
    if customised && options.task_type.as_deref() != Some("rec") {
        return Err(RewardError::TaskType { task_type: options.task_type.clone() });
    }
    match (name, customised) {
        ("accuracy", true) if patch_size == 0 => Err(RewardError::PatchSize),
        ("accuracy", true) => BoxReward::rec_accuracy(family.iou, units),
        ("format", true) => {
            Ok(Box::new(RecFormat { form: family.form, has_decimals: units.has_decimals() }))
        }
        ("accuracy", false) => {
            let units = Comparison::new(box_units.of_lists(family), patch_size).checked()?;
            let accuracy = JudgedAccuracy::new(Accuracy { units }, &options.plugins)?;
            Ok(Box::new(accuracy))
        }
        ("format", false) => Ok(Box::new(Format)),
        _ => {
            let (nearest, known) = nearest_and_known(name, &REWARDS);
            Err(RewardError::UnknownReward { name: name.to_owned(), nearest, known })
        }
    }
}
