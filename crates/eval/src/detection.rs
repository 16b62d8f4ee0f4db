//! Detection: the boxes of a completion against those of its image, and the metrics of a set of images.

use std::collections::{BTreeMap, HashMap};

use rewards::BoundingBox;
use rewards::detection::coco::{CocoBox, Detection, MatchedImages, Truth};
use rewards::detection::{Predictions, predictions, suppress_by_truth};
use serde_json::{Map, Value, json};

use crate::coco_file::Objects;
use crate::results::{Scored, ShownBox};

/// IoU from which a prediction may find a truth.
const FOUND_FROM: f64 = 0.5;

/// One image with a completion.
pub struct ImageScore {
    /// The true boxes.
    pub truths: Vec<ShownBox>,
    /// The predicted boxes, px of the image, with the IoU of the truth that they found.
    pub predicted: Vec<ShownBox>,
    read: Predictions,
    num_truths: usize,
    num_found: usize,
    num_other: usize,
}

/// The true boxes of an image, to be drawn and compared.
pub fn truths(objects: &Objects) -> Vec<ShownBox> {
    let truths = objects.truths.iter();
    truths
        .map(|truth| ShownBox {
            is_crowd: truth.is_crowd,
            ..ShownBox::new(truth.corners, &truth.label, None)
        })
        .collect()
}

/// Reads the boxes of a completion, brings them onto the image, and matches them.
pub fn compare(
    objects: &Objects,
    completion: &str,
    on_image: impl Fn(BoundingBox) -> BoundingBox,
) -> ImageScore {
    let read = predictions(completion);
    let truths = truths(objects);
    let predicted = read.boxes.iter().map(|found| {
        let label = objects.label(&found.label);
        ShownBox {
            is_other_label: !objects.categories.iter().any(|name| name == label),
            ..ShownBox::new(on_image(found.corners).into(), label, None)
        }
    });
    let is_finite = |found: &ShownBox| found.bbox_2d.iter().all(|x| x.is_finite());
    let mut predicted: Vec<ShownBox> = predicted
        .filter(|found| is_finite(found) && !objects.left_out.contains(&found.label))
        .collect();
    let matches = greedy_matches(&truths, &predicted);
    for &(prediction, iou) in &matches {
        predicted[prediction].iou = Some(iou);
    }
    ImageScore {
        num_truths: truths.iter().filter(|truth| !truth.is_crowd).count(),
        num_found: matches.len(),
        num_other: predicted.iter().filter(|found| found.is_other_label).count(),
        read,
        truths,
        predicted,
    }
}

/// Index and IoU of the predictions that find a truth: of all pairs of one label with an IoU of 0.5 or
/// more the highest first, then the highest of what is left.
fn greedy_matches(truths: &[ShownBox], predicted: &[ShownBox]) -> Vec<(usize, f64)> {
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for (index, found) in predicted.iter().enumerate() {
        for (truth_index, truth) in truths.iter().enumerate() {
            if truth.label == found.label && !truth.is_crowd {
                let iou = coco_box(found).iou(&coco_box(truth));
                if iou >= FOUND_FROM {
                    pairs.push((iou, index, truth_index));
                }
            }
        }
    }
    // Stable: of equals the first of the completion, then of the truths.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut is_taken = vec![false; truths.len()];
    let mut is_matched = vec![false; predicted.len()];
    let mut matches = Vec::new();
    for (iou, prediction, truth) in pairs {
        if !is_taken[truth] && !is_matched[prediction] {
            is_taken[truth] = true;
            is_matched[prediction] = true;
            matches.push((prediction, iou));
        }
    }
    matches
}

fn coco_box(shown: &ShownBox) -> CocoBox {
    BoundingBox::from(shown.bbox_2d).into()
}

impl ImageScore {
    /// Harmonic mean of the image's greedy precision and recall; 1 where there is nothing to find
    /// and nothing was found.
    pub fn f1(&self) -> f64 {
        let all = self.num_truths + self.predicted.len();
        if all == 0 {
            return f64::from(u8::from(self.read.is_readable));
        }
        2.0 * self.num_found as f64 / all as f64
    }

    /// Whether there is a list, or the word that says that there is nothing.
    pub fn is_readable(&self) -> bool {
        self.read.is_readable
    }

