//! Rewards of object detection: the accuracy methods that compare lists of labelled boxes.
//!
//! | method | boxes of | score |
//! |---|---|---|
//! | `od_ap`, `od_ap50` | the last ```` ```json ```` block of the answer | AP@[.50:.95], AP50 |
//! | `odLength` | the same | AP@[.50:.95] times min(1, truths / predictions) |
//! | `map` | the last block of the whole text | AP@[.50:.95] |
//! | `map_strict` | the same | AP@[.50:.95] in which labels that no truth has count, with an AP of 0 |
//! | `weighted_sum` | the first block of the cleaned answer | [`weighted_sum()`] |
//!
//! Boxes are `{"bbox_2d": [x1, y1, x2, y2], "label": ...}`; every prediction is scored 1, so their order
//! breaks ties. Differences from VLM-R1: a prediction with a number that is not finite is dropped
//! (there NaN matches any truth), and a truth that cannot be read is an error.

mod boxes_in_text;
pub mod coco;
mod lists;
mod nms;
mod predictions;
mod weighted_sum;

use std::collections::{HashMap, HashSet};
use std::ptr;

use python::text::strip;

pub(crate) use self::boxes_in_text::last_block;
use self::boxes_in_text::{Entry, Label, TrueBox, true_boxes};
use self::coco::{AveragePrecision, CocoBox, Detection, Truth, average_precision_of_matches};
use self::lists::Lists;
pub use self::nms::{nms_average_precision, suppress_by_truth};
pub use self::predictions::{Predictions, predictions};

use crate::answer::{first_answer, last_answer};
use crate::box_format::Conversions;
use crate::boxes::BoundingBox;
use crate::explain::Notes;

/// An answer that names no boxes.
const NONE: &str = "None";

/// A method of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Map,
    MapStrict,
    OdAp,
    OdAp50,
    OdLength,
    WeightedSum,
}

/// AP@[.50:.95] of the answer's boxes, in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn od_ap(completion: &str, solution: &str) -> Result<f64, String> {
    Method::OdAp.score_as_given(completion, solution)
}

/// AP50 of the answer's boxes, in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn od_ap50(completion: &str, solution: &str) -> Result<f64, String> {
    Method::OdAp50.score_as_given(completion, solution)
}

/// AP@[.50:.95] of the answer's boxes times min(1, truths / predictions), in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn od_length(completion: &str, solution: &str) -> Result<f64, String> {
    Method::OdLength.score_as_given(completion, solution)
}

/// AP@[.50:.95] of the boxes in the last block of each text, in `[0, 1]`.
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn map(completion: &str, solution: &str) -> Result<f64, String> {
    Method::Map.score_as_given(completion, solution)
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
    Method::MapStrict.score_as_given(completion, solution)
}

/// 0.7 * sum of IoU / truths + 0.3 * (1 - (miss rate + false alarm rate) / 2), in `[0, 1]`.
///
/// Of all pairs with an IoU of 0.5 or more that of highest IoU is matched first, then the highest of
/// what is left, and so on; a pair whose labels differ stays matched with an IoU of 0. The texts
/// are cleaned; both `none`: 1. A label that is no text is empty (VLM-R1 takes that of the pair
/// before, or fails).
///
/// # Errors
/// Says what is wrong with a solution that cannot be read.
pub fn weighted_sum(completion: &str, solution: &str) -> Result<f64, String> {
    Method::WeightedSum.score_as_given(completion, solution)
}

fn true_answer(solution: &str) -> Result<&str, String> {
    let answer = first_answer(solution).map(strip);
    answer.ok_or_else(|| "no `<answer>...</answer>`".to_owned())
}

impl Method {
    /// Whether the solution can be read.
    pub(crate) fn check(self, solution: &str) -> Result<(), String> {
        match self {
            Self::Map | Self::MapStrict => true_boxes(last_block(solution)).map(drop),
            Self::OdAp | Self::OdAp50 | Self::OdLength => {
                true_boxes(last_block(true_answer(solution)?)).map(drop)
            }
            Self::WeightedSum => weighted_sum::check(solution),
        }
    }

    fn score_as_given(self, completion: &str, solution: &str) -> Result<f64, String> {
        let units = Conversions::default();
        self.score(completion, solution, units, &mut Notes::none())
    }

    /// The score, with notes on what it is made of.
    pub(crate) fn score(
        self,
        completion: &str,
        solution: &str,
        units: Conversions,
        notes: &mut Notes<'_>,
    ) -> Result<f64, String> {
        match self {
            Self::Map | Self::MapStrict => self.blocks(completion, solution, units, notes),
            Self::OdAp | Self::OdAp50 | Self::OdLength => {
                self.answers(completion, solution, units, notes)
            }
            Self::WeightedSum => weighted_sum::score(completion, solution, units, notes),
        }
    }

