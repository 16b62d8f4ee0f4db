//! Why no box was read in a completion: what the required format lacks.

use config::Extractor;
use python::text::strip;
use rewards::answer::first_answer;
use rewards::boxes::{find_baseline, find_in_answer};

/// The first thing that keeps `extractor` from reading a box in `completion`.
pub(crate) fn why_unread(completion: &str, extractor: Extractor) -> &'static str {
    if strip(completion).is_empty() {
        return "the answer is empty";
    }
    if extractor == Extractor::Baseline {
        return no_box(completion);
    }
    let Some(body) = first_answer(completion) else {
        return match completion.contains("<answer>") {
            true => "`<answer>` without `</answer>`",
            false => "no `<answer>` tag",
        };
    };
    if strip(body).is_empty() {
        return "nothing between `<answer>` and `</answer>`";
    }
    if find_in_answer(completion).is_some() {
        return "no braces `{...}` round the box";
    }
    match find_baseline(body) {
        Some(_) => "a box of decimals or signs, not of whole numbers",
        None => no_box(body),
    }
}

fn no_box(text: &str) -> &'static str {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.');
    let numbers = numbers.filter(|part| part.contains(|c: char| c.is_ascii_digit()));
    match numbers.count() {
        0..4 => "no box",
        _ => "numbers, but no `[x1, y1, x2, y2]`",
    }
}

/// Whether a reward's reason says that it found nothing to compare, not that what it found is wrong.
pub(crate) fn is_unread(reason: &str) -> bool {
    reason.ends_with(" in the answer") || reason.starts_with("no `<") || reason == NEITHER
}

const NEITHER: &str = "neither says yes or no";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_reason() {
        let thinking = |text| why_unread(text, Extractor::Thinking);
        for (completion, reason) in [
            (" \n", "the answer is empty"),
            ("[1, 2, 3, 4]", "no `<answer>` tag"),
            ("<think>a</think><answer>{\"bbox\": [1, 2", "`<answer>` without `</answer>`"),
            ("<answer> </answer>", "nothing between `<answer>` and `</answer>`"),
            ("<answer>[1, 2, 3, 4]</answer>", "no braces `{...}` round the box"),
            (
                "<answer>{\"b\": [0.1, 0.2, 0.3, 0.4]}</answer>",
                "a box of decimals or signs, not of whole numbers",
            ),
            ("<answer>{(1, 2), (3, 4)}</answer>", "numbers, but no `[x1, y1, x2, y2]`"),
            ("<answer>left</answer>", "no box"),
        ] {
            assert_eq!(thinking(completion), reason, "{completion}");
        }
        let baseline = |text| why_unread(text, Extractor::Baseline);
        assert_eq!(baseline(""), "the answer is empty");
        assert_eq!(baseline("on the left"), "no box");
        assert_eq!(baseline("<|box_start|>(1,2),(3,4)"), "numbers, but no `[x1, y1, x2, y2]`");
    }

    #[test]
    fn what_was_read_and_is_wrong_is_no_fault_of_form() {
        for reason in [
            "no letter in the answer",
            "neither yes nor no in the answer",
            "no `<answer>...</answer>`",
            "neither says yes or no",
            "no point in the answer",
        ] {
            assert!(is_unread(reason), "{reason}");
        }
        for reason in [
            "",
            "different texts",
            "neither text, meaning nor LaTeX is the same",
            "no letter in the solution",
            "letters A and B differ",
        ] {
            assert!(!is_unread(reason), "{reason}");
        }
    }
}
