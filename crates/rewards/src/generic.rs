//! Rewards for any task: `accuracy` by the method each row names, and `format`.

use std::sync::LazyLock;

use regex::Regex;

use crate::answer::clean_text;
use crate::error::{RewardError, nearest_and_known};
use crate::registry::{Reward, RewardInput};

/// Scores a completion against a solution.
type Method = fn(completion: &str, solution: &str) -> f64;

/// Names of `accu_reward_method` and what they do.
pub(crate) const METHODS: &[(&str, Method)] = &[("all_match", all_match)];

/// The method of rows that name none, as in VLM-R1.
const DEFAULT_METHOD: &str = "default";

/// 1 where the cleaned texts are equal, else 0.
fn all_match(completion: &str, solution: &str) -> f64 {
    f64::from(clean_text(completion) == clean_text(solution))
}

/// The method of each row, `accu_reward_method`.
pub(crate) struct Accuracy;

fn method(row: usize, name: Option<&str>) -> Result<Method, RewardError> {
    let name = name.unwrap_or(DEFAULT_METHOD);
    if let Some((_, method)) = METHODS.iter().find(|(known, _)| *known == name) {
        return Ok(*method);
    }
    let names: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
    let (nearest, known) = nearest_and_known(name, &names);
    Err(RewardError::UnknownMethod {
        row,
        name: name.to_owned(),
        nearest,
        known,
    })
}

impl Reward for Accuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter()
            .enumerate()
            .map(|(row, input)| {
                let method = method(row, input.accu_reward_method)?;
                Ok(Some(method(input.completion, input.solution)))
            })
            .collect()
    }

    fn check(
        &self,
        row: usize,
        _solution: &str,
        accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        method(row, accu_reward_method).map(drop)
    }
}

/// 1 where the whole completion is `<think>...</think>`, white space, `<answer>...</answer>`.
pub(crate) struct Format;

static WHOLE: LazyLock<Regex> = LazyLock::new(|| {
    let spaces = crate::boxes::SPACES;
    let pattern = format!(r"(?s)\A<think>.*?</think>{spaces}<answer>.*?</answer>\z");
    Regex::new(&pattern).expect("the pattern is valid")
});

impl Reward for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(rows
            .iter()
            .map(|row| Some(f64::from(WHOLE.is_match(row.completion))))
            .collect())
    }
}
