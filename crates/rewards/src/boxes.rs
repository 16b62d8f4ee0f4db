//! Bounding boxes: the two IoUs of VLM-R1, and finding boxes in answers.

use std::sync::LazyLock;

use python::text::{SPACES, ascii_digit, strip};
use regex::{Captures, Regex};

use crate::answer::{first_answer, last_answer};

/// A box by its corners, px unless said otherwise: `[x1, y1, x2, y2]`, right and bottom edge excluded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundingBox {
    /// Left edge.
    pub x1: f64,
    /// Top edge.
    pub y1: f64,
    /// Right edge.
    pub x2: f64,
    /// Bottom edge.
    pub y2: f64,
}

impl From<[f64; 4]> for BoundingBox {
    fn from([x1, y1, x2, y2]: [f64; 4]) -> Self {
        Self { x1, y1, x2, y2 }
    }
}

impl From<BoundingBox> for [f64; 4] {
    fn from(b: BoundingBox) -> Self {
        [b.x1, b.y1, b.x2, b.y2]
    }
}

impl BoundingBox {
    /// Width times height, px^2; negative where one side is.
    pub fn area(&self) -> f64 {
        (self.x2 - self.x1) * (self.y2 - self.y1)
    }
}

/// Width and height that the model sees, px, from patches in time, height, width.
///
/// None where a side does not fit 32 bits.
pub fn input_size(grid_thw: [usize; 3], patch_size: usize) -> Option<[u32; 2]> {
    let [_, height, width] = grid_thw;
    let side = |patches: usize| u32::try_from(patches.checked_mul(patch_size)?).ok();
    Some([side(width)?, side(height)?])
}

/// Intersection over union as VLM-R1 counts it, in [0, 1] up to rounding.
///
/// The intersection ends at `min(x2) - 1` and one is added to its size, so that an overlap of one
/// pixel or less counts as none; areas go without the one. 0 where the union is empty.
pub fn iou_vlm_r1(a: BoundingBox, b: BoundingBox) -> f64 {
    let x1 = a.x1.max(b.x1);
    let y1 = a.y1.max(b.y1);
    let x2 = (a.x2 - 1.0).min(b.x2 - 1.0);
    let y2 = (a.y2 - 1.0).min(b.y2 - 1.0);
    let intersection = if x1 < x2 && y1 < y2 { (x2 - x1 + 1.0) * (y2 - y1 + 1.0) } else { 0.0 };
    over_union(intersection, a, b)
}

/// Intersection over union, in [0, 1] up to rounding; 0 where the union is empty.
pub fn iou_plain(a: BoundingBox, b: BoundingBox) -> f64 {
    let x1 = a.x1.max(b.x1);
    let y1 = a.y1.max(b.y1);
    let x2 = a.x2.min(b.x2);
    let y2 = a.y2.min(b.y2);
    let intersection = if x1 < x2 && y1 < y2 { (x2 - x1) * (y2 - y1) } else { 0.0 };
    over_union(intersection, a, b)
}

fn over_union(intersection: f64, a: BoundingBox, b: BoundingBox) -> f64 {
    // A prediction with swapped corners meets nothing, and its area may cancel the other's.
    if intersection == 0.0 {
        return 0.0;
    }
    intersection / (a.area() + b.area() - intersection)
}

fn pattern(template: &str) -> Regex {
    Regex::new(&template.replace("SPACES", SPACES)).expect("the pattern is valid")
}

static INTEGERS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\[(\d+),SPACES(\d+),SPACES(\d+),SPACES(\d+)\]"));

static LAST_IN_BRACES: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?s)\{.*\[(\d+),SPACES(\d+),SPACES(\d+),SPACES(\d+)\].*\}"));

static NUMBERS: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"(SPACES-?\d*\.?\d+SPACES)";
    pattern(&format!(r"\[{number},SPACES{number},SPACES{number},SPACES{number}\]"))
});

/// The box that VLM-R1's REC reward reads: in the first answer, the first `[int, int, int, int]`.
pub fn find_in_answer(completion: &str) -> Option<BoundingBox> {
    INTEGERS.captures(first_answer(completion)?).and_then(|captures| from_captures(&captures))
}

/// The same of decimals: in the first answer, the first bracket of four numbers.
pub fn find_decimals_in_answer(completion: &str) -> Option<BoundingBox> {
    find_baseline(first_answer(completion)?)
}

/// The box that VLM-R1's evaluation of thinking models reads: in the first answer, the last
/// `[int, int, int, int]` between the first `{` and the last `}`.
pub fn find_thinking(completion: &str) -> Option<BoundingBox> {
    LAST_IN_BRACES.captures(first_answer(completion)?).and_then(|captures| from_captures(&captures))
}

/// The box that VLM-R1's evaluation of baselines reads: the first bracket of four numbers
/// anywhere, floats and signs allowed.
pub fn find_baseline(completion: &str) -> Option<BoundingBox> {
    NUMBERS.captures(completion).and_then(|captures| from_captures(&captures))
}

/// The true box of a REC row: the last answer (the whole text where no tag is) as a JSON list.
///
/// # Errors
/// Says what is wrong where it is no list of four finite numbers.
pub fn parse_solution(solution: &str) -> Result<BoundingBox, String> {
    let numbers: Vec<f64> = serde_json::from_str(solution_text(solution))
        .map_err(|_| "not a list of numbers".to_owned())?;
    let [x1, y1, x2, y2] = numbers[..] else {
        return Err(format!("a list of {}", numbers.len()));
    };
    Ok(BoundingBox { x1, y1, x2, y2 })
}

