//! Errors of rewards.

use thiserror::Error;

/// Largest size of a reward, and of a weight: sums of a thousand squares of their products are finite.
pub(crate) const MAX_SIZE: f64 = 1e50;

/// An error of the rewards. Rows are counted from 0 within the batch that was given.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum RewardError {
    /// `--reward_funcs` names a reward that does not exist here.
    #[error("unknown reward `{name}`\nhint: did you mean `{nearest}`? valid: {known}")]
    UnknownReward {
        /// The name as given.
        name: String,
        /// The most similar valid name.
        nearest: String,
        /// All valid names.
        known: String,
    },
    /// A reward is asked for twice.
    #[error("reward `{name}` is named twice")]
    RepeatedReward {
        /// The name as given.
        name: String,
    },
    /// No reward was named.
    #[error("no reward named\nhint: valid: {known}")]
    NoReward {
        /// All valid names.
        known: String,
    },
    /// A row asks for an accuracy method that does not exist here.
    #[error(
        "row {row}: unknown accuracy method `{name}`\nhint: did you mean `{nearest}`? valid: {known}"
    )]
    UnknownMethod {
        /// Index of the row.
        row: usize,
        /// The method as given.
        name: String,
        /// The most similar valid name.
        nearest: String,
        /// All valid names.
        known: String,
    },
    /// A family's own rewards exist for `rec` only.
    #[error(
        "rewards customised from the model family: got task type {}, expected `rec`", quoted(.task_type)
    )]
    TaskType {
        /// The task type as given.
        task_type: Option<String>,
    },
    /// Boxes cannot be scaled by a patch of no size.
    #[error("patch size: got 0, expected at least 1")]
    PatchSize,
    /// `--reward_weights` does not fit `--reward_funcs`.
    #[error("reward weights: got {weights}, expected {rewards}, one for each reward")]
    WeightCount {
        /// Number of weights.
        weights: usize,
        /// Number of rewards.
        rewards: usize,
    },
    /// A weight is NaN, infinite or too large.
    #[error(
        "weight of reward `{reward}`: got {weight:e}, expected a number of at most {MAX_SIZE:e} in size"
    )]
    Weight {
        /// Name of the reward.
        reward: String,
        /// Its weight.
        weight: f64,
    },
    /// A reward is NaN or infinite.
    #[error("reward `{reward}`, row {row}: got {value}, expected a finite number")]
    NotFinite {
        /// Name of the reward.
        reward: String,
        /// Index of the row.
        row: usize,
        /// What it returned.
        value: f64,
    },
    /// A reward is so large that no advantage can be computed of it.
    #[error(
        "reward `{reward}`, row {row}: got {value:e}, expected at most {MAX_SIZE:e} in size, as the advantages square it"
    )]
    TooLarge {
        /// Name of the reward.
        reward: String,
        /// Index of the row.
        row: usize,
        /// What it returned.
        value: f64,
    },
    /// A reward returned another number of scores than it was given rows.
    #[error("reward `{reward}`: got {got} scores, expected {expected}, one for each row")]
    ScoreCount {
        /// Name of the reward.
        reward: String,
        /// Number of scores.
        got: usize,
        /// Number of rows.
        expected: usize,
    },
    /// The true answer is not a box.
    #[error(
        "reward `{reward}`, row {row}: solution `{solution}`: {reason}, expected `[x1, y1, x2, y2]`"
    )]
    Solution {
        /// Name of the reward.
        reward: String,
        /// Index of the row.
        row: usize,
        /// The solution, shortened.
        solution: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The true answer states no count.
    #[error(
        "reward `count`, row {row}: solution `{solution}`: expected a number, `none` or a JSON list"
    )]
    NoCount {
        /// Index of the row.
        row: usize,
        /// The solution, shortened.
        solution: String,
    },
    /// A reward needs to know how long the completion is.
    #[error(
        "reward `{reward}`, row {row}: unknown number of tokens\nhint: give `completion_tokens` in the \
         row, or --model_name_or_path to count them"
    )]
    NoTokenCount {
        /// Name of the reward.
        reward: &'static str,
        /// Index of the row.
        row: usize,
    },
    /// The true answer has not the form that the accuracy method reads.
    #[error("accuracy method `{method}`, row {row}: solution `{solution}`: {reason}")]
    MethodSolution {
        /// Index of the row.
        row: usize,
        /// The method.
        method: String,
        /// The solution, shortened.
        solution: String,
        /// What is wrong with it, and what was expected.
        reason: String,
    },
    /// A reward of the user's own is not named as it must be.
    #[error("reward `{name}`: {reason}")]
    PluginName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An option of rewards of the user's own is out of range.
    #[error("`{option}`: got {got}, expected {expected}")]
    PluginOption {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The key of rewards over HTTP cannot be used.
    #[error("key of rewards over HTTP, `{place}`: {reason}")]
    KeyFile {
        /// The file, or the variable of the environment.
        place: String,
        /// Why.
        reason: String,
    },
    /// The judge's address cannot be used.
    #[error(
        "reward `llm`: `{url}`: {reason}\nhint: see OPENAI_API_BASE; a key goes to OPENAI_API_KEY"
    )]
    JudgeAddress {
        /// The address, secrets left out.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something is to be judged, and no judge was named.
    #[error("reward `llm`: no model\nhint: --judge_model, at the endpoint of OPENAI_API_BASE")]
    NoJudge,
    /// The judge's prompt cannot be used.
    #[error("reward `llm`: `{path}`: {reason}")]
    JudgeFile {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The judge gave too few verdicts, or none.
    #[error(
        "reward `llm`: {failures}\nhint: `{model}` was asked at `{url}`: see OPENAI_API_BASE, OPENAI_API_KEY and \
         --judge_model; --judge_max_failed 1 goes on and scores such rows by equality of the texts"
    )]
    JudgeFailed {
        /// How many, and why.
        failures: String,
        /// The model as it was asked for.
        model: String,
        /// Where it was asked for.
        url: String,
    },
    /// A reward of the user's own does not start.
    #[error("reward `{reward}`: `{program}` does not start: {reason}{}", said(.stderr))]
    PluginStart {
        /// Name of the reward.
        reward: String,
        /// What was run.
        program: String,
        /// Why.
        reason: String,
        /// The last lines that it wrote to stderr.
        stderr: String,
    },
    /// The file of a reward in Python cannot be loaded, or lacks the function.
    #[error("reward `{reward}` cannot be loaded: {reason}{}", said(.stderr))]
    PluginLoad {
        /// Name of the reward.
        reward: String,
        /// Why.
        reason: String,
        /// The last lines that it wrote to stderr.
        stderr: String,
    },
    /// A reward of the user's own gave no scores.
    #[error("reward `{reward}`, {samples}: {reason}{}", said(.stderr))]
    Plugin {
        /// Name of the reward.
        reward: String,
        /// Index of the row at fault, else of the first row of the request.
        row: usize,
        /// The samples of the request by their names, where they have some.
        samples: String,
        /// Why.
        reason: String,
        /// The last lines that it wrote to stderr.
        stderr: String,
    },
    /// A box is to be converted, and the size that this needs is not in the row.
    #[error(
        "reward `{reward}`, row {row}: no {what}, needed to convert boxes to the units of the solution"
    )]
    NoSize {
        /// Name of the reward.
        reward: String,
        /// Index of the row.
        row: usize,
        /// `image_grid_thw` or `image_size`.
        what: &'static str,
    },
    /// A size that no image can have.
    #[error(
        "reward `{reward}`, row {row}: {what} is {width} x {height} px, expected at least 1 x 1"
    )]
    EmptySize {
        /// Name of the reward.
        reward: String,
        /// Index of the row.
        row: usize,
        /// `model input` or `image`.
        what: &'static str,
        /// Width, px.
        width: u64,
        /// Height, px.
        height: u64,
    },
}

