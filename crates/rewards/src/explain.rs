//! Explanations of scores.

use serde_json::{Value, json};

use crate::boxes::BoundingBox;

/// What a reward read in a row and how it compared it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// What [`Reward::score`](crate::Reward::score) says of the row.
    pub score: Option<f64>,
    /// The part of the completion that was scored; none where none was found.
    pub answer: Option<String>,
    /// What it was compared with.
    pub truth: Option<String>,
    /// The rule that decided, in a few words.
    pub reason: String,
    /// Boxes of the answer, in the units that were compared.
    pub predicted: Vec<FoundBox>,
    /// Boxes of the solution, in the same units.
    pub truths: Vec<FoundBox>,
    /// Which of them were matched.
    pub matches: Vec<MatchedBoxes>,
}

/// A box that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundBox {
    /// Its corners.
    pub corners: BoundingBox,
    /// Its label; empty where the task has none.
    pub label: String,
}

/// Two boxes that were taken for the same thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatchedBoxes {
    /// Index in [`Explanation::predicted`].
    pub predicted: usize,
    /// Index in [`Explanation::truths`].
    pub truth: usize,
    /// Their IoU.
    pub iou: f64,
}

impl Explanation {
    /// As a JSON object; what is empty is left out.
    pub fn to_json(&self) -> Value {
        let boxes = |boxes: &[FoundBox]| -> Value {
            let each = boxes.iter().map(|found| {
                let BoundingBox { x1, y1, x2, y2 } = found.corners;
                json!({"bbox_2d": [x1, y1, x2, y2], "label": found.label})
            });
            each.collect()
        };
        let mut json = json!({
            "score": self.score,
            "answer": self.answer,
            "truth": self.truth,
            "reason": self.reason,
        });
        if !self.predicted.is_empty() {
            json["predicted"] = boxes(&self.predicted);
        }
        if !self.truths.is_empty() {
            json["truths"] = boxes(&self.truths);
        }
        if !self.matches.is_empty() {
            let matches = self.matches.iter();
            let matches =
                matches.map(|m| json!({"predicted": m.predicted, "truth": m.truth, "iou": m.iou}));
            json["matches"] = matches.collect();
        }
        json
    }
}

/// Collects the explanation of a row while it is scored, or nothing.
pub(crate) struct Notes<'a>(Option<&'a mut Explanation>);

impl<'a> Notes<'a> {
    /// No explanation is wanted.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// In `explanation`.
    pub(crate) fn on(explanation: &'a mut Explanation) -> Self {
        Self(Some(explanation))
    }

    pub(crate) fn write(&mut self, note: impl FnOnce(&mut Explanation)) {
        if let Some(explanation) = &mut self.0 {
            note(explanation);
        }
    }

    pub(crate) fn reason(&mut self, reason: impl FnOnce() -> String) {
        self.write(|explanation| explanation.reason = reason());
    }
}