    /// Compares the last answer of the completion with the first of the solution.
    fn answers(
        self,
        completion: &str,
        solution: &str,
        units: Conversions,
        notes: &mut Notes<'_>,
    ) -> Result<f64, String> {
        let truth = true_answer(solution)?;
        let answer = last_answer(completion).map(strip);
        notes.write(|why| {
            why.answer = answer.map(str::to_owned);
            why.truth = Some(truth.to_owned());
        });
        let Some(answer) = answer else {
            notes.reason(|| "no `<answer>...</answer>`".into());
            return self.check(solution).map(|()| 0.0);
        };
        if answer == NONE && truth == NONE {
            notes.reason(|| format!("both say `{NONE}`"));
            return Ok(1.0);
        }
        self.blocks(answer, truth, units, notes)
    }

    /// Compares the last block of each text.
    fn blocks(
        self,
        text: &str,
        truth: &str,
        units: Conversions,
        notes: &mut Notes<'_>,
    ) -> Result<f64, String> {
        let lists = Lists::read(last_block(text), last_block(truth), units, notes)?;
        if self == Self::MapStrict && lists.is_unreadable {
            notes.reason(|| lists.nothing().into());
            return Ok(0.0);
        }
        Ok(lists.score(notes, |notes| self.compare(&lists, notes)))
    }

    /// The score of two lists of which neither is empty.
    fn compare(self, lists: &Lists<'_>, notes: &mut Notes<'_>) -> f64 {
        let categories = categories(&lists.truths);
        let truths = coco_truths(&lists.truths, &categories);
        let seen = Seen::new(&categories, &lists.predictions, self == Self::MapStrict);
        let mut on_match = |detection: &Detection, truth: &Truth| {
            let origin = position(&seen.detections, detection).map(|index| seen.origins[index]);
            let pair = origin.zip(position(&truths, truth));
            if let Some((prediction, index)) = pair {
                lists.note_match(notes, prediction, index, detection.bbox.iou(&truth.bbox));
            }
        };
        let precision = average_precision_of_matches(&truths, &seen.detections, &mut on_match);
        precision.map_or(0.0, |precision| self.score_of(precision, lists, seen.absent.len(), notes))
    }

    fn score_of(
        self,
        AveragePrecision { ap, ap50, num_categories }: AveragePrecision,
        lists: &Lists<'_>,
        num_absent: usize,
        notes: &mut Notes<'_>,
    ) -> f64 {
        let length = (lists.truths.len() as f64 / lists.predictions.len() as f64).min(1.0);
        let labels = num_categories + num_absent;
        notes.reason(|| {
            let by = match self {
                Self::OdAp50 => format!("AP {ap50:.3} at IoU 0.50"),
                Self::OdLength => format!("AP {ap:.3} x length {length:.3}"),
                Self::MapStrict => format!(
                    "AP {ap:.3} x {num_categories} of {labels} labels, the rest not in the solution"
                ),
                Self::Map | Self::OdAp | Self::WeightedSum => {
                    format!("AP {ap:.3} over IoU 0.50 to 0.95")
                }
            };
            format!("{by}; {}", lists.counts())
        });
        match self {
            Self::OdAp50 => ap50,
            Self::OdLength => ap * length,
            Self::MapStrict => ap * num_categories as f64 / labels as f64,
            Self::Map | Self::OdAp | Self::WeightedSum => ap,
        }
    }
}

/// Where in a list an item of it stands.
fn position<T>(list: &[T], item: &T) -> Option<usize> {
    list.iter().position(|other| ptr::eq(other, item))
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
        is_crowd: false,
    };
    truths.iter().map(truth).collect()
}

/// The predictions that COCO sees.
struct Seen<'a> {
    detections: Vec<Detection>,
    /// Their indices among the predictions.
    origins: Vec<usize>,
    /// Labels that no truth has, the lack of one among them; empty unless strict.
    absent: HashSet<&'a Option<Label<'a>>>,
}

impl<'a> Seen<'a> {
    /// Predictions that lack a label of the truths are dropped, and those that lack a box; if
    /// strict, the former are counted and the latter match nothing.
    fn new(
        categories: &HashMap<&Label<'_>, u64>,
        predictions: &'a [Entry<'a>],
        is_strict: bool,
    ) -> Self {
        let mut seen = Self {
            detections: Vec::with_capacity(predictions.len()),
            origins: Vec::with_capacity(predictions.len()),
            absent: HashSet::new(),
        };
        for (index, entry) in predictions.iter().enumerate() {
            let Some(&category) = entry.label.as_ref().and_then(|label| categories.get(label))
            else {
                if is_strict {
                    seen.absent.insert(&entry.label);
                }
                continue;
            };
            let bbox = entry.corners.map(CocoBox::from);
            let bbox = match is_strict {
                true => Some(bbox.filter(CocoBox::is_counted).unwrap_or_else(nowhere)),
                false => bbox,
            };
            if let Some(bbox) = bbox {
                seen.origins.push(index);
                seen.detections.push(Detection { image: 0, category, bbox, score: 1.0 });
            }
        }
        seen
    }
}

/// A box of no area, which counts and matches nothing.
fn nowhere() -> CocoBox {
    BoundingBox::from([0.0; 4]).into()
}