impl RewardError {
    /// The row at fault, where one is.
    pub fn row(&self) -> Option<usize> {
        match self {
            Self::UnknownMethod { row, .. }
            | Self::NotFinite { row, .. }
            | Self::TooLarge { row, .. }
            | Self::Solution { row, .. }
            | Self::MethodSolution { row, .. }
            | Self::NoCount { row, .. }
            | Self::NoTokenCount { row, .. }
            | Self::Plugin { row, .. }
            | Self::NoSize { row, .. }
            | Self::EmptySize { row, .. } => Some(*row),
            _ => None,
        }
    }

    /// The same about a row that is `index` in a larger batch.
    pub(crate) fn at_row(mut self, index: usize) -> Self {
        if let Self::UnknownMethod { row, .. }
        | Self::NotFinite { row, .. }
        | Self::TooLarge { row, .. }
        | Self::Solution { row, .. }
        | Self::MethodSolution { row, .. }
        | Self::NoCount { row, .. }
        | Self::NoTokenCount { row, .. }
        | Self::Plugin { row, .. }
        | Self::NoSize { row, .. }
        | Self::EmptySize { row, .. } = &mut self
        {
            *row = index;
        }
        self
    }
}

fn quoted(text: &Option<String>) -> String {
    match text {
        Some(text) => format!("`{text}`"),
        None => "none".to_owned(),
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() {
        return String::new();
    }
    format!("\nits stderr:\n  {}", stderr.replace('\n', "\n  "))
}

/// The valid name most like `name`, and the list of all.
pub(crate) fn nearest_and_known(name: &str, valid: &[&str]) -> (String, String) {
    let nearest = valid
        .iter()
        .min_by_key(|v| strsim::damerau_levenshtein(&name.to_lowercase(), &v.to_lowercase()))
        .copied()
        .unwrap_or_default();
    (nearest.to_owned(), known(valid))
}

/// `` `a`, `b` ``.
pub(crate) fn known(valid: &[&str]) -> String {
    let quoted: Vec<String> = valid.iter().map(|v| format!("`{v}`")).collect();
    quoted.join(", ")
}

/// A solution for a message: its first 80 characters.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
