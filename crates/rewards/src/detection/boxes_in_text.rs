//! Labelled boxes in the last or first ```` ```json ```` block of an answer.

use std::borrow::Cow;
use std::collections::HashSet;

use python::json::{Json, loads};
use python::text::strip;

use super::coco::CocoBox;
use crate::boxes::BoundingBox;

const OPEN: &str = "```json";
const CLOSE: &str = "```";

/// What a label is compared by: Python's `1`, `1.0` and `True` are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Label<'a> {
    Null,
    /// Bits of the number, of which zero has one sign.
    Number(u64),
    Text(Cow<'a, str>),
}

impl<'a> Label<'a> {
    /// None for lists and objects, which cannot be labels.
    fn from_json(value: Json<'a>) -> Option<Self> {
        match value {
            Json::Null => Some(Self::Null),
            Json::Text(text) => Some(Self::Text(text)),
            Json::List(_) | Json::Object(_) => None,
            // Minus zero plus zero is zero.
            Json::Integer(_) | Json::Number(_) | Json::Bool(_) => {
                value.number().map(|x| Self::Number((x + 0.0).to_bits()))
            }
        }
    }

    /// As a reader is shown it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Number(bits) => f64::from_bits(*bits).to_string(),
            Self::Text(text) => text.clone().into_owned(),
        }
    }

    /// The text in lower case; empty where the label is none.
    pub(super) fn lower(&self) -> String {
        match self {
            Self::Text(text) => text.to_lowercase(),
            Self::Null | Self::Number(_) => String::new(),
        }
    }
}

/// An item of a predicted list, whatever the model wrote there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Entry<'a> {
    pub(super) label: Option<Label<'a>>,
    /// The first four of `bbox_2d`, where all are finite numbers.
    pub(super) corners: Option<BoundingBox>,
}

impl<'a> Entry<'a> {
    fn from_json(mut item: Json<'a>) -> Self {
        Self {
            label: item.take("label").and_then(Label::from_json),
            corners: item.take("bbox_2d").and_then(|corners| corners_of(&corners)),
        }
    }
}

fn corners_of(value: &Json<'_>) -> Option<BoundingBox> {
    let Json::List(items) = value else {
        return None;
    };
    let mut corners = [0.0; 4];
    for (index, corner) in corners.iter_mut().enumerate() {
        *corner = items.get(index)?.number().filter(|x| x.is_finite())?;
    }
    Some(corners.into())
}

/// A true box with its label.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TrueBox<'a> {
    pub(super) label: Label<'a>,
    pub(super) corners: BoundingBox,
}

/// The blocks of a text, paired from the left, without white space at their ends.
fn blocks(mut rest: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let body = &rest[rest.find(OPEN)? + OPEN.len()..];
        let end = body.find(CLOSE)?;
        rest = &body[end + CLOSE.len()..];
        Some(strip(&body[..end]))
    })
}

pub(super) fn first_block(text: &str) -> Option<&str> {
    blocks(text).next()
}

pub(crate) fn last_block(text: &str) -> Option<&str> {
    blocks(text).last()
}

/// The items that Python iterates over where a model should have written a list; none where the
/// block cannot be read or iterated over.
pub(super) fn predicted(block: &str) -> Option<Vec<Entry<'_>>> {
    match loads(block)? {
        Json::List(items) => Some(items.into_iter().map(Entry::from_json).collect()),
        Json::Object(pairs) => {
            let keys: HashSet<_> = pairs.iter().map(|(key, _)| key).collect();
            Some(vec![Entry::default(); keys.len()])
        }
        Json::Text(text) => Some(vec![Entry::default(); text.chars().count()]),
        Json::Null | Json::Bool(_) | Json::Integer(_) | Json::Number(_) => None,
    }
}

