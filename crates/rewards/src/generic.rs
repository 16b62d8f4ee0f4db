//! Rewards for any task: `accuracy` by the method each row names, and `format`.

use std::sync::LazyLock;

use crate::box_format::Comparison;
use crate::choice;
use crate::detection;
use crate::error::{RewardError, nearest_and_known, shortened};
use crate::explain::{Explanation, Notes};
use crate::format_pattern::FormatPattern;
use crate::registry::{Reward, RewardInput, accuracy_methods};
use crate::text;
use crate::verdict::Verdict;

/// How a completion is scored against a solution.
#[derive(Clone, Copy)]
pub(crate) enum Method {
    /// Any text will do as a solution.
    Text(for<'a> fn(completion: &'a str, solution: &'a str) -> Verdict<'a>),
    /// The solution must be a list of labelled boxes.
    Boxes(detection::Method),
}

impl Method {
    fn check(self, solution: &str) -> Result<(), String> {
        match self {
            Self::Text(_) => Ok(()),
            Self::Boxes(method) => method.check(solution),
        }
    }
}

/// Names of `accu_reward_method` and what they do.
pub(crate) const METHODS: &[(&str, Method)] = &[
    ("default", Method::Text(text::default)),
    ("mcq", Method::Text(choice::mcq)),
    ("yes_no", Method::Text(choice::yes_no)),
    ("math", Method::Text(text::math)),
    ("all_match", Method::Text(text::all_match)),
    ("map", Method::Boxes(detection::Method::Map)),
    ("map_strict", Method::Boxes(detection::Method::MapStrict)),
    ("od_ap", Method::Boxes(detection::Method::OdAp)),
    ("od_ap50", Method::Boxes(detection::Method::OdAp50)),
    ("odLength", Method::Boxes(detection::Method::OdLength)),
    ("weighted_sum", Method::Boxes(detection::Method::WeightedSum)),
];

/// The method of rows that name none, as in VLM-R1.
const DEFAULT_METHOD: &str = "default";

/// The method of each row, `accu_reward_method`.
pub(crate) struct Accuracy {
    /// Units of the boxes that methods of detection compare.
    pub(crate) units: Comparison,
}

impl Accuracy {
    fn score_boxes(
        &self,
        row: usize,
        input: &RewardInput<'_>,
        (name, method): (&str, detection::Method),
        notes: &mut Notes<'_>,
    ) -> Result<f64, RewardError> {
        let units = self.units.of_row(self.name(), row, input)?;
        method
            .score(input.completion, input.solution, units, notes)
            .map_err(|reason| bad_solution(row, name, input.solution, reason))
    }
}

fn method(row: usize, name: &str) -> Result<Method, RewardError> {
    if let Some((_, method)) = METHODS.iter().find(|(known, _)| *known == name) {
        return Ok(*method);
    }
    let names: Vec<&str> = accuracy_methods().collect();
    let (nearest, known) = nearest_and_known(name, &names);
    Err(RewardError::UnknownMethod { row, name: name.to_owned(), nearest, known })
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
        let scores = rows.iter().enumerate().map(|(row, input)| {
            let name = input.accu_reward_method.unwrap_or(DEFAULT_METHOD);
            Ok(Some(match method(row, name)? {
                Method::Text(compare) => compare(input.completion, input.solution).rule.score(),
                Method::Boxes(boxes) => {
                    self.score_boxes(row, input, (name, boxes), &mut Notes::none())?
                }
            }))
        });
        scores.collect()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let name = row.accu_reward_method.unwrap_or(DEFAULT_METHOD);
        Ok(Some(match method(0, name)? {
            Method::Text(compare) => compare(row.completion, row.solution).explained(),
            Method::Boxes(boxes) => {
                let mut explanation = Explanation::default();
                let mut notes = Notes::on(&mut explanation);
                let score = self.score_boxes(0, row, (name, boxes), &mut notes)?;
                explanation.score = Some(score);
                explanation
            }
        }))
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

static WHOLE: LazyLock<FormatPattern> = LazyLock::new(|| {
    FormatPattern::new(&[
        (r"\A<think>", "no `<think>` at the start"),
        (".*?</think>", "no `</think>`"),
        ("SPACES<answer>", "no `<answer>` right after `</think>`"),
        (".*?</answer>", "no `</answer>` after `<answer>`"),
        (r"\z", "text after `</answer>`"),
    ])
});

impl Reward for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let scores = rows.iter().map(|row| Some(WHOLE.score(row.completion)));
        Ok(scores.collect())
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        Ok(Some(WHOLE.explained(row.completion)))
    }
}
