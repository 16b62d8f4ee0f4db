//! The boxes of a completion and of its solution, in common units.

use super::boxes_in_text::{Entry, TrueBox, predicted, true_boxes};
use crate::box_format::{Conversion, Conversions};
use crate::boxes::BoundingBox;
use crate::explain::{Explanation, FoundBox, MatchedBoxes, Notes};

/// The boxes of both sides, in the units in which they are compared.
pub(super) struct Lists<'a> {
    pub(super) truths: Vec<TrueBox<'a>>,
    /// Empty where there is no block that can be read.
    pub(super) predictions: Vec<Entry<'a>>,
    /// Whether there is a block that cannot be read.
    pub(super) is_unreadable: bool,
    has_block: bool,
}

impl<'a> Lists<'a> {
    /// Reads the block of the answer and that of the solution.
    ///
    /// # Errors
    /// Says what is wrong with a solution that cannot be read.
    pub(super) fn read(
        block: Option<&'a str>,
        true_block: Option<&'a str>,
        units: Conversions,
        notes: &mut Notes<'_>,
    ) -> Result<Self, String> {
        let mut truths = true_boxes(true_block)?;
        let predictions = block.and_then(predicted);
        let is_unreadable = block.is_some() && predictions.is_none();
        let mut predictions = predictions.unwrap_or_default();
        if units != Conversions::default() {
            for truth in &mut truths {
                truth.corners = units.solution.apply(truth.corners);
            }
            for entry in &mut predictions {
                entry.corners = entry.corners.and_then(|b| finite(units.answer, b));
            }
        }
        let lists = Self { truths, predictions, is_unreadable, has_block: block.is_some() };
        notes.write(|why| {
            why.answer = block.map(str::to_owned).or(why.answer.take());
            why.truth = true_block.map(str::to_owned).or(why.truth.take());
            lists.show(why);
        });
        Ok(lists)
    }

    /// 1 where both lists are empty, 0 where one is, else what `compare` says.
    pub(super) fn score(
        &self,
        notes: &mut Notes<'_>,
        compare: impl FnOnce(&mut Notes<'_>) -> f64,
    ) -> f64 {
        let (num_truths, num_predictions) = (self.truths.len(), self.predictions.len());
        match (num_truths, num_predictions) {
            (0, 0) => {
                notes.reason(|| "no boxes on either side".into());
                1.0
            }
            (0, _) => {
                notes.reason(|| format!("{num_predictions} boxes, none in the solution"));
                0.0
            }
            (_, 0) => {
                notes.reason(|| format!("{}, {num_truths} boxes in the solution", self.nothing()));
                0.0
            }
            _ => compare(notes),
        }
    }

    /// Why no boxes were predicted.
    pub(super) fn nothing(&self) -> &'static str {
        match (self.has_block, self.is_unreadable) {
            (false, _) => "no ```json block",
            (true, true) => "the ```json block cannot be read",
            (true, false) => "an empty list",
        }
    }

    /// Notes a match of a prediction and a truth.
    pub(super) fn note_match(
        &self,
        notes: &mut Notes<'_>,
        prediction: usize,
        truth: usize,
        iou: f64,
    ) {
        notes.write(|why| {
            let before = self.predictions[..prediction].iter();
            why.matches.push(MatchedBoxes {
                predicted: before.filter(|entry| entry.corners.is_some()).count(),
                truth,
                iou,
            });
        });
    }

    /// How many boxes each side has, in words.
    pub(super) fn counts(&self) -> String {
        let unread = self.predictions.iter().filter(|e| e.corners.is_none());
        let unread = match unread.count() {
            0 => String::new(),
            count => format!(", {count} of them without corners"),
        };
        let (truths, predictions) = (self.truths.len(), self.predictions.len());
        format!("{truths} true boxes, {predictions} predicted{unread}")
    }

    fn show(&self, why: &mut Explanation) {
        let found = |entry: &Entry<'_>| {
            let label = entry.label.as_ref();
            Some(FoundBox {
                corners: entry.corners?,
                label: label.map(|label| label.shown()).unwrap_or_default(),
            })
        };
        why.predicted = self.predictions.iter().filter_map(found).collect();
        let truths = self
            .truths
            .iter()
            .map(|truth| FoundBox { corners: truth.corners, label: truth.label.shown() });
        why.truths = truths.collect();
    }
}

/// The converted box, where all its corners are numbers that fit.
fn finite(conversion: Conversion, b: BoundingBox) -> Option<BoundingBox> {
    let b = conversion.apply(b);
    let corners = <[f64; 4]>::from(b);
    corners.iter().all(|x| x.is_finite()).then_some(b)
}
