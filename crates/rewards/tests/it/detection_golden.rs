//! COCO AP equals pycocotools.

use std::path::PathBuf;

use rewards::BoundingBox;
use rewards::detection::coco::{CocoBox, Detection, Truth, average_precision};
use rewards::detection::nms_average_precision;
use serde::Deserialize;

const TOLERANCE: f64 = 1e-9;

/// The committed cases, or those of a larger run of `tools/golden/detection.py`.
fn folder() -> PathBuf {
    std::env::var_os("VLM_R1_DETECTION_CASES")
        .map_or_else(|| testing::golden("rewards"), PathBuf::from)
}

#[derive(Debug, Deserialize)]
struct CocoCase {
    truths: Vec<(u64, u64, f64, f64, f64, f64)>,
    detections: Vec<(u64, u64, f64, f64, f64, f64, f64)>,
    ap: Option<[f64; 2]>,
    nms_ap: Option<[f64; 2]>,
}

fn coco_box(x: f64, y: f64, width: f64, height: f64) -> CocoBox {
    CocoBox { x, y, width, height }
}

#[test]
fn average_precision_equals_pycocotools() {
    let mut worst: f64 = 0.0;
    for case in testing::cases::<CocoCase>(folder().join("detection_coco.jsonl"), 300) {
        let truths: Vec<Truth> = case
            .truths
            .iter()
            .map(|&(image, category, x, y, width, height)| Truth {
                image,
                category,
                bbox: coco_box(x, y, width, height),
                is_crowd: false,
            })
            .collect();
        let detections: Vec<Detection> = case
            .detections
            .iter()
            .map(|&(image, category, x, y, width, height, score)| Detection {
                image,
                category,
                bbox: coco_box(x, y, width, height),
                score,
            })
            .collect();
        let plain = average_precision(&truths, &detections);
        let suppressed = nms_average_precision(&truths, &detections);
        for (got, expected) in [(plain, case.ap), (suppressed, case.nms_ap)] {
            let got = got.map(|precision| [precision.ap, precision.ap50]);
            let pairs = got.iter().flatten().zip(expected.iter().flatten());
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(
                got.is_some() == expected.is_some() && difference <= TOLERANCE,
                "{got:?}, expected {expected:?}: {case:#?}"
            );
            worst = worst.max(difference);
        }
    }
    println!("largest difference: {worst:e}");
}

#[test]
fn boxes_by_corners_and_by_size_are_the_same() {
    let corners = BoundingBox::from([1.5, 2.0, 11.5, 7.0]);
    assert_eq!(CocoBox::from(corners), coco_box(1.5, 2.0, 10.0, 5.0));
}
