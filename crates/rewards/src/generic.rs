//! Rewards for any task: `accuracy` by the method each row names, and `format`.

use std::sync::LazyLock;

use regex::Regex;

use crate::answer::clean_text;
use crate::choice;
use crate::detection;
use crate::error::{RewardError, nearest_and_known, shortened};
use crate::registry::{Reward, RewardInput, accuracy_methods};
use crate::text;

/// How a completion is scored against a solution.
#[derive(Clone, Copy)]
pub(crate) enum Method {
    /// Any text will do as a solution.
    Text(fn(completion: &str, solution: &str) -> f64),
    /// The solution must have a form; `check` and `score` say what is wrong with one that has not.
    Formed {
        check: fn(solution: &str) -> Result<(), String>,
        score: fn(completion: &str, solution: &str) -> Result<f64, String>,
    },
}

impl Method {
    fn check(self, solution: &str) -> Result<(), String> {
        match self {
            Self::Text(_) => Ok(()),
            Self::Formed { check, .. } => check(solution),
        }
    }

    fn score(self, completion: &str, solution: &str) -> Result<f64, String> {
        match self {
            Self::Text(score) => Ok(score(completion, solution)),
            Self::Formed { score, .. } => score(completion, solution),
        }
    }
}

/// Names of `accu_reward_method` and what they do.
pub(crate) const METHODS: &[(&str, Method)] = &[
    ("default", Method::Text(text::default)),
    ("mcq", Method::Text(choice::mcq)),
    ("yes_no", Method::Text(choice::yes_no)),
    ("math", Method::Text(text::math)),
    ("all_match", Method::Text(all_match)),
    ("map", formed(detection::check_map, detection::map)),
    (
        "map_strict",
        formed(detection::check_map, detection::map_strict),
    ),
    ("od_ap", formed(detection::check_od, detection::od_ap)),
    ("od_ap50", formed(detection::check_od, detection::od_ap50)),
    (
        "odLength",
        formed(detection::check_od, detection::od_length),
    ),
    (
        "weighted_sum",
        formed(detection::check_weighted_sum, detection::weighted_sum),
    ),
];

const fn formed(
    check: fn(&str) -> Result<(), String>,
    score: fn(&str, &str) -> Result<f64, String>,
) -> Method {
    Method::Formed { check, score }
}

/// The method of rows that name none, as in VLM-R1.
const DEFAULT_METHOD: &str = "default";

/// 1 where the cleaned texts are equal, else 0.
fn all_match(completion: &str, solution: &str) -> f64 {
    f64::from(clean_text(completion) == clean_text(solution))
}

/// The method of each row, `accu_reward_method`.
pub(crate) struct Accuracy;

fn method(row: usize, name: &str) -> Result<Method, RewardError> {
    if let Some((_, method)) = METHODS.iter().find(|(known, _)| *known == name) {
        return Ok(*method);
    }
    let names: Vec<&str> = accuracy_methods().collect();
    let (nearest, known) = nearest_and_known(name, &names);
    Err(RewardError::UnknownMethod {
        row,
        name: name.to_owned(),
        nearest,
        known,
    })
}

fn bad_solution(row: usize, method: &str, solution: &str, reason: String) -> RewardError {
    RewardError::MethodSolution {
        row,
        method: method.to_owned(),
        solution: shortened(solution),
        reason,
    }
}

impl Reward for Accuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter()
            .enumerate()
            .map(|(row, input)| {
                let name = input.accu_reward_method.unwrap_or(DEFAULT_METHOD);
                method(row, name)?
                    .score(input.completion, input.solution)
                    .map(Some)
                    .map_err(|reason| bad_solution(row, name, input.solution, reason))
            })
            .collect()
    }

    fn check(
        &self,
        row: usize,
        solution: &str,
        accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        let name = accu_reward_method.unwrap_or(DEFAULT_METHOD);
        method(row, name)?
            .check(solution)
            .map_err(|reason| bad_solution(row, name, solution, reason))
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
