//! COCO's average precision for boxes: AP@[.50:.95] and AP50, area `all`, at most 100 detections of a
//! category in an image.
//!
//! The rule is that of pycocotools 2.0.11, its rounding and order of ties included;
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
        Self { x: b.x1, y: b.y1, width: b.x2 - b.x1, height: b.y2 - b.y1 }
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
    pub fn iou(&self, other: &Self) -> f64 {
        let intersection = self.intersection(other);
        if intersection == 0.0 {
            return 0.0;
        }
        intersection / (self.area() + other.area() - intersection)
    }

    fn intersection(&self, other: &Self) -> f64 {
        let width = (self.width + self.x).min(other.width + other.x) - self.x.max(other.x);
        let height = (self.height + self.y).min(other.height + other.y) - self.y.max(other.y);
        if width <= 0.0 || height <= 0.0 {
            return 0.0;
        }
        width * height
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
    /// Whether it stands for many objects: it need not be found, and what lies in it is no mistake.
    pub is_crowd: bool,
}

impl Truth {
    fn is_counted(&self) -> bool {
        !self.is_crowd && self.bbox.is_counted()
    }

    /// IoU with a detection; of a crowd, the share of the detection that lies in it.
    fn overlap(&self, found: &CocoBox) -> f64 {
        if self.is_crowd {
            self.bbox.intersection(found) / found.area()
        } else {
            found.iou(&self.bbox)
        }
    }
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
    MatchedImages::matching(truths, detections, on_match).average_precision(|_| 1)
}

/// Images whose detections are matched with their truths: the average precision of any choice of
/// the images follows without matching again.
#[derive(Clone, Debug)]
pub struct MatchedImages {
    categories: Vec<MatchedCategory>,
}

/// The images of one category.
#[derive(Clone, Debug)]
struct MatchedCategory {
    /// Images with truths that count, and how many.
    counted: Vec<(u64, usize)>,
    /// Image and outcome of each detection, best scored first.
    outcomes: Vec<(u64, Outcome)>,
}

impl MatchedImages {
    /// Matches the detections of each image with its truths.
    pub fn new(truths: &[Truth], detections: &[Detection]) -> Self {
        Self::matching(truths, detections, &mut |_, _| {})
    }

    fn matching(
        truths: &[Truth],
        detections: &[Detection],
        on_match: &mut impl FnMut(&Detection, &Truth),
    ) -> Self {
        let mut truths: Vec<&Truth> = truths.iter().collect();
        truths.sort_by_key(|truth| (truth.category, truth.image));
        let mut detections: Vec<&Detection> = detections.iter().collect();
        detections.sort_by_key(|detection| (detection.category, detection.image));
        let categories = truths.chunk_by(|a, b| a.category == b.category).filter_map(|truths| {
            let of_category = of_key(&detections, truths[0].category, |found| found.category);
            MatchedCategory::new(truths, of_category, on_match)
        });
        Self { categories: categories.collect() }
    }

