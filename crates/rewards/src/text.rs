//! `default`, `math` and `all_match`: answers compared by meaning, then by text.

use mathverify::verify;

use crate::answer::{clean_text, last_answer, python_strip};
use crate::boxes::ascii_digit;
use crate::choice::{extract_choice, has_digit, true_answer};
use crate::latex_text;
use crate::similarity::ratio;
use crate::verdict::{Rule, Verdict};

/// 1 where the last answer means what the solution means. Else, where the solution has a digit,
/// 1 or 0 if both are floats and the likeness of the texts if not; where it names a letter, 1 if
/// the answer names the same, else 0; otherwise the likeness of the texts.
pub(crate) fn default<'a>(completion: &'a str, solution: &'a str) -> Verdict<'a> {
    let truth = true_answer(solution);
    let answer = python_strip(last_answer(completion).unwrap_or(completion));
    Verdict { rule: default_rule(answer, truth), answer: answer.into(), truth: truth.into() }
}

fn default_rule(answer: &str, truth: &str) -> Rule {
    if verify(answer, truth) {
        return Rule::SameMeaning;
    }
    let is_number = has_digit(truth);
    if let Some(letter) = extract_choice(truth).filter(|_| !is_number) {
        return Rule::Letters { answer: extract_choice(answer), truth: Some(letter) };
    }
    let (answer, truth) = (clean_text(answer), clean_text(truth));
    match equal_floats(&answer, &truth).filter(|_| is_number) {
        Some(are_equal) => Rule::Numbers { are_equal },
        None => Rule::Likeness(ratio(&answer, &truth)),
    }
}

/// 1 where the cleaned texts are equal, mean the same, or are the same LaTeX once normalised, the
/// completion's last box opened; else 0.
pub(crate) fn math<'a>(completion: &'a str, solution: &'a str) -> Verdict<'a> {
    let (answer, truth) = (clean_text(completion), clean_text(solution));
    let rule = if answer == truth {
        Rule::SameText
    } else if verify(&answer, &truth) {
        Rule::SameMeaning
    } else if latex_text::same_box(&answer, &truth) {
        Rule::SameLatex
    } else {
        Rule::NothingSame
    };
    Verdict { answer: answer.into(), truth: truth.into(), rule }
}

/// 1 where the cleaned texts are equal, else 0.
pub(crate) fn all_match<'a>(completion: &'a str, solution: &'a str) -> Verdict<'a> {
    let (answer, truth) = (clean_text(completion), clean_text(solution));
    let rule = match answer == truth {
        true => Rule::SameText,
        false => Rule::OtherText,
    };
    Verdict { answer: answer.into(), truth: truth.into(), rule }
}

/// Whether the texts are the same float; nothing where one is no float.
fn equal_floats(answer: &str, truth: &str) -> Option<bool> {
    // The truth first: it is the shorter one.
    let truth = python_float(truth)?;
    Some(python_float(answer)? == truth)
}

/// `float(text)` of Python: white space around it, digits of every script, `_` between digits.
fn python_float(text: &str) -> Option<f64> {
    let text: String = python_strip(text).chars().map(ascii_digit).collect();
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        let digit =
            |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        digit(at.checked_sub(1)) && digit(Some(at + 1))
    };
    let underscores = text.match_indices('_');
    if !underscores.into_iter().all(|(at, _)| between_digits(at)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_read_as_python_does() {
        assert_eq!(python_float(" 1_000.5 "), Some(1000.5));
        assert_eq!(python_float("٣"), Some(3.0));
        assert_eq!(python_float("1e3"), Some(1000.0));
        assert_eq!(python_float("-infinity"), Some(f64::NEG_INFINITY));
        assert!(python_float("nan").is_some_and(f64::is_nan));
        // Letters and signs beyond ASCII were once read as 0, so that `é` equalled `0`.
        for bad in ["", "_1", "1_", "1__0", "0x10", "1,5", "--1", "é", "€5.5"] {
            assert_eq!(python_float(bad), None, "{bad}");
        }
    }

    #[test]
    fn default_by_hand() {
        let default = |completion, solution| super::default(completion, solution).rule.score();
        assert_eq!(default("<answer>0.5</answer>", "<answer>1/2</answer>"), 1.0);
        // Both are floats and differ.
        assert_eq!(default("0.25", "0.5"), 0.0);
        // A digit in the truth, but neither is a float: all but one of 4 characters in common.
        assert_eq!(default("fox1", "box1"), 1.0 - 2.0 / 8.0);
        assert_eq!(default("It is B.", "B"), 1.0);
        assert_eq!(default("cat", "dog"), 0.0);
        assert_eq!(default("red cat", "red hat"), 1.0 - 2.0 / 14.0);
    }
}
