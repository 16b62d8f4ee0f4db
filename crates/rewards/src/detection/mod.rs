//! Rewards of object detection: the accuracy methods that compare lists of labelled boxes.
//!
//! | method | boxes of | score |
//! |---|---|---|
//! | `od_ap`, `od_ap50` | the last ```` ```json ```` block of the answer | AP@[.50:.95], AP50 |
//! | `odLength` | the same | AP@[.50:.95] times min(1, truths / predictions) |
//! | `map` | the last block of the whole text | AP@[.50:.95] |
//! | `map_strict` | the same | AP@[.50:.95] in which labels that no truth has count, with an AP of 0 |
//! | `weighted_sum` | the first block of the cleaned answer | [`weighted_sum`] |
//!
//! Boxes are `{"bbox_2d": [x1, y1, x2, y2], "label": ...}`; every prediction is scored 1, so their order
//! breaks ties. Differences from VLM-R1: a prediction with a number that is not finite is dropped
//! (there NaN matches any truth), and a truth that cannot be read is an error.

mod boxes_in_text;
pub mod coco;
mod nms;
mod weighted_sum;

use std::collections::{HashMap, HashSet};

pub(crate) use self::boxes_in_text::last_block;
use self::boxes_in_text::{Entry, Label, TrueBox, predicted, true_boxes};
use self::coco::{AveragePrecision, CocoBox, Detection, Truth, average_precision};
pub use self::nms::{nms_average_precision, suppress_by_truth};
pub(crate) use self::weighted_sum::check as check_weighted_sum;
pub use self::weighted_sum::weighted_sum;
use crate::answer::{first_answer, last_answer, python_strip};

/// An answer that names no boxes.
const NONE: &str = "None";

/// The score of two lists of which neither is empty.
type Compare = fn(truths: &[TrueBox<'_>], predictions: &[Entry<'_>]) -> f64;

/// AP@[.50:.95] of the answer's boxes, in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn od_ap(completion: &str, solution: &str) -> Result<f64, String> {
    answers(completion, solution, mean_ap)
}

/// AP50 of the answer's boxes, in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn od_ap50(completion: &str, solution: &str) -> Result<f64, String> {
    answers(completion, solution, |truths, predictions| {
        precision(truths, predictions).map_or(0.0, |precision| precision.ap50)
    })
}

/// AP@[.50:.95] of the answer's boxes times min(1, truths / predictions), in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn od_length(completion: &str, solution: &str) -> Result<f64, String> {
    answers(completion, solution, |truths, predictions| {
        let ratio = truths.len() as f64 / predictions.len() as f64;
        mean_ap(truths, predictions) * ratio.min(1.0)
    })
}

/// AP@[.50:.95] of the boxes in the last block of each text, in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn map(completion: &str, solution: &str) -> Result<f64, String> {
    blocks(completion, solution, mean_ap)
}

/// [`map`] without its loophole, in `[0, 1]`.
///
/// COCO drops predictions under labels that no truth has, so listing every label is free. Here each
/// such label is a category with an AP of 0, and so is the lack of a label. A prediction whose box
/// cannot be read or has a negative area is a false one of its label, and where there are no true
/// boxes a block that cannot be read is no right answer.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn map_strict(completion: &str, solution: &str) -> Result<f64, String> {
    let is_unreadable = last_block(completion).is_some_and(|block| predicted(block).is_none());
    let score = blocks(completion, solution, strict_ap)?;
    Ok(if is_unreadable { 0.0 } else { score })
}

/// Whether `od_ap`, `od_ap50` and `odLength` can read the solution.
pub(crate) fn check_od(solution: &str) -> Result<(), String> {
    true_boxes(last_block(true_answer(solution)?)).map(drop)
}

/// Whether `map` and `map_strict` can read the solution.
pub(crate) fn check_map(solution: &str) -> Result<(), String> {
    true_boxes(last_block(solution)).map(drop)
}

fn true_answer(solution: &str) -> Result<&str, String> {
    let answer = first_answer(solution).map(python_strip);
    answer.ok_or_else(|| "no `<answer>...</answer>`".to_owned())
}

/// Compares the last answer of the completion with the first of the solution.
fn answers(completion: &str, solution: &str, compare: Compare) -> Result<f64, String> {
    let truth = true_answer(solution)?;
    let Some(answer) = last_answer(completion).map(python_strip) else {
        return check_od(solution).map(|()| 0.0);
    };
    if answer == NONE && truth == NONE {
        return Ok(1.0);
    }
    blocks(answer, truth, compare)
}

/// Compares the last block of each text; lists that are both empty are equal.
fn blocks(text: &str, truth: &str, compare: Compare) -> Result<f64, String> {
    let truths = true_boxes(last_block(truth))?;
    let predictions = last_block(text).and_then(predicted).unwrap_or_default();
    Ok(match (truths.is_empty(), predictions.is_empty()) {
        (true, true) => 1.0,
        (false, false) => compare(&truths, &predictions),
        _ => 0.0,
    })
}

fn mean_ap(truths: &[TrueBox<'_>], predictions: &[Entry<'_>]) -> f64 {
    precision(truths, predictions).map_or(0.0, |precision| precision.ap)
}

/// The truths' labels, numbered in order.
fn categories<'a>(truths: &'a [TrueBox<'a>]) -> HashMap<&'a Label<'a>, u64> {
    let mut categories = HashMap::with_capacity(truths.len());
    for truth in truths {
        let next = categories.len() as u64;
        categories.entry(&truth.label).or_insert(next);
    }
    categories
}

fn coco_truths(truths: &[TrueBox<'_>], categories: &HashMap<&Label<'_>, u64>) -> Vec<Truth> {
    let truth = |truth: &TrueBox<'_>| Truth {
        image: 0,
        category: categories[&truth.label],
        bbox: truth.corners.into(),
    };
    truths.iter().map(truth).collect()
}

fn coco_detection(category: u64, bbox: CocoBox) -> Detection {
    Detection {
        image: 0,
        category,
        bbox,
        score: 1.0,
    }
}

/// COCO's average precision; predictions that lack a box or a label of the truths are dropped.
fn precision(truths: &[TrueBox<'_>], predictions: &[Entry<'_>]) -> Option<AveragePrecision> {
    let categories = categories(truths);
    let detections: Vec<Detection> = predictions
        .iter()
        .filter_map(|entry| {
            let category = *categories.get(entry.label.as_ref()?)?;
            Some(coco_detection(category, entry.corners?.into()))
        })
        .collect();
    average_precision(&coco_truths(truths, &categories), &detections)
}

/// Average precision over the labels of truths and predictions; what cannot match is false.
fn strict_ap(truths: &[TrueBox<'_>], predictions: &[Entry<'_>]) -> f64 {
    let categories = categories(truths);
    let mut absent = HashSet::new();
    let mut detections = Vec::with_capacity(predictions.len());
    for entry in predictions {
        let Some(&category) = entry.label.as_ref().and_then(|label| categories.get(label)) else {
            absent.insert(&entry.label);
            continue;
        };
        let bbox = entry.corners.map(CocoBox::from);
        // A box of no area counts and matches nothing.
        let nowhere = CocoBox::from(crate::boxes::BoundingBox::from([0.0; 4]));
        let bbox = bbox.filter(CocoBox::is_counted).unwrap_or(nowhere);
        detections.push(coco_detection(category, bbox));
    }
    average_precision(&coco_truths(truths, &categories), &detections).map_or(0.0, |precision| {
        let counted = precision.num_categories as f64;
        precision.ap * counted / (counted + absent.len() as f64)
    })
}
