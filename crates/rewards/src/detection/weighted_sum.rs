//! The score of VLM-R1's `weighted_sum`: how well boxes fit, and how many are missing or too many.

use super::boxes_in_text::{Entry, TrueBox, first_block, true_boxes};
use super::lists::Lists;
use crate::answer::clean_text;
use crate::box_format::Conversions;
use crate::boxes::iou_vlm_r1;
use crate::explain::Notes;

/// IoU from which a prediction and a truth can be a pair.
const IOU_THRESHOLD: f64 = 0.5;

/// Weight of the fit, and of completeness.
const POSITION_WEIGHT: f64 = 0.7;
const COMPLETENESS_WEIGHT: f64 = 0.3;

/// An answer that names no boxes, cleaned.
const NONE: &str = "none";

/// [`super::weighted_sum`], with notes on what it is made of.
pub(super) fn score(
    completion: &str,
    solution: &str,
    units: Conversions,
    notes: &mut Notes<'_>,
) -> Result<f64, String> {
    let solution = clean_text(solution);
    let completion = clean_text(completion);
    if solution == NONE {
        notes.write(|why| {
            why.answer = Some(completion.clone());
            why.truth = Some(solution.clone());
            why.reason = match completion == NONE {
                true => format!("both say `{NONE}`"),
                false => format!("the solution says `{NONE}`"),
            };
        });
        return Ok(f64::from(completion == NONE));
    }
    // Cleaning twice is what VLM-R1 does: capital answer tags are found the second time.
    let (solution, completion) = (clean_text(&solution), clean_text(&completion));
    let (block, true_block) = (first_block(&completion), first_block(&solution));
    let lists = Lists::read(block, true_block, units, notes)?;
    Ok(lists.score(notes, |notes| compare(&lists, notes)))
}

/// Whether the solution can be read.
pub(super) fn check(solution: &str) -> Result<(), String> {
    let solution = clean_text(solution);
    if solution == NONE {
        return Ok(());
    }
    true_boxes(first_block(&clean_text(&solution))).map(drop)
}

struct Pair {
    iou: f64,
    prediction: usize,
    truth: usize,
}

fn compare(lists: &Lists<'_>, notes: &mut Notes<'_>) -> f64 {
    let (truths, predictions) = (&lists.truths, &lists.predictions);
    let mut is_found = vec![false; truths.len()];
    let mut is_used = vec![false; predictions.len()];
    let mut sum = 0.0;
    let (mut num_matches, mut num_mislabelled) = (0_usize, 0_usize);
    for pair in pairs(truths, predictions) {
        if is_found[pair.truth] || is_used[pair.prediction] {
            continue;
        }
        is_found[pair.truth] = true;
        is_used[pair.prediction] = true;
        num_matches += 1;
        lists.note_match(notes, pair.prediction, pair.truth, pair.iou);
        let predicted_label = predictions[pair.prediction].label.as_ref();
        let label = predicted_label.map(|label| label.lower()).unwrap_or_default();
        if label == truths[pair.truth].label.lower() {
            sum += pair.iou;
        } else {
            num_mislabelled += 1;
        }
    }
    let rate = |total: usize| (total - num_matches) as f64 / total as f64;
    let position = sum / truths.len() as f64;
    let completeness = 1.0 - (rate(truths.len()) + rate(predictions.len())) / 2.0;
    notes.reason(|| {
        format!(
            "0.7 x IoU {position:.3} + 0.3 x completeness {completeness:.3}; {}, {num_matches} matched, \
             {num_mislabelled} of them by another label",
            lists.counts()
        )
    });
    (POSITION_WEIGHT * position + COMPLETENESS_WEIGHT * completeness)
        / (POSITION_WEIGHT + COMPLETENESS_WEIGHT)
}

/// All pairs that can match, highest IoU first, then in the order of predictions and truths.
fn pairs(truths: &[TrueBox<'_>], predictions: &[Entry<'_>]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (prediction, entry) in predictions.iter().enumerate() {
        let Some(corners) = entry.corners else {
            continue;
        };
        for (truth, true_box) in truths.iter().enumerate() {
            let iou = iou_vlm_r1(corners, true_box.corners);
            if iou >= IOU_THRESHOLD && iou.is_finite() {
                pairs.push(Pair { iou, prediction, truth });
            }
        }
    }
    pairs.sort_by(|a, b| b.iou.total_cmp(&a.iou));
    pairs
}

#[cfg(test)]
mod tests {
    use crate::detection::weighted_sum;

    fn answer(boxes: &str) -> String {
        format!("<answer>```json\n[{boxes}]\n```</answer>")
    }

    fn scored(completion: &str, solution: &str) -> f64 {
        weighted_sum(&answer(completion), &answer(solution)).expect("a readable solution")
    }

    const A: &str = "{\"bbox_2d\": [0, 0, 10, 10], \"label\": \"Cat\"}";
    const B: &str = "{\"bbox_2d\": [50, 50, 60, 60], \"label\": \"dog\"}";

    #[test]
    fn by_hand() {
        assert_eq!(scored(A, A), 1.0);
        // One of two found, none false: 0.7 / 2 + 0.3 * (1 - 0.5 / 2).
        assert!((scored(A, &format!("{A}, {B}")) - 0.575).abs() < 1e-12);
        // IoU 80 / 100; one of two false: 0.7 * 0.8 + 0.3 * (1 - 0.5 / 2).
        let near = "{\"bbox_2d\": [0, 0, 10, 8], \"label\": \"cat\"}";
        assert!((scored(&format!("{B}, {near}"), A) - 0.785).abs() < 1e-12);
        // Another label keeps the match, without its IoU.
        let other = "{\"bbox_2d\": [0, 0, 10, 10], \"label\": \"cow\"}";
        assert!((scored(other, A) - 0.3).abs() < 1e-12);
        let bare = "{\"bbox_2d\": [0, 0, 10, 10]}";
        assert!((scored(bare, A) - 0.3).abs() < 1e-12);
        assert_eq!(scored("7", A), 0.0);
    }

    #[test]
    fn the_best_pair_is_matched_first() {
        // IoU 0.8 with the truth comes first in the list, IoU 1 is matched: 0.7 + 0.3 * 0.75.
        let near = "{\"bbox_2d\": [0, 0, 10, 8], \"label\": \"cat\"}";
        assert!((scored(&format!("{near}, {A}"), A) - 0.925).abs() < 1e-12);
    }

    #[test]
    fn nothing_equals_nothing() {
        assert_eq!(weighted_sum("None.", "<answer> None </answer>"), Ok(1.0));
        assert_eq!(weighted_sum("no", "<answer> None </answer>"), Ok(0.0));
        assert_eq!(weighted_sum("```json\n[]\n```", "nothing"), Ok(1.0));
        assert_eq!(weighted_sum(&answer(A), "nothing"), Ok(0.0));
        assert_eq!(weighted_sum("nothing", &answer(A)), Ok(0.0));
    }
}
