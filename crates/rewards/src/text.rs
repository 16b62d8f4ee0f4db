//! `default`, `math` and `all_match`: answers compared by meaning, then by text.

use mathverify::{same_latex, verify};
use python::text::{float, strip};

use crate::answer::{clean_text, last_answer};
use crate::choice::{extract_choice, has_digit, true_answer};
use crate::similarity::ratio;
use crate::verdict::{Rule, Verdict};

/// 1 where the last answer means what the solution means. Else, where the solution has a digit,
/// 1 or 0 if both are floats and the likeness of the texts if not; where it names a letter, 1 if
/// the answer names the same, else 0; otherwise the likeness of the texts.
pub(crate) fn default<'a>(completion: &'a str, solution: &'a str) -> Verdict<'a> {
    let truth = true_answer(solution);
    let answer = strip(last_answer(completion).unwrap_or(completion));
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
    } else if same_latex(&answer, &truth) {
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

/// Whether the texts are the same float; `None` where one is no float.
fn equal_floats(answer: &str, truth: &str) -> Option<bool> {
    // The truth first: it is the shorter one.
    let truth = float(truth)?;
    Some(float(answer)? == truth)
}

#[cfg(test)]
mod tests {
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
