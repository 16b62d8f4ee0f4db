//! The methods `mcq` and `yes_no`: the letter, or the word, that a completion chooses.

use std::sync::LazyLock;

use python::text::{is_space, strip};
use regex::Regex;

use crate::answer::first_answer;
use crate::verdict::{Rule, Verdict};

/// 1 where the first answer means the letter that the solution means, else 0.
pub(crate) fn mcq<'a>(completion: &'a str, solution: &'a str) -> Verdict<'a> {
    let answer = strip(first_answer(completion).unwrap_or(completion));
    let truth = true_answer(solution);
    Verdict {
        answer: answer.into(),
        truth: truth.into(),
        rule: Rule::Letters { answer: extract_choice(answer), truth: extract_choice(truth) },
    }
}

/// 1 where both texts say `yes` first, both `no` first, or neither says either, else 0.
pub(crate) fn yes_no<'a>(completion: &'a str, solution: &'a str) -> Verdict<'a> {
    let (completion, solution) = (completion.to_lowercase(), solution.to_lowercase());
    let answer = first_answer(&completion).unwrap_or(&completion);
    let truth = true_answer(&solution);
    Verdict {
        rule: Rule::Words { answer: yes_or_no(answer), truth: yes_or_no(truth) },
        answer: answer.to_owned().into(),
        truth: truth.to_owned().into(),
    }
}

/// The solution's first answer that stands on one line, or else the whole text, stripped.
pub(crate) fn true_answer(solution: &str) -> &str {
    let found = solution.split('\n').find_map(first_answer);
    strip(found.unwrap_or(solution))
}

fn yes_or_no(text: &str) -> Option<&'static str> {
    match (text.find("yes"), text.find("no")) {
        (None, None) => None,
        (Some(yes), Some(no)) if no < yes => Some("no"),
        (None, Some(_)) => Some("no"),
        (Some(_), _) => Some("yes"),
    }
}

/// Words near a letter that make it likelier to be the answer.
const KEYWORDS: [&str; 16] = [
    "答案", "选择", "正确", "是", "对", "ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "认为",
    "应该", "觉得", "THINK", "BELIEVE", "SHOULD",
];

/// Characters looked at before and after a letter.
const NEARBY: usize = 20;

/// The letter that a text chooses.
///
/// Candidates are letters not preceded by a letter and followed by punctuation or the end. Of
/// several, the one with most points wins, the earlier one where they tie. A letter earns, at its
/// first appearance in the text and once for each time that it is a candidate: 1 for each keyword
/// nearby, 2 in the last 30 % of the text, 1 before a punctuation mark.
pub(crate) fn extract_choice(text: &str) -> Option<char> {
    let text = single_spaced(&text.to_uppercase());
    let mut candidates: Vec<(char, u64)> = Vec::new();
    for (i, &letter) in text.iter().enumerate() {
        if !letter.is_ascii_uppercase() || (i > 0 && text[i - 1].is_ascii_uppercase()) {
            continue;
        }
        if !text.get(i + 1).is_none_or(|next| ".,?!:;".contains(*next)) {
            continue;
        }
        match candidates.iter_mut().find(|(known, _)| *known == letter) {
            Some((_, times)) => *times += 1,
            None => candidates.push((letter, 1)),
        }
    }
    let mut best: Option<(char, u64)> = None;
    for (letter, times) in candidates {
        let score = times * points(&text, letter);
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((letter, score));
        }
    }
    best.map(|(letter, _)| letter)
}

fn points(text: &[char], letter: char) -> u64 {
    let Some(at) = text.iter().position(|c| *c == letter) else {
        return 0;
    };
    let nearby: String =
        text[at.saturating_sub(NEARBY)..text.len().min(at + NEARBY)].iter().collect();
    let keywords = KEYWORDS.iter().filter(|word| nearby.contains(**word));
    let late = at as f64 > text.len() as f64 * 0.7;
    let closed = text.get(at + 1).is_some_and(|c| "。.!！,，".contains(*c));
    keywords.count() as u64 + 2 * u64::from(late) + u64::from(closed)
}

/// `re.sub(r"\s+", " ", text)` of Python.
fn single_spaced(text: &str) -> Vec<char> {
    let mut out: Vec<char> = Vec::with_capacity(text.len());
    let mut after_space = false;
    for c in text.chars() {
        let space = is_space(c);
        if !(space && after_space) {
            out.push(if space { ' ' } else { c });
        }
        after_space = space;
    }
    out
}

static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d").expect("the pattern is valid"));

/// Whether a decimal digit of any script stands in `text`, as Python's `\d` has it.
pub(crate) fn has_digit(text: &str) -> bool {
    DIGIT.is_match(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_by_hand() {
        assert_eq!(extract_choice("B"), Some('B'));
        assert_eq!(extract_choice("b."), Some('B'));
        assert_eq!(extract_choice("(C)"), None);
        assert_eq!(extract_choice("AB"), None);
        assert_eq!(extract_choice("The answer is C."), Some('C'));
        // Both have `ANSWER` nearby; B stands in the last 30 % and before a full stop.
        assert_eq!(extract_choice("A, no: the answer is B."), Some('B'));
        // A tie goes to the earlier letter.
        assert_eq!(extract_choice("X: Y: 0123456789"), Some('X'));
        assert_eq!(extract_choice(""), None);
    }

    #[test]
    fn answers_by_hand() {
        let mcq = |completion, solution| super::mcq(completion, solution).rule.score();
        let yes_no = |completion, solution| super::yes_no(completion, solution).rule.score();
        assert_eq!(mcq("<answer>C</answer>", "<answer> C </answer>"), 1.0);
        assert_eq!(mcq("<answer>C</answer><answer>D</answer>", "D"), 0.0);
        assert_eq!(mcq("none of them (A)", "none of them (A)"), 0.0);
        assert_eq!(yes_no("<answer>Yes, no.</answer>", "yes"), 1.0);
        assert_eq!(yes_no("nothing", "yes"), 0.0);
        assert_eq!(yes_no("maybe", "perhaps"), 1.0);
        assert_eq!(yes_no("<ANSWER>yes</ANSWER> no", "YES"), 1.0);
    }

    #[test]
    fn a_solution_is_read_from_one_line() {
        assert_eq!(true_answer("<answer>a\n</answer><answer> b </answer>"), "b");
        assert_eq!(true_answer(" <answer>a\n</answer>"), "<answer>a\n</answer>");
    }
}
