//! Statistics of the true answers: the most frequent, and the number, size and place of their boxes.

use std::collections::HashMap;

use serde::Serialize;

use super::boxes::AnswerBox;
use super::digest;

/// Different texts that are counted; of more, the number alone is not known.
const MAX_COUNTED: usize = 100_000;
/// Longest text that is shown, characters.
const MAX_TEXT: usize = 60;
/// Texts up to this length are kept whole, bytes.
const MAX_KEPT_BYTES: usize = 200;
/// Number of frequent texts that are reported.
const NUM_TOP: usize = 8;
/// Rows from which one answer in all of them is suspicious.
const FEW_ROWS: u64 = 20;

/// A text and its count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TextCount {
    /// The text, shortened.
    pub text: String,
    /// How often.
    pub count: u64,
}

/// Texts counted.
#[derive(Clone, Debug, Default)]
struct Texts {
    counts: HashMap<String, u64>,
    is_full: bool,
}

impl Texts {
    fn add(&mut self, text: &str) {
        // Of a long text the start and a digest: a hundred thousand of them are to fit in memory.
        let short = match text.len() > MAX_KEPT_BYTES {
            true => format!("{} #{:x}", shortened(text), digest(&text)),
            false => text.to_owned(),
        };
        if let Some(count) = self.counts.get_mut(&short) {
            *count += 1;
        } else if self.counts.len() < MAX_COUNTED {
            self.counts.insert(short, 1);
        } else {
            self.is_full = true;
        }
    }

    /// The most frequent first; equally frequent ones by name.
    fn top(&self) -> Vec<TextCount> {
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        let top = counts.into_iter().take(NUM_TOP);
        top.map(|(text, &count)| TextCount { text: shortened(text), count }).collect()
    }
}

pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text.to_owned(),
    }
}

/// Bounds of the areas of boxes, shares of the image.
pub const AREA_BOUNDS: [f64; 4] = [0.001, 0.01, 0.1, 0.5];

/// How the true answers of the training files are spread.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answers {
    /// Rows counted.
    pub rows: u64,
    /// Different answers.
    pub distinct: usize,
    /// Whether there are more of them than were counted.
    pub distinct_is_least: bool,
    /// The most frequent answers.
    pub top: Vec<TextCount>,
    /// Rows by number of boxes: 0, 1, 2, 3 to 5, 6 to 10, more. Empty where no row has boxes.
    pub boxes_per_row: Vec<u64>,
    /// Boxes by share of the image: under 0.1 %, 1 %, 10 %, 50 %, and above.
    pub box_areas: Vec<u64>,
    /// Boxes by where their centre is: three rows of three thirds.
    pub box_places: Vec<u64>,
    /// The most frequent labels of boxes.
    pub labels: Vec<TextCount>,
    /// Different labels.
    pub distinct_labels: usize,
}

/// What [`Answers`] is made of.
#[derive(Debug, Default)]
pub(super) struct AnswerCounts {
    rows: u64,
    answers: Texts,
    labels: Texts,
    rows_by_boxes: [u64; 6],
    areas: [u64; 5],
    places: [u64; 9],
}

impl AnswerCounts {
    pub(super) fn add(&mut self, answer: &str, boxes: &[AnswerBox], extent: Option<[f64; 2]>) {
        self.rows += 1;
        self.answers.add(answer);
        let bin = match boxes.len() {
            few @ 0..=2 => few,
            3..=5 => 3,
            6..=10 => 4,
            _ => 5,
        };
        self.rows_by_boxes[bin] += 1;
        for found in boxes {
            if let Some(label) = &found.label {
                self.labels.add(label);
            }
            if let Some(extent) = extent {
                self.place(found.corners, extent);
            }
        }
    }

    fn place(&mut self, [x1, y1, x2, y2]: [f64; 4], [width, height]: [f64; 2]) {
        let area = (x2 - x1).max(0.0) * (y2 - y1).max(0.0) / (width * height);
        let bin = AREA_BOUNDS.iter().filter(|bound| area >= **bound).count();
        self.areas[bin] += 1;
        let third =
            |a: f64, b: f64, side: f64| ((a + b) / 2.0 / side * 3.0).clamp(0.0, 2.0) as usize;
        self.places[3 * third(y1, y2, height) + third(x1, x2, width)] += 1;
    }

    /// The answer that nearly all rows have, in words.
    pub(super) fn constant(&self) -> Option<String> {
        let top = self.answers.top();
        let first = top.first()?;
        let is_constant = self.rows >= FEW_ROWS && first.count * 10 >= self.rows * 9;
        is_constant.then(|| {
            format!("`{}` is the answer of {} of {} rows", first.text, first.count, self.rows)
        })
    }

    pub(super) fn spread(&self) -> Answers {
        let has_boxes = self.rows_by_boxes[1..].iter().any(|count| *count > 0);
        let of_boxes = |counts: &[u64]| {
            if has_boxes { counts.to_vec() } else { Vec::new() }
        };
        Answers {
            rows: self.rows,
            distinct: self.answers.counts.len(),
            distinct_is_least: self.answers.is_full,
            top: self.answers.top(),
            boxes_per_row: of_boxes(&self.rows_by_boxes),
            box_areas: of_boxes(&self.areas),
            box_places: of_boxes(&self.places),
            labels: self.labels.top(),
            distinct_labels: self.labels.counts.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_counted_by_number_area_and_place() {
        let mut counts = AnswerCounts::default();
        let boxed = |corners| AnswerBox { label: Some("cup".to_owned()), corners };
        let extent = Some([100.0, 100.0]);
        counts.add("a", &[boxed([0.0, 0.0, 100.0, 100.0])], extent);
        counts.add("b", &[boxed([0.0, 0.0, 10.0, 10.0]), boxed([90.0, 90.0, 99.0, 99.0])], extent);
        counts.add("None", &[], extent);
        let spread = counts.spread();
        assert_eq!(spread.boxes_per_row, [1, 1, 1, 0, 0, 0]);
        assert_eq!(spread.box_areas, [0, 1, 1, 0, 1]);
        assert_eq!(spread.box_places, [1, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!((spread.labels[0].count, spread.distinct_labels), (3, 1));
        assert_eq!((spread.rows, spread.distinct), (3, 3));
    }

    #[test]
    fn a_constant_answer_is_noticed_once_there_are_enough_rows() {
        let mut counts = AnswerCounts::default();
        for _ in 0..19 {
            counts.add("yes", &[], None);
        }
        assert_eq!(counts.constant(), None);
        counts.add("no", &[], None);
        assert!(counts.constant().is_some_and(|text| text.contains("19 of 20")));
        (0..3).for_each(|_| counts.add("no", &[], None));
        assert_eq!(counts.constant(), None);
        assert!(counts.spread().boxes_per_row.is_empty());
    }
}
