//! NMS-AP of OVDEval (arXiv 2308.13177): COCO's AP after each truth keeps one prediction.
//!
//! AP does not punish a model that gives one object every label of a list. So for each truth only the
//! best-scored prediction that overlaps it by more than half stays, whatever its category.

use std::collections::HashMap;

use super::coco::{AveragePrecision, Detection, Truth, average_precision};

/// IoU above which a prediction belongs to a truth.
const OVERLAP: f64 = 0.5;

/// The detections that stay, in their order.
///
/// For each truth the best scored of the detections of its image with an IoU above 0.5, whatever
/// their category, stays; the others go unless another truth keeps them. Of equal scores the last
/// of the list is the best. Detections that overlap no truth stay.
pub fn suppress_by_truth(truths: &[Truth], detections: &[Detection]) -> Vec<Detection> {
    let mut of_image: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, detection) in detections.iter().enumerate() {
        of_image.entry(detection.image).or_default().push(index);
    }
    let mut overlaps = vec![false; detections.len()];
    let mut is_best = vec![false; detections.len()];
    for truth in truths {
        let mut best: Option<usize> = None;
        for &index in of_image.get(&truth.image).into_iter().flatten() {
            let detection = &detections[index];
            if detection.bbox.iou(&truth.bbox) > OVERLAP {
                overlaps[index] = true;
                if best.is_none_or(|best| detection.score >= detections[best].score) {
                    best = Some(index);
                }
            }
        }
        if let Some(best) = best {
            is_best[best] = true;
        }
    }
    detections
        .iter()
        .zip(overlaps.iter().zip(&is_best))
        .filter(|(_, (overlaps, is_best))| !**overlaps || **is_best)
        .map(|(detection, _)| *detection)
        .collect()
}

/// [`average_precision`] of the detections that [`suppress_by_truth`] leaves.
pub fn nms_average_precision(
    truths: &[Truth],
    detections: &[Detection],
) -> Option<AveragePrecision> {
    average_precision(truths, &suppress_by_truth(truths, detections))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::BoundingBox;

    fn found(category: u64, score: f64, corners: [f64; 4]) -> Detection {
        Detection { image: 0, category, bbox: BoundingBox::from(corners).into(), score }
    }

    #[test]
    fn one_object_under_every_label_keeps_its_best_label_only() {
        let a = [0.0, 0.0, 10.0, 10.0];
        let elsewhere = [80.0, 80.0, 90.0, 90.0];
        let truths =
            [Truth { image: 0, category: 1, bbox: BoundingBox::from(a).into(), is_crowd: false }];
        let detections = [
            found(1, 0.5, a),
            found(2, 0.9, a),
            found(1, 0.1, elsewhere),
            Detection { image: 1, ..found(3, 0.1, a) },
        ];
        assert_eq!(suppress_by_truth(&truths, &detections), detections[1..]);
        let ap = |detections: &[Detection]| {
            let plain = average_precision(&truths, detections).expect("a truth");
            let nms = nms_average_precision(&truths, detections).expect("a truth");
            [plain.ap50, nms.ap50].map(f64::round)
        };
        assert_eq!(ap(&detections), [1.0, 0.0]);
        // Equal scores: the last of the list is the best.
        assert_eq!(ap(&[found(2, 0.5, a), found(1, 0.5, a)]), [1.0, 1.0]);
        assert_eq!(ap(&[found(1, 0.5, a), found(2, 0.5, a)]), [1.0, 0.0]);
    }

    #[test]
    fn a_detection_that_another_truth_keeps_stays() {
        let truth = |corners: [f64; 4]| Truth {
            image: 0,
            category: 0,
            bbox: BoundingBox::from(corners).into(),
            is_crowd: false,
        };
        let truths = [truth([0.0, 0.0, 10.0, 10.0]), truth([0.0, 0.0, 10.0, 7.0])];
        // The first truth overlaps both and prefers the second, the other overlaps the first alone.
        let detections =
            [found(0, 0.2, [0.0, 0.0, 10.0, 6.0]), found(0, 0.9, [0.0, 3.0, 10.0, 10.0])];
        assert_eq!(suppress_by_truth(&truths, &detections), detections);
    }
}
