//! The reward `count`: whether the completion states the right number.

use std::sync::LazyLock;

use python::json::{Json, loads};
use python::text::strip;
use regex::Regex;

use crate::answer::{clean_text, last_answer};
use crate::detection::last_block;
use crate::error::{RewardError, shortened};
use crate::explain::Explanation;
use crate::registry::{Reward, RewardInput};

const WORDS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// A number of its own, with or without commas between thousands: not the 2 of `x2`.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?";
    // `\b` would be slow beside letters beyond ASCII.
    let pattern = format!(r"(?:^|[^\w.-])({number})(?:\W|$)");
    Regex::new(&pattern).expect("the pattern is valid")
});

/// The count that a text states.
///
/// Of the last ```` ```json ```` block of the last answer, else of that answer, else of the whole text: the
/// length of a JSON list; a number; `none`, which is 0; a word from `zero` to `twenty`; else the last
/// number of a sentence. JSON that is something else, or broken, has no count.
pub(crate) fn read_count(text: &str) -> Option<f64> {
    let answer = last_answer(text).unwrap_or(text);
    let text = last_block(answer).unwrap_or_else(|| strip(answer));
    if let Some(json) = loads(text) {
        return match &json {
            Json::List(items) => Some(items.len() as f64),
            Json::Integer(_) | Json::Number(_) => json.number().filter(|number| number.is_finite()),
            Json::Text(text) => in_words(text),
            Json::Null | Json::Bool(_) | Json::Object(_) => None,
        };
    }
    in_words(text)
}

fn in_words(text: &str) -> Option<f64> {
    let cleaned = clean_text(text);
    if cleaned == "none" {
        return Some(0.0);
    }
    if let Some(count) = WORDS.iter().position(|word| *word == cleaned) {
        return Some(count as f64);
    }
    if cleaned.contains(['[', '{']) {
        return None;
    }
    let number: f64 = last_number(&cleaned)?.replace(',', "").parse().ok()?;
    number.is_finite().then_some(number)
}

fn last_number(text: &str) -> Option<&str> {
    let mut last = None;
    let mut from = 0;
    while let Some(found) = NUMBER.find_at(text, from) {
        last = Some(found.start());
        // What ends one number may stand before the next.
        let number = found.as_str().trim_end_matches(|c: char| !c.is_ascii_digit());
        from = found.start() + number.len();
    }
    Some(NUMBER.captures_at(text, last?)?.get(1)?.as_str())
}

/// 1 where answer and solution state the same count, else 0.
pub(crate) struct Count;

const NAME: &str = "count";

fn truth(row: usize, solution: &str) -> Result<f64, RewardError> {
    read_count(solution).ok_or_else(|| RewardError::NoCount { row, solution: shortened(solution) })
}

impl Reward for Count {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter()
            .enumerate()
            .map(|(row, input)| {
                let truth = truth(row, input.solution)?;
                Ok(Some(f64::from(read_count(input.completion) == Some(truth))))
            })
            .collect()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let truth = truth(0, row.solution)?;
        let counted = read_count(row.completion);
        let score = f64::from(counted == Some(truth));
        let counted = counted.map(|count| count.to_string());
        let said = counted.as_deref().unwrap_or("no number");
        Ok(Some(Explanation {
            score: Some(score),
            reason: format!("{said} of {truth}"),
            answer: counted,
            truth: Some(truth.to_string()),
            ..Explanation::default()
        }))
    }

    fn check(&self, row: usize, solution: &str, _method: Option<&str>) -> Result<(), RewardError> {
        truth(row, solution).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        for (text, count) in [
            ("<think>2</think><answer> 3 </answer>", Some(3.0)),
            ("3.0", Some(3.0)),
            ("There are 2 dogs and 3 cats: 5.", Some(5.0)),
            ("1,204 people", Some(1204.0)),
            ("2, 3", Some(3.0)),
            ("**7** apples", Some(7.0)),
            ("Three.", Some(3.0)),
            ("none", Some(0.0)),
            ("<answer>None.</answer>", Some(0.0)),
            ("\"4\"", Some(4.0)),
            ("-1", Some(-1.0)),
            ("```json\n[{\"label\": \"a\"}, {\"label\": \"b\"}]\n```", Some(2.0)),
            ("[]", Some(0.0)),
            ("```json [1] ``` ```json [1, 2] ```", Some(2.0)),
            ("three of them", None),
            ("x2", None),
            ("", None),
            ("{\"bbox_2d\": [1, 2, 3, 4]}", None),
            ("[{\"bbox_2d\": [1, 2, 3", None),
            ("```json\n[{\"bbox_2d\": [1, 2, 3\n```", None),
            ("true", None),
            ("NaN", None),
        ] {
            assert_eq!(read_count(text), count, "{text}");
        }
        assert_eq!(read_count(&"9".repeat(400)), None);
    }
}
