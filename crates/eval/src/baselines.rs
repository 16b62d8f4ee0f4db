//! Baselines: the scores of a model that ignores the image, or looks at the wrong one.

use base::Example;
use rewards::boxes::{BoundingBox, iou_vlm_r1, parse_solution};

use crate::EvalError;

/// Most distinct coordinates of one axis that are tried as edges of a constant box.
const MAX_EDGES: usize = 32;

/// The true boxes of REC rows, px of the image files.
///
/// # Errors
/// A row whose solution is no box.
pub fn true_boxes(examples: &[Example]) -> Result<Vec<BoundingBox>, EvalError> {
    examples
        .iter()
        .map(|example| {
            parse_solution(&example.solution)
                .map_err(|cause| EvalError::Row { line: example.source.to_string(), cause })
        })
        .collect()
}

/// The one box that, answered to every question, has the highest mean IoU with `truths`; edges are
/// tried among those of the truths, at most 32 evenly chosen ones an axis. `None` without truths.
pub fn best_constant_box(truths: &[BoundingBox]) -> Option<BoundingBox> {
    let xs = edges(truths.iter().flat_map(|b| [b.x1, b.x2]));
    let ys = edges(truths.iter().flat_map(|b| [b.y1, b.y2]));
    let mut best: Option<(f64, BoundingBox)> = None;
    for (x1, x2) in pairs(&xs) {
        for (y1, y2) in pairs(&ys) {
            let candidate = BoundingBox { x1, y1, x2, y2 };
            let total: f64 = constant_box_ious(candidate, truths).iter().sum();
            if best.is_none_or(|(most, _)| total > most) {
                best = Some((total, candidate));
            }
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// IoU of one box with each of `truths`, by VLM-R1's rule.
pub fn constant_box_ious(constant: BoundingBox, truths: &[BoundingBox]) -> Vec<f64> {
    truths.iter().map(|&truth| iou_vlm_r1(constant, truth)).collect()
}

/// The rows with each other's images: row `i` gets those of row `i + n / 2`, questions and truths
/// stay. A score on these rows does not come from seeing the image.
pub fn shuffled_images(examples: &[Example]) -> Vec<Example> {
    let half = examples.len() / 2;
    let donors = examples.iter().cycle().skip(half);
    examples
        .iter()
        .zip(donors)
        .map(|(example, donor)| {
            let mut example = example.clone();
            example.images.clone_from(&donor.images);
            // The name in results is that of the image shown.
            if let Some(name) = donor.columns.get("image") {
                example.columns.insert("image".to_owned(), name.clone());
            }
            example
        })
        .collect()
}

fn edges(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    let count = all.len();
    if count <= MAX_EDGES {
        return all;
    }
    (0..MAX_EDGES).map(|i| all[i * (count - 1) / (MAX_EDGES - 1)]).collect()
}

fn pairs(edges: &[f64]) -> impl Iterator<Item = (f64, f64)> + '_ {
    edges
        .iter()
        .enumerate()
        .flat_map(|(i, &low)| edges[i + 1..].iter().map(move |&high| (low, high)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_constant_box_by_hand() {
        let truths = [[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 16.0]]
            .map(BoundingBox::from);
        // IoUs of the middle box: 64/128, 1, 128/256; of the large one: 1/4, 1/2, 1; of the small: 1, 1/2, 1/4.
        let best = best_constant_box(&truths).unwrap();
        assert_eq!(best, truths[1]);
        assert_eq!(constant_box_ious(best, &truths), [0.5, 1.0, 0.5]);
        assert_eq!(best_constant_box(&[]), None);
    }

    #[test]
    fn many_edges_are_thinned_evenly() {
        let thinned = edges((0..1000).map(f64::from));
        assert_eq!((thinned.len(), thinned[0], thinned[31]), (32, 0.0, 999.0));
        assert!(thinned.windows(2).all(|w| w[1] - w[0] >= 32.0));
    }
}