    /// What was found, in words.
    pub fn reason(&self) -> String {
        let read = match self.read.is_readable {
            true => "",
            false => "; no list of boxes can be read",
        };
        format!(
            "{} of {} found, {} predicted{read}",
            self.num_found,
            self.num_truths,
            self.predicted.len()
        )
    }

    /// Values by name.
    pub fn values(&self) -> Map<String, Value> {
        let count = |count: usize| json!(count as f64);
        let entries = [
            ("boxes", count(self.predicted.len())),
            ("found", count(self.num_found)),
            ("other_labels", count(self.num_other)),
            ("unread_boxes", count(self.read.num_unread)),
            ("unreadable", json!(f64::from(u8::from(!self.read.is_readable)))),
        ];
        let entries = entries.into_iter();
        entries.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Metrics of a set of images, by name.
pub type MetricValues = BTreeMap<&'static str, f64>;

/// A set of images with one completion each, for metrics over any resample.
pub struct Corpus {
    plain: MatchedImages,
    kept: MatchedImages,
    /// Found, predicted and true boxes of each image.
    counts: Vec<[usize; 3]>,
}

impl Corpus {
    /// The images of one file, one result each.
    pub fn new(results: &[&Scored]) -> Self {
        let mut order: Vec<usize> = (0..results.len()).collect();
        // Of detections with equal scores COCO takes first those of the lowest id.
        order.sort_by_key(|&index| &results[index].image_id);
        let mut rank = vec![0; results.len()];
        for (place, &index) in order.iter().enumerate() {
            rank[index] = place as u64;
        }
        let mut categories: HashMap<&str, u64> = HashMap::new();
        let mut category = |label| {
            let next = categories.len() as u64;
            *categories.entry(label).or_insert(next)
        };
        let (mut truths, mut detections) = (Vec::new(), Vec::new());
        for (index, result) in results.iter().enumerate() {
            let image = rank[index];
            truths.extend(result.truths.iter().map(|truth| Truth {
                image,
                category: category(truth.label.as_str()),
                bbox: coco_box(truth),
                is_crowd: truth.is_crowd,
            }));
            // OVDEval's program takes no other labels; COCO's drops them.
            let predicted = result.predicted.iter().filter(|found| !found.is_other_label);
            detections.extend(predicted.map(|found| Detection {
                image,
                category: category(found.label.as_str()),
                bbox: coco_box(found),
                score: 1.0,
            }));
        }
        let counts = order.iter().map(|&index| counts(results[index]));
        Self {
            counts: counts.collect(),
            kept: MatchedImages::new(&truths, &suppress_by_truth(&truths, &detections)),
            plain: MatchedImages::new(&truths, &detections),
        }
    }

    /// The metrics where each image stands in the set as often as `times` says; without those that
    /// have no meaning there, as where no truth is left.
    pub fn metrics(&self, times: &[usize]) -> MetricValues {
        let of = |image: u64| times[image as usize];
        let mut metrics = MetricValues::new();
        if let Some(precision) = self.plain.average_precision(of) {
            metrics.insert("ap", precision.ap);
            metrics.insert("ap50", precision.ap50);
        }
        if let Some(precision) = self.kept.average_precision(of) {
            metrics.insert("nms_ap", precision.ap);
            metrics.insert("nms_ap50", precision.ap50);
        }
        let mut sums = [0; 3];
        for (counts, times) in self.counts.iter().zip(times) {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += times * count;
            }
        }
        let [found, predicted, truths] = sums.map(|sum| sum as f64);
        // Who predicts nothing makes no mistake, and finds nothing.
        metrics.insert("precision", if predicted > 0.0 { found / predicted } else { 0.0 });
        if truths > 0.0 {
            metrics.insert("recall", found / truths);
        }
        metrics
    }

    /// The metrics of all images, each once.
    pub fn all(&self) -> MetricValues {
        self.metrics(&vec![1; self.counts.len()])
    }

    /// Images in the set.
    pub fn num_images(&self) -> usize {
        self.counts.len()
    }
}

fn counts(result: &Scored) -> [usize; 3] {
    let found = result.predicted.iter().filter(|found| found.iou.is_some());
    let truths = result.truths.iter().filter(|truth| !truth.is_crowd);
    [found.count(), result.predicted.len(), truths.count()]
}
