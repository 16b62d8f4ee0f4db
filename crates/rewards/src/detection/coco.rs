//! COCO's average precision for boxes: AP@[.50:.95] and AP50, area `all`, at most 100 detections of a
//! category in an image.
//!
//! The rule is that of pycocotools 2.0.11 without crowds, its rounding and order of ties included;
//! `golden/rewards/detection_coco.jsonl` holds its numbers.

use crate::boxes::BoundingBox;

const NUM_THRESHOLDS: usize = 10;

/// IoU thresholds: 0.50, 0.55, ..., 0.95.
const THRESHOLDS: [f64; NUM_THRESHOLDS] = linspace(0.5, 0.95);

/// Recalls at which precision is read: 0, 0.01, ..., 1.
const RECALLS: [f64; 101] = linspace(0.0, 1.0);

/// Detections of one category in one image that count.
const MAX_DETECTIONS: usize = 100;

/// Largest area that counts, px^2: beyond it, and below 0, truths and unmatched detections are
/// ignored.
const MAX_AREA: f64 = 1e10;

/// A box as COCO has it, px: its right edge is `x + width`, rounding included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CocoBox {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

impl From<BoundingBox> for CocoBox {
    fn from(b: BoundingBox) -> Self {
        Self {
            x: b.x1,
            y: b.y1,
            width: b.x2 - b.x1,
            height: b.y2 - b.y1,
        }
    }
}

impl CocoBox {
    /// Width times height, px^2; negative where one side is.
    pub fn area(&self) -> f64 {
        self.width * self.height
    }

    /// Whether the area lies in COCO's range `all`.
    pub(crate) fn is_counted(&self) -> bool {
        // Not `contains`: an area that is no number counts.
        !(self.area() < 0.0 || self.area() > MAX_AREA)
    }

    /// Intersection over union, 0 where the boxes do not overlap.
    pub(crate) fn iou(&self, other: &Self) -> f64 {
        let width = (self.width + self.x).min(other.width + other.x) - self.x.max(other.x);
        let height = (self.height + self.y).min(other.height + other.y) - self.y.max(other.y);
        if width <= 0.0 || height <= 0.0 {
            return 0.0;
        }
        let intersection = width * height;
        intersection / (self.area() + other.area() - intersection)
    }
}

/// A true box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truth {
    /// Its image. Detections of equal score rank in the order of their images.
    pub image: u64,
    /// Its category.
    pub category: u64,
    /// Where it is.
    pub bbox: CocoBox,
}

/// A detected box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Its image.
    pub image: u64,
    /// Its category.
    pub category: u64,
    /// Where it is.
    pub bbox: CocoBox,
    /// Confidence, any unit. Equal ones rank in the order of the list; NaN ranks last.
    pub score: f64,
}

/// Average precision, each in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AveragePrecision {
    /// Mean over the IoU thresholds 0.50, 0.55, ..., 0.95.
    pub ap: f64,
    /// At the IoU threshold 0.50.
    pub ap50: f64,
    /// Categories that the mean is over: those with a truth that counts.
    pub num_categories: usize,
}

/// Average precision over all images and all categories of the truths.
///
/// Detections of other categories are dropped, as in COCO. None where no truth counts (each has an
/// area below 0 or above 1e10 px^2), where pycocotools answers -1.
pub fn average_precision(truths: &[Truth], detections: &[Detection]) -> Option<AveragePrecision> {
    average_precision_of_matches(truths, detections, &mut |_, _| {})
}

/// [`average_precision`], which tells `on_match` of each pair that it matches at an IoU of 0.50.
pub(super) fn average_precision_of_matches(
    truths: &[Truth],
    detections: &[Detection],
    on_match: &mut impl FnMut(&Detection, &Truth),
) -> Option<AveragePrecision> {
    let mut truths: Vec<&Truth> = truths.iter().collect();
    truths.sort_by_key(|truth| (truth.category, truth.image));
    let mut detections: Vec<&Detection> = detections.iter().collect();
    detections.sort_by_key(|detection| (detection.category, detection.image));

    let mut sums = [0.0; NUM_THRESHOLDS];
    let mut num_categories = 0_usize;
    for truths in truths.chunk_by(|a, b| a.category == b.category) {
        let of_category = of_key(&detections, truths[0].category, |found| found.category);
        if let Some(precisions) = category_precisions(truths, of_category, on_match) {
            num_categories += 1;
            for (sum, precision) in sums.iter_mut().zip(precisions) {
                *sum += precision;
            }
        }
    }
    let categories = num_categories as f64;
    (num_categories > 0).then(|| AveragePrecision {
        ap: sums.iter().sum::<f64>() / (categories * NUM_THRESHOLDS as f64),
        ap50: sums[0] / categories,
        num_categories,
    })
}

