//! The reward `length` of VLM-R1: a right answer is worth more the shorter it is, a wrong one more the
//! longer (the cosine of arXiv 2502.03373).

use std::f64::consts::PI;

use config::RewardBatch;

use crate::answer::clean_text;
use crate::detection;
use crate::error::RewardError;
use crate::explain::Explanation;
use crate::generic::{METHODS, Method};
use crate::overlong::num_tokens;
use crate::registry::{Reward, RewardInput};

/// Tokens at which the cosine ends; a longer completion counts as one of so many.
const MAX_TOKENS: usize = 1024;

/// Accuracy from which an answer is right.
const RIGHT: f64 = 0.7;

/// Values at 0 and at [`MAX_TOKENS`] tokens.
const RIGHT_VALUES: [f64; 2] = [1.0, 0.5];
const WRONG_VALUES: [f64; 2] = [-0.5, 0.0];

/// `short - (short - long) * (1 - cos(pi * min(tokens, 1024) / 1024)) / 2`, from 1 to 0.5 for a right
/// answer and from -0.5 to 0 for a wrong one.
///
/// VLM-R1 does not end at 1,024 tokens: its cosine comes back, so that 2,048 are worth what 0 are.
pub fn cosine(num_tokens: usize, is_right: bool) -> f64 {
    let [short, long] = if is_right { RIGHT_VALUES } else { WRONG_VALUES };
    let part = num_tokens.min(MAX_TOKENS) as f64 * PI / MAX_TOKENS as f64;
    short - (short - long) * (1.0 - part.cos()) / 2.0
}

/// The method by which VLM-R1 decides what is right, whatever the method of the row.
const BOXES_METHOD: &str = "weighted_sum";

/// The method that decides what is right: [`BOXES_METHOD`] where the true answer is a list of boxes or
/// `none`, else the row's own, because the former calls any answer without boxes right there.
fn method<'a>(solution: &str, own: Option<&'a str>) -> Option<&'a str> {
    let compares_boxes =
        |(name, method): &(&str, Method)| own == Some(*name) && matches!(method, Method::Boxes(_));
    let cleaned = clean_text(solution);
    let is_about_boxes = cleaned == "none"
        || cleaned.contains("```json")
            && (cleaned.contains("bbox_2d")
                || detection::Method::WeightedSum.check(solution).is_ok())
        || METHODS.iter().any(compares_boxes);
    if is_about_boxes { Some(BOXES_METHOD) } else { own }
}

fn by_method<'a>(row: &RewardInput<'a>) -> RewardInput<'a> {
    RewardInput { accu_reward_method: method(row.solution, row.accu_reward_method), ..*row }
}

/// [`cosine`] of the completion's tokens; right is an accuracy of 0.7 or more.
pub(crate) struct Length {
    /// The reward `accuracy` of the run.
    pub(crate) accuracy: Box<dyn Reward>,
}

const NAME: &str = "length";

impl Reward for Length {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let counts = rows.iter().enumerate();
        let counts: Vec<usize> =
            counts.map(|(row, input)| num_tokens(NAME, row, input)).collect::<Result<_, _>>()?;
        let by_method: Vec<RewardInput<'_>> = rows.iter().map(by_method).collect();
        let accuracies = self.accuracy.score(&by_method)?;
        let value = |(count, accuracy): (usize, Option<f64>)| {
            accuracy.map(|accuracy| cosine(count, accuracy >= RIGHT))
        };
        Ok(counts.into_iter().zip(accuracies).map(value).collect())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.accuracy.counters()
    }

    fn is_by_row(&self) -> bool {
        self.accuracy.is_by_row()
    }

    fn batch(&self) -> RewardBatch {
        self.accuracy.batch()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let count = num_tokens(NAME, 0, row)?;
        let row = by_method(row);
        let Some(accuracy) = self.accuracy.score(&[row])?.first().copied().flatten() else {
            return Ok(None);
        };
        let verdict = if accuracy >= RIGHT { "right" } else { "wrong" };
        let method = row.accu_reward_method.unwrap_or("default");
        let reason = format!(
            "{verdict}, accuracy {accuracy:.3} of {RIGHT} by method {method}; {count} tokens of \
             {MAX_TOKENS}"
        );
        let inner = self.accuracy.explain(&row)?.unwrap_or_default();
        Ok(Some(Explanation { score: Some(cosine(count, accuracy >= RIGHT)), reason, ..inner }))
    }

    fn check(
        &self,
        row: usize,
        solution: &str,
        accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        let method = method(solution, accu_reward_method);
        self.accuracy.check(row, solution, method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    #[test]
    fn cosine_by_hand() {
        assert_eq!(cosine(0, true), 1.0);
        assert_near(cosine(512, true), 0.75);
        assert_near(cosine(1024, true), 0.5);
        // A quarter of the way: cos(pi / 4).
        assert_near(cosine(256, true), 1.0 - 0.25 * (1.0 - 0.5_f64.sqrt()));
        assert_eq!(cosine(0, false), -0.5);
        assert_near(cosine(512, false), -0.25);
        assert_near(cosine(1024, false), 0.0);
        for is_right in [true, false] {
            assert_eq!(cosine(4000, is_right), cosine(1024, is_right));
        }
    }

    #[test]
    fn boxes_decide_where_there_are_some() {
        let boxes =
            "<answer>```json\n[{\"bbox_2d\": [0, 0, 9, 9], \"label\": \"a\"}]\n```</answer>";
        for own in [None, Some("default"), Some("od_ap")] {
            assert_eq!(method(boxes, own), Some(BOXES_METHOD), "{own:?}");
        }
        assert_eq!(method("<answer> None </answer>", None), Some(BOXES_METHOD));
        assert_eq!(method("nothing", Some("map")), Some(BOXES_METHOD));
        assert_eq!(method("<answer> 3 </answer>", None), None);
        assert_eq!(method("B", Some("mcq")), Some("mcq"));
        // Boxes that cannot be scored are an error, not a text.
        let swapped = boxes.replace("[0, 0, 9, 9]", "[9, 0, 0, 9]");
        assert_eq!(method(&swapped, None), Some(BOXES_METHOD));
        // JSON that is no list of boxes is not VLM-R1's to judge.
        let other = "```json\n{\"a\": 1}\n```";
        assert_eq!(method(other, Some("all_match")), Some("all_match"));
    }
}
