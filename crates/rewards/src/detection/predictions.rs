//! The boxes of a completion, for evaluation over a whole set.

use python::text::strip;

use super::NONE;
use super::boxes_in_text::{last_block, predicted};
use crate::answer::last_answer;
use crate::explain::FoundBox;

/// What an answer names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    /// The boxes, in the order of the answer and its units; an entry without a label has an empty one.
    pub boxes: Vec<FoundBox>,
    /// Entries without four finite corners: they are dropped.
    pub num_unread: usize,
    /// Whether there is a list, or the word `None`.
    pub is_readable: bool,
}

/// The boxes of the last ```` ```json ```` block of the last answer; of the whole text where no answer
/// is tagged, and without a block of the text itself.
pub fn predictions(completion: &str) -> Predictions {
    let answer = strip(last_answer(completion).unwrap_or(completion));
    if answer == NONE {
        return Predictions { is_readable: true, ..Predictions::default() };
    }
    let Some(entries) = predicted(last_block(answer).unwrap_or(answer)) else {
        return Predictions::default();
    };
    let found = |entry: &super::Entry<'_>| {
        let label = entry.label.as_ref();
        Some(FoundBox {
            corners: entry.corners?,
            label: label.map(|label| label.shown()).unwrap_or_default(),
        })
    };
    let boxes: Vec<FoundBox> = entries.iter().filter_map(found).collect();
    Predictions { num_unread: entries.len() - boxes.len(), boxes, is_readable: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_hand() {
        let read = |text: &str| {
            let found = predictions(text);
            let labels: Vec<String> = found.boxes.into_iter().map(|found| found.label).collect();
            (labels.join(" "), found.num_unread, found.is_readable)
        };
        let list = r#"[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [1, 2, 3], "label": "b"}, {"bbox_2d": [5, 6, 7, 8]}]"#;
        let expected = ("a ".to_owned(), 1, true);
        assert_eq!(read(list), expected);
        assert_eq!(read(&format!("```json\n{list}\n```")), expected);
        let tagged = format!("<think>```json []```</think><answer>x ```json\n{list}``` y</answer>");
        assert_eq!(read(&tagged), expected);
        assert_eq!(read("<answer> None </answer>"), (String::new(), 0, true));
        assert_eq!(read("<answer>[]</answer>"), (String::new(), 0, true));
        for bad in ["", "none of them", "<answer>```json [{\"bbox_2d\": [1, 2```</answer>", "7"] {
            assert_eq!(read(bad), (String::new(), 0, false), "{bad}");
        }
    }
}