/// The true boxes; none where there is no block or nothing in it.
///
/// # Errors
/// Where the block is no list of labelled boxes, or no box has an area that counts.
pub(super) fn true_boxes(block: Option<&str>) -> Result<Vec<TrueBox<'_>>, String> {
    let Some(block) = block.filter(|block| !block.is_empty()) else {
        return Ok(Vec::new());
    };
    let Some(Json::List(items)) = loads(block) else {
        return Err("the ```json block is not a list that can be read".to_owned());
    };
    let truths = items
        .into_iter()
        .map(Entry::from_json)
        .enumerate()
        .map(|(index, entry)| match entry {
            Entry { label: Some(label), corners: Some(corners) } => Ok(TrueBox { label, corners }),
            Entry { label: None, .. } => Err(format!("box {index} has no `label`")),
            Entry { corners: None, .. } => Err(format!(
                "box {index}: `bbox_2d` is not a list of four numbers, expected `[x1, y1, x2, y2]`"
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let is_counted = |truth: &TrueBox<'_>| CocoBox::from(truth.corners).is_counted();
    if !truths.is_empty() && !truths.iter().any(is_counted) {
        return Err("no box has an area of 0 to 1e10 px^2".to_owned());
    }
    Ok(truths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corners(text: &str) -> Option<[f64; 4]> {
        corners_of(&loads(text).expect("readable")).map(<[f64; 4]>::from)
    }

    #[test]
    fn blocks_are_paired_from_the_left() {
        let text = "```json 1``` x ```json\n2\u{a0}\n``` ```json 3";
        assert_eq!(first_block(text), Some("1"));
        assert_eq!(last_block(text), Some("2"));
        assert_eq!(last_block("``` ```json"), None);
    }

    #[test]
    fn corners_are_four_finite_numbers_or_truths() {
        assert_eq!(corners("[1, 2.5, true, -4, \"x\"]"), Some([1.0, 2.5, 1.0, -4.0]));
        for bad in [
            "[1, 2, 3]",
            "[1, 2, 3, \"4\"]",
            "[1, 2, 3, null]",
            "[1, 2, 3, NaN]",
            "[1, 2, 3, 1e999]",
            "\"1234\"",
            "{\"0\": 1}",
            "[[1, 2, 3, 4]]",
        ] {
            assert_eq!(corners(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels_compare_as_in_python() {
        let label = |text| Label::from_json(loads(text).expect("readable"));
        assert_eq!(label("1"), label("1.0"));
        assert_eq!(label("1"), label("true"));
        assert_eq!(label("0"), label("-0.0"));
        assert_ne!(label("1"), label("\"1\""));
        assert_eq!(label("[1]"), None);
        assert_eq!(label("\"\\u0041\"").map(|label| label.lower()), Some("a".to_owned()));
    }

    #[test]
    fn what_python_iterates_over_is_counted() {
        let count = |text| predicted(text).map(|entries| entries.len());
        assert_eq!(count("[1, null, {}]"), Some(3));
        assert_eq!(count("{\"a\": 1, \"a\": 2, \"b\": 3}"), Some(2));
        assert_eq!(count("\"äb\""), Some(2));
        assert_eq!(count("7"), None);
        assert_eq!(count("[1,]"), None);
    }

    #[test]
    fn truths_say_what_is_wrong_with_them() {
        let error = |block| true_boxes(Some(block)).expect_err("a bad truth");
        assert!(error("[{]").contains("not a list"));
        assert!(error("{\"label\": \"a\"}").contains("not a list"));
        assert!(error("[{\"bbox_2d\": [1, 2, 3, 4]}]").contains("box 0 has no `label`"));
        assert!(error("[{\"label\": \"a\", \"bbox_2d\": [1, 2, 3]}]").contains("box 0: `bbox_2d`"));
        assert!(
            error("[{\"label\": \"a\", \"bbox_2d\": [9, 2, 3, 4]}]").contains("no box has an area")
        );
        assert_eq!(true_boxes(None), Ok(Vec::new()));
        assert_eq!(true_boxes(Some("")), Ok(Vec::new()));
        assert_eq!(true_boxes(Some("[]")), Ok(Vec::new()));
    }
}