    /// Average precision where each image stands in the set as often as `times` says; none where no
    /// truth counts.
    pub fn average_precision(&self, times: impl Fn(u64) -> usize) -> Option<AveragePrecision> {
        let mut sums = [0.0; NUM_THRESHOLDS];
        let mut num_categories = 0_usize;
        for category in &self.categories {
            if let Some(precisions) = category.precisions(&times) {
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
}

impl MatchedCategory {
    /// None where no truth counts.
    fn new(
        truths: &[&Truth],
        detections: &[&Detection],
        on_match: &mut impl FnMut(&Detection, &Truth),
    ) -> Option<Self> {
        let counted: Vec<(u64, usize)> = truths
            .chunk_by(|a, b| a.image == b.image)
            .map(|truths| {
                let counted = truths.iter().filter(|truth| truth.is_counted());
                (truths[0].image, counted.count())
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        if counted.is_empty() {
            return None;
        }
        let mut outcomes = Vec::with_capacity(detections.len());
        for detections in detections.chunk_by(|a, b| a.image == b.image) {
            let image = detections[0].image;
            let of_image = of_key(truths, image, |truth| truth.image);
            match_image(of_image, detections, on_match, |outcome| {
                outcomes.push((image, outcome));
            });
        }
        outcomes.sort_by(|(_, a), (_, b)| by_score(a.score, b.score));
        Some(Self { counted, outcomes })
    }

    /// Average precision at each threshold; none where no truth counts.
    fn precisions(&self, times: impl Fn(u64) -> usize) -> Option<[f64; NUM_THRESHOLDS]> {
        let counted = self.counted.iter();
        let counted: usize = counted.map(|(image, count)| times(*image) * count).sum();
        if counted == 0 {
            return None;
        }
        let outcomes: Vec<Outcome> = self
            .outcomes
            .iter()
            .flat_map(|(image, outcome)| std::iter::repeat_n(*outcome, times(*image)))
            .collect();
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
}

/// The part of a sorted list that has `key`.
fn of_key<'a, T>(sorted: &'a [&'a T], key: u64, key_of: impl Fn(&T) -> u64) -> &'a [&'a T] {
    let start = sorted.partition_point(|item| key_of(item) < key);
    let rest = &sorted[start..];
    &rest[..rest.partition_point(|item| key_of(item) == key)]
}

/// Highest first, NaN last.
fn by_score(a: f64, b: f64) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
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

/// Matches the detections of a category in an image with its truths, at each threshold, and tells of
/// each outcome.
///
/// Best scored first, each detection takes the free truth of highest IoU, the last of equals;
/// truths that do not count only where no other is left. A crowd stays free.
fn match_image(
    truths: &[&Truth],
    detections: &[&Detection],
    on_match: &mut impl FnMut(&Detection, &Truth),
    mut on_outcome: impl FnMut(Outcome),
) {
    let mut detections = detections.to_vec();
    detections.sort_by(|a, b| by_score(a.score, b.score));
    detections.truncate(MAX_DETECTIONS);
    let mut truths = truths.to_vec();
    truths.sort_by_key(|truth| !truth.is_counted());
    let counted = truths.partition_point(|truth| truth.is_counted());

    let mut taken = vec![0_u16; truths.len()];
    let mut overlaps = Vec::with_capacity(truths.len());
    for detection in detections {
        overlaps.clear();
        overlaps.extend(truths.iter().enumerate().filter_map(|(index, truth)| {
            let iou = truth.overlap(&detection.bbox);
            (iou >= THRESHOLDS[0]).then_some((index, iou))
        }));
        let mut outcome = Outcome { score: detection.score, ..Outcome::default() };
        for threshold in 0..NUM_THRESHOLDS {
            let bit = 1 << threshold;
            match best_free(&overlaps, &taken, threshold, counted) {
                Some(best) => {
                    if threshold == 0 {
                        on_match(detection, truths[best]);
                    }
                    if !truths[best].is_crowd {
                        taken[best] |= bit;
                    }
                    outcome.is_matched |= bit;
                    if best >= counted {
                        outcome.is_ignored |= bit;
                    }
                }
                None if !detection.bbox.is_counted() => outcome.is_ignored |= bit,
                None => {}
            }
        }
        on_outcome(outcome);
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
            while self.recalls.get(at).is_some_and(|&reached| reached < recall) {
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
        Truth { image: 0, category, bbox: boxed(corners), is_crowd: false }
    }

    fn found(category: u64, score: f64, corners: [f64; 4]) -> Detection {
        Detection { image: 0, category, bbox: boxed(corners), score }
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
        assert_eq!(average_precision(&[inverted, huge], &[found(0, 1.0, A)]), None);
        assert_eq!(average_precision(&[], &[found(0, 1.0, A)]), None);
        // A detection that no truth but an ignored one matches is ignored, too.
        let detections = [found(0, 1.0, [0.0, 0.0, 2e5, 2e5]), found(0, 1.0, A)];
        assert_near(aps(&[huge, truth(0, A)], &detections), [1.0; 2]);
        // A truth without area cannot be found, yet counts.
        assert_near(aps(&[truth(0, [5.0; 4])], &[found(0, 1.0, [5.0; 4])]), [0.0; 2]);
    }

    #[test]
    fn a_crowd_need_not_be_found_and_hides_mistakes() {
        let crowd = Truth { is_crowd: true, ..truth(0, [100.0, 0.0, 200.0, 100.0]) };
        let inside = |x: f64| found(0, 1.0, [x, 0.0, x + 20.0, 20.0]);
        // Two lie in the crowd and are ignored; a third lies half outside, ignored at 0.50 alone.
        let detections = [inside(100.0), inside(140.0), inside(190.0), found(0, 1.0, A)];
        assert_near(aps(&[truth(0, A), crowd], &detections), [0.55, 1.0]);
        // Without it they are three mistakes before the hit.
        assert_near(aps(&[truth(0, A)], &detections), [0.25; 2]);
        assert_eq!(average_precision(&[crowd], &detections), None);
    }

    #[test]
    fn images_may_stand_in_the_set_any_number_of_times() {
        let at = |image, bbox: [f64; 4]| Truth { image, ..truth(0, bbox) };
        let truths = [at(0, A), at(1, A), at(2, B)];
        let detections = [found(0, 1.0, A), Detection { image: 1, ..found(0, 1.0, NOWHERE) }];
        let matched = MatchedImages::new(&truths, &detections);
        let ap50 = |times: [usize; 3]| {
            let precision = matched.average_precision(|image| times[image as usize]);
            precision.map(|precision| (precision.ap50 * 101.0).round() as u32)
        };
        assert_eq!(ap50([3, 0, 0]), Some(101));
        // One of three truths found at once: precision 1 at the 34 recalls up to 1/3.
        assert_eq!(ap50([1, 1, 1]), Some(34));
        assert_eq!(ap50([1, 0, 2]), Some(34));
        assert_eq!(ap50([0, 0, 2]), Some(0));
        assert_eq!(ap50([0, 0, 0]), None);
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
