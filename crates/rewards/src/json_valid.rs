//! The reward `json_valid`: whether an answer can be read by a program.

use python::text::strip;
use serde::de::IgnoredAny;

use crate::answer::last_answer;
use crate::detection::last_block;
use crate::error::RewardError;
use crate::explain::Explanation;
use crate::registry::{Reward, RewardInput};

/// What must be JSON: the last ```` ```json ```` block of the last answer, else that answer; the
/// completion is the answer where it has no tags.
fn candidate(completion: &str) -> &str {
    let answer = last_answer(completion).unwrap_or(completion);
    last_block(answer).unwrap_or_else(|| strip(answer))
}

/// What is wrong with it, as RFC 8259 has it: `NaN` and trailing commas are no JSON.
fn fault(text: &str) -> Option<String> {
    let fault = serde_json::from_str::<IgnoredAny>(text).err()?;
    Some(fault.to_string())
}

/// 1 where the answer is JSON, else 0.
pub(crate) struct JsonValid;

impl Reward for JsonValid {
    fn name(&self) -> &str {
        "json_valid"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let is_valid = |row: &RewardInput<'_>| fault(candidate(row.completion)).is_none();
        Ok(rows.iter().map(|row| Some(f64::from(is_valid(row)))).collect())
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let text = candidate(row.completion);
        let fault = fault(text);
        Ok(Some(Explanation {
            score: Some(f64::from(fault.is_none())),
            answer: Some(text.to_owned()),
            reason: fault.unwrap_or_else(|| "valid JSON".to_owned()),
            ..Explanation::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_valid(completion: &str) -> bool {
        fault(candidate(completion)).is_none()
    }

    #[test]
    fn the_last_block_of_the_last_answer_counts() {
        assert!(is_valid("<answer>```json\n[1]\n```</answer>"));
        assert!(is_valid("<answer>{</answer><answer>{\"a\": [null]}</answer>"));
        assert!(is_valid("```json [1,] ``` then ```json [1] ```"));
        assert!(is_valid(" [1, 2.5e3, \"\\u00e9\"]\n"));
        assert!(!is_valid("<answer>```json [1] ``` ```json [1,] ```</answer>"));
        // A block that is cut off is none, and its marks are no JSON.
        assert!(!is_valid("<answer>```json\n[1]</answer>"));
        assert!(!is_valid("<answer>the box is [1]</answer>"));
    }

    #[test]
    fn what_only_python_takes_is_not_valid() {
        for bad in ["", "NaN", "[1,]", "{'a': 1}", "[1] [2]", "True", "01", "\"a\nb\""] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!(!is_valid(&"[".repeat(1_000_000)));
    }
}
