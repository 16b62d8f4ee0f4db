//! Answer tags and text cleaning, with Python's definition of white space.

use python::text::{is_space, strip};

const OPEN: &str = "<answer>";
const CLOSE: &str = "</answer>";

/// The text between the first `<answer>` and the first `</answer>` after it.
pub fn first_answer(text: &str) -> Option<&str> {
    answers(text).next()
}

/// The last of the non-overlapping `<answer>...</answer>` pairs, found from the left.
pub fn last_answer(text: &str) -> Option<&str> {
    answers(text).last()
}

fn answers(mut rest: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let body = &rest[rest.find(OPEN)? + OPEN.len()..];
        let end = body.find(CLOSE)?;
        rest = &body[end + CLOSE.len()..];
        Some(&body[..end])
    })
}

/// The text that answers are compared by: the last answer if there is one; line breaks after
/// white space dropped, others turned into spaces; stripped, then trailing dots off, lower case.
pub fn clean_text(text: &str) -> String {
    let text = last_answer(text).unwrap_or(text);
    let text = join_lines(&join_lines(text, '\n'), '\r');
    strip(&text).trim_end_matches('.').to_lowercase()
}

/// Drops each `line_break` that follows white space and replaces the others by a space.
fn join_lines(text: &str, line_break: char) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in text.match_indices(line_break) {
        joined.push_str(&text[from..at]);
        if !text[..at].ends_with(is_space) {
            joined.push(' ');
        }
        from = at + line_break.len_utf8();
    }
    joined + &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_paired_from_the_left() {
        let text = "a <answer>1<answer>2</answer> b </answer> <answer>3</answer> <answer>4";
        assert_eq!(first_answer(text), Some("1<answer>2"));
        assert_eq!(last_answer(text), Some("3"));
        assert_eq!(first_answer("</answer><answer>"), None);
    }

    #[test]
    fn cleaning_by_hand() {
        assert_eq!(clean_text("<answer>No</answer><answer> Yes... </answer>"), "yes");
        assert_eq!(clean_text("a\nb"), "a b");
        assert_eq!(clean_text("a \nb"), "a b");
        assert_eq!(clean_text("a\n\n\nb"), "a b");
        assert_eq!(clean_text("a\r\nb"), "a b");
        // Dots go after the strip: the space before the first dot stays.
        assert_eq!(clean_text(" x . .. "), "x . ");
        assert_eq!(clean_text("\u{1f}x\u{1c}"), "x");
        assert_eq!(clean_text("ΟΔΟΣ"), "οδος");
    }
}
