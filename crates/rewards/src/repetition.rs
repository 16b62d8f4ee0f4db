//! The reward `repetition` of VLM-R1: a penalty for repeated items or 6-grams.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use python::json::{Json, loads};
use python::repr;
use python::text::{SPACES, is_space, strip};
use regex::Regex;

use crate::error::RewardError;
use crate::explain::Explanation;
use crate::json_repair::repair;
use crate::registry::{Reward, RewardInput};

/// Words that make one n-gram of a text.
const WORDS: usize = 6;

/// How much of a completion was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repeats {
    what: &'static str,
    distinct: usize,
    total: usize,
}

impl Repeats {
    fn score(self) -> f64 {
        match self.total {
            0 => 0.0,
            total => self.distinct as f64 / total as f64 - 1.0,
        }
    }
}

/// The text between the first `open` and the end of its block.
fn block<'a>(text: &'a str, open: &str) -> Option<&'a str> {
    let (_, body) = text.split_once(open)?;
    let (inside, _) = body.split_once("```")?;
    Some(strip(inside))
}

static LIST: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = format!(r#"(?s)\[{SPACES}\{{.*?"bbox_2d".*?"label".*?\}}{SPACES}\]"#);
    Regex::new(&pattern).expect("the pattern is valid")
});

/// What VLM-R1 takes for JSON: the first ```` ```json ```` block; without one, the first block of any kind
/// that is not empty, else the first list that names boxes and labels.
fn json_part(text: &str) -> Option<&str> {
    if let Some(json) = block(text, "```json") {
        return Some(json).filter(|json| !json.is_empty());
    }
    block(text, "```")
        .filter(|json| !json.is_empty())
        .or_else(|| LIST.find(text).map(|found| found.as_str()))
}

/// Items of the list by box and label; none where `json` is no list of something, however repaired.
fn items(json: &str) -> Option<Repeats> {
    let value = loads(json).or_else(|| repair(json))?;
    let Json::List(items) = value else {
        return None;
    };
    if items.is_empty() {
        return None;
    }
    let mut distinct = HashSet::with_capacity(items.len());
    let mut total = 0;
    for mut item in items {
        if let (Some(bbox), Some(label)) = (item.take("bbox_2d"), item.take("label")) {
            let text = format!("{}_{}", repr::str(&bbox), repr::str(&label));
            distinct.insert(text);
            total += 1;
        }
    }
    Some(Repeats { what: "boxes with labels", distinct: distinct.len(), total })
}

fn ngrams(text: &str) -> Repeats {
    let lower: Cow<'_, str> = text.to_lowercase().into();
    let words: Vec<&str> = lower.split(is_space).filter(|word| !word.is_empty()).collect();
    let ngrams = words.windows(WORDS);
    Repeats { what: "6-grams", total: ngrams.len(), distinct: ngrams.collect::<HashSet<_>>().len() }
}

fn repeats(completion: &str) -> Repeats {
    json_part(completion).and_then(items).unwrap_or_else(|| ngrams(completion))
}

/// Distinct parts / parts - 1, from 0 (nothing twice) down to -1: of a JSON list the boxes with their
/// labels, of any other text its 6-grams of words.
pub fn repetition(completion: &str) -> f64 {
    repeats(completion).score()
}

/// [`repetition`] of the completion.
pub(crate) struct Repetition;

impl Reward for Repetition {
    fn name(&self) -> &str {
        "repetition"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(rows.iter().map(|row| Some(repetition(row.completion))).collect())
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let repeats = repeats(row.completion);
        let Repeats { what, distinct, total } = repeats;
        let verb = if distinct == 1 { "is" } else { "are" };
        Ok(Some(Explanation {
            score: Some(repeats.score()),
            reason: format!("{distinct} of {total} {what} {verb} distinct"),
            ..Explanation::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cat\"}";

    #[test]
    fn boxes_by_hand() {
        let dog = A.replace("cat", "dog");
        let list = format!("[{A}, {dog}, {A}, {A}]");
        for text in [
            format!("<answer>```json\n{list}\n```</answer>"),
            format!("see ```{list}``` there"),
            format!("the boxes {list} and so on"),
        ] {
            assert_eq!(repetition(&text), -0.5, "{text}");
        }
        // Of numbers that are equal, Python prints 1 and 1.0.
        let float = A.replace("[1,", "[1.0,");
        assert_eq!(repetition(&format!("```json [{A}, {float}] ```")), 0.0);
        // Items that lack one of the two do not count; where none is left the score is 0.
        let bare = "{\"bbox_2d\": [1, 2, 3, 4]}";
        assert_eq!(repetition(&format!("```json [{A}, {bare}, {A}, 7] ```")), -0.5);
        let words = "a b c d e f a b c d e f a b c d e f";
        assert_eq!(repetition(&format!("```json [{bare}] ``` {words}")), 0.0);
    }

    #[test]
    fn words_by_hand() {
        // 7 windows of 12 words, of which the last equals the first.
        let text = "A b c\u{a0}d e f\n a B c d e f";
        assert_eq!(ngrams(text).total, 7);
        assert!((repetition(text) - (6.0 / 7.0 - 1.0)).abs() < 1e-12);
        assert_eq!(repetition("a b c d e"), 0.0);
        assert_eq!(repetition(""), 0.0);
        // An empty list, an object and an empty block are read as text.
        for json in ["```json [] ```", "```json {} ```", "```json ```", "```json x ```"] {
            let text = format!("{json} {text}");
            assert!(repetition(&text) < 0.0, "{text}");
        }
    }

    #[test]
    fn broken_lists_are_repaired() {
        let cut = format!("```json\n[{A}, {A}, {A}, {}\n```", &A[..20]);
        // Three whole ones, and one without a label.
        assert!((repetition(&cut) + 2.0 / 3.0).abs() < 1e-12);
        let quotes = format!("```json\n[{A}, {A}]\n```").replace('"', "'");
        assert_eq!(repetition(&quotes), -0.5);
    }
}
