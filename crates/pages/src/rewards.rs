//! The page of `reward --html`: how scores are spread, and rows with images, boxes and reasons.

use std::path::{Path, PathBuf};

use ::rewards::Explanation;
use base::console::plain_zero;
use report::stats::moments;
use report::{
    AnnotatedImage, Colour, EncodedImage, Histogram, HistogramChart, KeyMetric, LabelledBox,
    ScoreLine, ScoredPage, ScoredRow,
};

use crate::completion_parts::completion_parts;
use crate::page_image::{for_page, short_label};
use crate::with_causes;

/// A row with its scores.
pub struct Row {
    /// `rows.jsonl:3, group 7`
    pub place: String,
    /// Its image files; boxes are those of the first.
    pub images: Vec<PathBuf>,
    /// Width and height of the whole first image in the units in which rewards compare boxes; px where none are given.
    pub extent: Option<[f64; 2]>,
    /// The question.
    pub question: String,
    /// What the model wrote.
    pub completion: String,
    /// The true answer.
    pub solution: String,
    /// Score by each reward; none where it does not apply.
    pub scores: Vec<Option<f64>>,
    /// Why it has them.
    pub explained: Vec<Option<Explanation>>,
    /// The weighted sum.
    pub total: f64,
}

/// Scores of all rows by one reward.
pub struct RewardScores<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its weight in the sum.
    pub weight: f64,
    /// The scores.
    pub scores: &'a [f64],
}

/// What the page shows.
pub struct Page<'a> {
    /// The file that was scored.
    pub input: &'a str,
    /// The rewards.
    pub rewards: Vec<RewardScores<'a>>,
    /// Weighted sums of all rows.
    pub totals: &'a [f64],
    /// Numbers to see first, beside rows and mean.
    pub metrics: Vec<KeyMetric>,
    /// How many rows there are in all, of which `rows` are an even choice.
    pub num_rows: usize,
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether images are turned as their EXIF orientation says.
    pub apply_exif: bool,
}

impl Page<'_> {
    /// The page.
    pub fn scored(&self) -> ScoredPage {
        let (seen, shown) = (self.num_rows, self.rows.len());
        let note = if shown == seen {
            format!("All {seen} rows.")
        } else {
            format!("{shown} of {seen} rows, chosen evenly from the whole file (--html_rows).")
        };
        ScoredPage {
            title: format!("Rewards of {}", self.input),
            summary: self.weights(),
            metrics: self.key_metrics(),
            charts: self.charts(),
            total: "reward (sum)".into(),
            rewards: self.rewards.iter().map(|reward| reward.name.to_owned()).collect(),
            tags: Vec::new(),
            legend: vec![(Colour::Green, "true".into()), (Colour::Orange, "predicted".into())],
            note,
            rows: self.rows.iter().map(|row| row.scored(self.apply_exif)).collect(),
        }
    }

    fn weights(&self) -> String {
        let each = self.rewards.iter();
        let each: Vec<String> =
            each.map(|reward| format!("{} x {}", reward.weight, reward.name)).collect();
        format!("reward = {}", each.join(" + "))
    }

    fn key_metrics(&self) -> Vec<KeyMetric> {
        let num_rows = self.totals.len();
        let mean = self.totals.iter().sum::<f64>() / num_rows.max(1) as f64;
        let mut metrics = vec![
            KeyMetric { label: "rows".into(), value: num_rows.to_string(), note: String::new() },
            KeyMetric {
                label: "mean reward".into(),
                value: format!("{:.3}", plain_zero(mean, 3)),
                note: "weighted sum of the rewards".into(),
            },
        ];
        metrics.extend(self.metrics.iter().cloned());
        metrics
    }

    fn charts(&self) -> Vec<HistogramChart> {
        let chart = |title: &str, values: &[f64], colour| HistogramChart {
            title: title.to_owned(),
            note: match moments(values).map(|(mean, spread)| (plain_zero(mean, 4), spread)) {
                Some((mean, Some(deviation))) => format!("mean {mean:.4}, std {deviation:.4}"),
                Some((mean, None)) => format!("mean {mean:.4}"),
                None => "applies to no row".to_owned(),
            },
            histogram: Histogram::of(values),
            colour,
        };
        let total = chart("reward (sum)", self.totals, Colour::Purple);
        let each = self.rewards.iter();
        let each = each.map(|reward| chart(reward.name, reward.scores, Colour::Blue));
        std::iter::once(total).chain(each).collect()
    }
}