/// The part of a REC solution that holds the box.
pub(crate) fn solution_text(solution: &str) -> &str {
    strip(last_answer(solution).unwrap_or(solution))
}

/// None where a number is too large for an `f64`: no such box can overlap a real one.
fn from_captures(captures: &Captures<'_>) -> Option<BoundingBox> {
    let mut corners = [0.0; 4];
    for (corner, number) in corners.iter_mut().zip(captures.iter().skip(1).flatten()) {
        let text: String = strip(number.as_str()).chars().map(ascii_digit).collect();
        *corner = text.parse().ok().filter(|x: &f64| x.is_finite())?;
    }
    Some(corners.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(corners: [f64; 4]) -> BoundingBox {
        corners.into()
    }

    #[test]
    fn iou_by_hand() {
        let a = boxed([0.0, 0.0, 10.0, 10.0]);
        // Overlap 5 x 5 = 25; union 100 + 100 - 25 = 175.
        let b = boxed([5.0, 5.0, 15.0, 15.0]);
        assert_eq!(iou_vlm_r1(a, b), 25.0 / 175.0);
        assert_eq!(iou_plain(a, b), 25.0 / 175.0);
        assert_eq!(iou_vlm_r1(a, a), 1.0);
        assert_eq!(iou_plain(a, a), 1.0);
    }

    #[test]
    fn one_pixel_of_overlap_counts_in_the_plain_iou_only() {
        let a = boxed([0.0, 0.0, 10.0, 10.0]);
        let one = boxed([9.0, 0.0, 19.0, 10.0]);
        assert_eq!(iou_vlm_r1(a, one), 0.0);
        assert_eq!(iou_plain(a, one), 10.0 / 190.0);
        let two = boxed([8.0, 0.0, 18.0, 10.0]);
        assert_eq!(iou_vlm_r1(a, two), 20.0 / 180.0);
    }

    #[test]
    fn swapped_and_empty_boxes_earn_nothing() {
        let a = boxed([0.0, 0.0, 10.0, 10.0]);
        // Its area is -100: the union would be 0.
        for b in [[10.0, 0.0, 0.0, 10.0], [3.0; 4], [0.0; 4]] {
            for iou in [iou_vlm_r1, iou_plain] {
                let value = iou(a, boxed(b));
                assert!(value == 0.0 && value.is_sign_positive(), "{b:?}: {value}");
            }
        }
        assert_eq!(iou_vlm_r1(boxed([0.0; 4]), boxed([0.0; 4])), 0.0);
    }

    #[test]
    fn the_model_sees_whole_patches() {
        let seen = input_size([1, 4, 8], 14);
        assert_eq!(seen, Some([112, 56]));
        assert_eq!(input_size([1, usize::MAX, 8], 14), None);
    }

    #[test]
    fn the_reward_takes_the_first_box_and_evaluation_the_last_in_braces() {
        let text = "[9, 9, 9, 9] <answer>[0, 0, 0, 0] {\"a\": [1, 2,\n3, 4], \"b\": [5,6,7,8]} [1, 1, 1, 1]</answer>";
        assert_eq!(find_in_answer(text), Some(boxed([0.0; 4])));
        assert_eq!(find_thinking(text), Some(boxed([5.0, 6.0, 7.0, 8.0])));
        assert_eq!(find_baseline(text), Some(boxed([9.0; 4])));
    }

    #[test]
    fn only_the_baseline_reads_floats_signs_and_loose_spaces() {
        let text = "<answer>{[ -1.5 , .5, 3 ,4.25 ]}</answer>";
        assert_eq!(find_in_answer(text), None);
        assert_eq!(find_thinking(text), None);
        assert_eq!(find_baseline(text), Some(boxed([-1.5, 0.5, 3.0, 4.25])));
        assert_eq!(find_baseline("[1., 2, 3, 4]"), None);
    }

    #[test]
    fn digits_of_other_scripts_and_control_spaces_read_as_in_python() {
        let text = "<answer>{[٢,\u{1d}०, 𝟗𝟠, １０]}</answer>";
        let expected = Some(boxed([2.0, 0.0, 98.0, 10.0]));
        assert_eq!(find_in_answer(text), expected);
        assert_eq!(find_thinking(text), expected);
        assert_eq!(find_baseline(text), expected);
    }

    #[test]
    fn a_number_beyond_f64_is_no_box() {
        let text = format!("<answer>{{[0, 0, {}, 5]}}</answer>", "9".repeat(400));
        assert_eq!(find_in_answer(&text), None);
        assert_eq!(find_thinking(&text), None);
        assert_eq!(find_baseline(&text), None);
    }

    #[test]
    fn solutions_are_lists_of_four_numbers() {
        let expected = Ok(boxed([1.0, 2.0, 3.5, 4.0]));
        assert_eq!(parse_solution("<answer> [1, 2, 3.5, 4] </answer>"), expected);
        assert_eq!(parse_solution("[1, 2, 3.5, 4]"), expected);
        assert_eq!(parse_solution("[1, 2, 3]"), Err("a list of 3".to_owned()));
        for bad in ["", "a box", "{\"bbox\": [1, 2, 3, 4]}", "[1, 2, 3, \"4\"]", "[1, 2, 3, NaN]"] {
            assert!(parse_solution(bad).is_err(), "{bad}");
        }
    }
}