/// The part of a sorted list that has `key`.
fn of_key<'a, T>(sorted: &'a [&'a T], key: u64, key_of: impl Fn(&T) -> u64) -> &'a [&'a T] {
    let start = sorted.partition_point(|item| key_of(item) < key);
    let rest = &sorted[start..];
    &rest[..rest.partition_point(|item| key_of(item) == key)]
}

/// Average precision of one category at each threshold; none where no truth counts.
fn category_precisions(
    truths: &[&Truth],
    detections: &[&Detection],
    on_match: &mut impl FnMut(&Detection, &Truth),
) -> Option<[f64; NUM_THRESHOLDS]> {
    let counted = truths.iter().filter(|t| t.bbox.is_counted()).count();
    if counted == 0 {
        return None;
    }
    let mut outcomes = Vec::with_capacity(detections.len().min(MAX_DETECTIONS));
    for detections in detections.chunk_by(|a, b| a.image == b.image) {
        let of_image = of_key(truths, detections[0].image, |truth| truth.image);
        match_image(of_image, detections, &mut outcomes, on_match);
    }
    outcomes.sort_by(|a, b| by_score(a.score, b.score));
    let mut curve = Curve::default();
    let mut precisions = [0.0; NUM_THRESHOLDS];
    for threshold in 0..NUM_THRESHOLDS {
        precisions[threshold] = if threshold > 0 && is_as_before(&outcomes, threshold) {
            precisions[threshold - 1]
        } else {
            curve.mean_precision(&outcomes, threshold, counted)
        };
    }
    Some(precisions)
}

/// Highest first, NaN last.
fn by_score(a: f64, b: f64) -> std::cmp::Ordering {
    b.partial_cmp(&a)
        .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// What became of a detection, one bit for each threshold.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    score: f64,
    is_matched: u16,
    is_ignored: u16,
}

/// Whether all outcomes are those of the threshold before, as often where boxes fit well.
fn is_as_before(outcomes: &[Outcome], threshold: usize) -> bool {
    let is_same = |bits: u16| (bits ^ bits << 1) >> threshold & 1 == 0;
    let mut outcomes = outcomes.iter();
    outcomes.all(|outcome| is_same(outcome.is_matched) && is_same(outcome.is_ignored))
}

/// `numpy.linspace(start, stop, N)`, rounding included.
const fn linspace<const N: usize>(start: f64, stop: f64) -> [f64; N] {
    let mut values = [stop; N];
    let mut index = 0;
    while index + 1 < N {
        values[index] = index as f64 * ((stop - start) / (N - 1) as f64) + start;
        index += 1;
    }
    values
}

/// Matches the detections of a category in an image with its truths, at each threshold.
///
/// Best scored first, each detection takes the free truth of highest IoU, the last of equals;
/// truths that do not count only where no other is left.
fn match_image(
    truths: &[&Truth],
    detections: &[&Detection],
    outcomes: &mut Vec<Outcome>,
    on_match: &mut impl FnMut(&Detection, &Truth),
) {
    let mut detections = detections.to_vec();
    detections.sort_by(|a, b| by_score(a.score, b.score));
    detections.truncate(MAX_DETECTIONS);
    let mut truths = truths.to_vec();
    truths.sort_by_key(|truth| !truth.bbox.is_counted());
    let counted = truths.partition_point(|truth| truth.bbox.is_counted());

    let mut taken = vec![0_u16; truths.len()];
    let mut overlaps = Vec::with_capacity(truths.len());
    for detection in detections {
        overlaps.clear();
        overlaps.extend(truths.iter().enumerate().filter_map(|(index, truth)| {
            let iou = detection.bbox.iou(&truth.bbox);
            (iou >= THRESHOLDS[0]).then_some((index, iou))
        }));
        let mut outcome = Outcome {
            score: detection.score,
            ..Outcome::default()
        };
        for threshold in 0..NUM_THRESHOLDS {
            let bit = 1 << threshold;
            match best_free(&overlaps, &taken, threshold, counted) {
                Some(best) => {
                    if threshold == 0 {
                        on_match(detection, truths[best]);
                    }
                    taken[best] |= bit;
                    outcome.is_matched |= bit;
                    if best >= counted {
                        outcome.is_ignored |= bit;
                    }
                }
                None if !detection.bbox.is_counted() => outcome.is_ignored |= bit,
                None => {}
            }
        }
        outcomes.push(outcome);
    }
}

/// The free truth of highest IoU at or above the threshold, the last of equals; one of the first
/// `counted` before any other.
fn best_free(
    overlaps: &[(usize, f64)],
    taken: &[u16],
    threshold: usize,
    counted: usize,
) -> Option<usize> {
    let mut highest = THRESHOLDS[threshold];
    let mut best = None;
    for &(truth, iou) in overlaps {
        if taken[truth] >> threshold & 1 == 1 {
            continue;
        }
        if best.is_some_and(|best| best < counted) && truth >= counted {
            break;
        }
        if iou >= highest {
            highest = iou;
            best = Some(truth);
        }
    }
    best
}

/// Precision over recall; kept between thresholds for its memory.
#[derive(Default)]
struct Curve {
    recalls: Vec<f64>,
    precisions: Vec<f64>,
}

impl Curve {
    /// Mean over the recalls of the highest precision at that recall or a higher one.
    fn mean_precision(&mut self, outcomes: &[Outcome], threshold: usize, counted: usize) -> f64 {
        self.recalls.clear();
        self.precisions.clear();
        let (mut hits, mut all) = (0.0, 0.0);
        for outcome in outcomes {
            if outcome.is_ignored >> threshold & 1 == 0 {
                all += 1.0;
                hits += f64::from(outcome.is_matched >> threshold & 1);
            }
            self.recalls.push(hits / counted as f64);
            self.precisions.push(hits / (all + f64::EPSILON));
        }
        for index in (1..self.precisions.len()).rev() {
            self.precisions[index - 1] = self.precisions[index - 1].max(self.precisions[index]);
        }
        let mut at = 0;
        let mut sum = 0.0;
        for recall in RECALLS {
            while self
                .recalls
                .get(at)
                .is_some_and(|&reached| reached < recall)
            {
                at += 1;
            }
            let Some(precision) = self.precisions.get(at) else {
                break;
            };
            sum += precision;
        }
        sum / RECALLS.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(corners: [f64; 4]) -> CocoBox {
        BoundingBox::from(corners).into()
    }

    fn truth(category: u64, corners: [f64; 4]) -> Truth {
        Truth {
            image: 0,
            category,
            bbox: boxed(corners),
        }
    }

    fn found(category: u64, score: f64, corners: [f64; 4]) -> Detection {
        Detection {
            image: 0,
            category,
            bbox: boxed(corners),
            score,
        }
    }

    const A: [f64; 4] = [0.0, 0.0, 10.0, 10.0];
    const B: [f64; 4] = [50.0, 50.0, 70.0, 70.0];
    const NOWHERE: [f64; 4] = [200.0, 200.0, 210.0, 210.0];

    fn aps(truths: &[Truth], detections: &[Detection]) -> [f64; 2] {
        let precision = average_precision(truths, detections).expect("truths that count");
        [precision.ap, precision.ap50]
    }

    fn assert_near(got: [f64; 2], expected: [f64; 2]) {
        let near = got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near, "{got:?}, expected {expected:?}");
    }

    #[test]
    fn ap_by_hand() {
        let truths = [truth(0, A), truth(0, B)];
        // Half of the truths found, nothing false: precision 1 at the 51 recalls up to 0.5.
        assert_near(aps(&truths, &[found(0, 1.0, A)]), [51.0 / 101.0; 2]);
        // The same after a false one: precision 1/2.
        let detections = [found(0, 0.9, NOWHERE), found(0, 0.5, A)];
        assert_near(aps(&truths, &detections), [51.0 / 202.0; 2]);
        // After all truths are found, false ones cost nothing.
        let detections = [found(0, 1.0, A), found(0, 1.0, B), found(0, 1.0, NOWHERE)];
        assert_near(aps(&truths, &detections), [1.0; 2]);
        // IoU 0.7: found at 0.50, 0.55, 0.60, 0.65 and 0.70, where the threshold rounds to 0.7.
        let detections = [found(0, 1.0, [0.0, 0.0, 10.0, 7.0])];
        assert_near(aps(&[truth(0, A)], &detections), [0.5, 1.0]);
        assert_near(aps(&truths, &[]), [0.0; 2]);
    }

    #[test]
    fn categories_are_means_and_others_are_dropped() {
        let truths = [truth(3, A), truth(7, B)];
        let detections = [found(3, 1.0, A), found(5, 1.0, B)];
        assert_near(aps(&truths, &detections), [0.5; 2]);
        let precision = average_precision(&truths, &detections).expect("truths that count");
        assert_eq!(precision.num_categories, 2);
    }

    #[test]
    fn truths_outside_the_range_do_not_count() {
        let inverted = truth(0, [10.0, 0.0, 0.0, 10.0]);
        let huge = truth(0, [0.0, 0.0, 2e5, 2e5]);
        assert_eq!(
            average_precision(&[inverted, huge], &[found(0, 1.0, A)]),
            None
        );
        assert_eq!(average_precision(&[], &[found(0, 1.0, A)]), None);
        // A detection that no truth but an ignored one matches is ignored, too.
        let detections = [found(0, 1.0, [0.0, 0.0, 2e5, 2e5]), found(0, 1.0, A)];
        assert_near(aps(&[huge, truth(0, A)], &detections), [1.0; 2]);
        // A truth without area cannot be found, yet counts.
        assert_near(
            aps(&[truth(0, [5.0; 4])], &[found(0, 1.0, [5.0; 4])]),
            [0.0; 2],
        );
    }

    #[test]
    fn only_a_hundred_detections_of_an_image_count() {
        let mut detections = vec![found(0, 1.0, NOWHERE); 100];
        detections.push(found(0, 1.0, A));
        assert_near(aps(&[truth(0, A)], &detections), [0.0; 2]);
        detections[100].score = 2.0;
        assert_near(aps(&[truth(0, A)], &detections), [1.0; 2]);
    }

    #[test]
    fn scores_that_are_no_numbers_rank_last() {
        let detections = [found(0, f64::NAN, NOWHERE), found(0, -1.0, A)];
        assert_near(aps(&[truth(0, A)], &detections), [1.0; 2]);
    }
}