impl Row {
    fn scored(&self, apply_exif: bool) -> ScoredRow {
        let (mut shown_images, mut notes) = (Vec::new(), Vec::new());
        for (index, path) in self.images.iter().enumerate() {
            // Boxes are those of the first image.
            let boxes = if index == 0 { self.explained.as_slice() } else { &[] };
            match for_page(path, apply_exif) {
                Ok((image, original)) => {
                    let extent = self.extent.unwrap_or(original.map(f64::from));
                    shown_images.push(shown_image(path, image, boxes, extent));
                }
                Err(error) => notes.push(format!("no image: {}", with_causes(&error))),
            }
        }
        if shown_images.is_empty() && notes.is_empty() {
            notes.push("no image in the row".to_owned());
        }
        let lines = self.scores.iter().zip(&self.explained);
        ScoredRow {
            place: self.place.clone(),
            shown_images,
            image_note: notes.join("; "),
            question: self.question.clone(),
            completion: completion_parts(&self.completion),
            solution: self.solution.clone(),
            total: self.total,
            tags: Vec::new(),
            scores: lines.map(|(score, why)| score_line(*score, why.as_ref())).collect(),
        }
    }
}

fn score_line(score: Option<f64>, why: Option<&Explanation>) -> ScoreLine {
    let Some(why) = why else {
        return ScoreLine { score, reason: String::new() };
    };
    let mut reason = why.reason.clone();
    if let Some(answer) = &why.answer {
        reason.push_str(&format!(" \u{2013} read: {answer}"));
    }
    let ious = why.matches.iter().map(|pair| format!("{:.3}", pair.iou));
    let ious: Vec<String> = ious.collect();
    // Of one pair the reason speaks itself.
    if ious.len() > 1 {
        reason.push_str(&format!(" \u{2013} IoU {}", ious.join(", ")));
    }
    ScoreLine { score, reason }
}

/// An image in a size for the page, with the boxes of the explanations.
fn shown_image(
    path: &Path,
    image: EncodedImage,
    explained: &[Option<Explanation>],
    extent: [f64; 2],
) -> AnnotatedImage {
    let scale = [0, 1].map(|axis| f64::from(image.size()[axis]) / extent[axis]);
    AnnotatedImage {
        image,
        boxes: boxes(explained, scale),
        title: path.display().to_string(),
        lines: Vec::new(),
    }
}

/// True boxes, then predicted ones with their IoU; a box that several rewards read is drawn once.
fn boxes(explained: &[Option<Explanation>], scale: [f64; 2]) -> Vec<LabelledBox> {
    let mut truths: Vec<LabelledBox> = Vec::new();
    let mut predicted: Vec<LabelledBox> = Vec::new();
    for why in explained.iter().flatten() {
        for found in &why.truths {
            let label = match found.label.as_str() {
                "" => "true".to_owned(),
                label => short_label(label),
            };
            add(&mut truths, label, Colour::Green, found.corners.into(), scale);
        }
        for (index, found) in why.predicted.iter().enumerate() {
            let label = short_label(&found.label);
            let pair = why.matches.iter().find(|pair| pair.predicted == index);
            let label = match pair {
                Some(pair) => format!("{label} {:.2}", pair.iou),
                None => label,
            };
            let corners = found.corners.into();
            add(&mut predicted, label.trim().to_owned(), Colour::Orange, corners, scale);
        }
    }
    truths.append(&mut predicted);
    truths
}

fn add(
    boxes: &mut Vec<LabelledBox>,
    label: String,
    colour: Colour,
    corners: [f64; 4],
    scale: [f64; 2],
) {
    let corners = [0, 1, 2, 3].map(|corner| corners[corner] * scale[corner % 2]);
    let drawn = boxes.iter_mut().find(|drawn| drawn.corners == corners);
    match drawn {
        // The label with more to say.
        Some(drawn) if drawn.label.len() < label.len() => drawn.label = label,
        Some(_) => {}
        None => boxes.push(LabelledBox { label, colour, corners }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::rewards::{BoundingBox, FoundBox, MatchedBoxes};

    #[test]
    fn a_box_that_two_rewards_read_is_drawn_once() {
        let found = |corners: [f64; 4]| FoundBox {
            corners: BoundingBox::from(corners),
            label: String::new(),
        };
        let with = |matches| Explanation {
            predicted: vec![found([0.0, 10.0, 20.0, 30.0])],
            truths: vec![found([5.0, 10.0, 20.0, 30.0])],
            matches,
            ..Explanation::default()
        };
        let pair = MatchedBoxes { predicted: 0, truth: 0, iou: 0.75 };
        let drawn = boxes(&[Some(with(vec![])), None, Some(with(vec![pair]))], [2.0, 0.5]);
        let drawn: Vec<_> = drawn.iter().map(|b| (b.label.as_str(), b.colour, b.corners)).collect();
        assert_eq!(
            drawn,
            [
                ("true", Colour::Green, [10.0, 5.0, 40.0, 15.0]),
                ("0.75", Colour::Orange, [0.0, 5.0, 40.0, 15.0]),
            ]
        );
    }
}
