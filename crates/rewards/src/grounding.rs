//! Grounding rewards beyond VLM-R1's: one true box, and a completion that gives a box, a point or a
//! click.
//!
//! | reward | of the first answer | score |
//! |---|---|---|
//! | `giou` | the first `[x1, y1, x2, y2]` | generalised IoU (arXiv 1902.09630), in `(-1, 1]` |
//! | `diou` | the same | IoU less the distance of the centres (arXiv 1911.08287), in `(-1, 1]` |
//! | `point_in_box` | the first `[x, y]` or `(x, y)`; of four numbers the centre | 1 inside the box, else 0 |
//! | `click` | the first two numbers after the word `click` | 1 inside the box, else 0 |
//!
//! Without a box, or with swapped corners, `giou` and `diou` are -1, so that no answer never beats a bad
//! one. Units are those of the family's REC rewards, or what [`BoxUnits`](crate::BoxUnits) says.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::answer::first_answer;
use crate::boxes::{BoundingBox, iou_plain};

/// Whether a point lies in a box, its right and bottom edge excluded; px.
pub fn contains(b: BoundingBox, [x, y]: [f64; 2]) -> bool {
    b.x1 <= x && x < b.x2 && b.y1 <= y && y < b.y2
}

/// The smallest box around both.
fn enclosing(a: BoundingBox, b: BoundingBox) -> BoundingBox {
    BoundingBox { x1: a.x1.min(b.x1), y1: a.y1.min(b.y1), x2: a.x2.max(b.x2), y2: a.y2.max(b.y2) }
}

fn is_inverted(b: BoundingBox) -> bool {
    b.x2 < b.x1 || b.y2 < b.y1
}

/// Generalised IoU of a box with a true one that has an area, in `[-1, 1]` up to rounding:
/// IoU - (enclosing area - union) / enclosing area. -1 where the corners of `found` are swapped.
pub fn giou(found: BoundingBox, truth: BoundingBox) -> f64 {
    let around = enclosing(found, truth).area();
    if is_inverted(found) || !around.is_finite() {
        return -1.0;
    }
    let iou = iou_plain(found, truth);
    // intersection = IoU * union and union = both areas - intersection
    let union = (found.area() + truth.area()) / (1.0 + iou);
    iou - (around - union) / around
}

/// Distance IoU of a box with a true one that has an area, in `[-1, 1]` up to rounding:
/// IoU - (distance of the centres / diagonal of the enclosing box)^2. -1 where the corners of
/// `found` are swapped.
pub fn diou(found: BoundingBox, truth: BoundingBox) -> f64 {
    let around = enclosing(found, truth);
    let diagonal = (around.x2 - around.x1).powi(2) + (around.y2 - around.y1).powi(2);
    if is_inverted(found) || !diagonal.is_finite() {
        return -1.0;
    }
    let x = (found.x1 + found.x2 - truth.x1 - truth.x2) / 2.0;
    let y = (found.y1 + found.y2 - truth.y1 - truth.y2) / 2.0;
    iou_plain(found, truth) - (x * x + y * y) / diagonal
}

fn pattern(template: &str) -> Regex {
    Regex::new(&template.replace("NUM", r"(-?[0-9]+(?:\.[0-9]+)?)")).expect("the pattern is valid")
}

static POINT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[\[(]\s*NUM\s*,\s*NUM\s*(?:,\s*NUM\s*,\s*NUM\s*)?[\])]"));

/// A number of its own: not the 2 of `point_2d`.
static CLICK: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?is)click.*?(?:[^\w.-])NUM\b.*?(?:[^\w.-])NUM\b"));

/// The point of the first answer: its first bracket of two numbers, or the centre of its first of
/// four, whichever stands first.
pub fn find_point(completion: &str) -> Option<[f64; 2]> {
    let captures = POINT.captures(first_answer(completion)?)?;
    let first = [number(&captures, 1)?, number(&captures, 2)?];
    match (number(&captures, 3), number(&captures, 4)) {
        (Some(x), Some(y)) => Some([(first[0] + x) / 2.0, (first[1] + y) / 2.0]),
        _ => Some(first),
    }
}

/// Where the first answer clicks: the first two numbers after the word `click`, in any case, as in
/// `click(12, 34)` or `{"action": "left_click", "coordinate": [12, 34]}`.
pub fn find_click(completion: &str) -> Option<[f64; 2]> {
    let captures = CLICK.captures(first_answer(completion)?)?;
    Some([number(&captures, 1)?, number(&captures, 2)?])
}

fn number(captures: &Captures<'_>, group: usize) -> Option<f64> {
    let number: f64 = captures.get(group)?.as_str().parse().ok()?;
    number.is_finite().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(corners: [f64; 4]) -> BoundingBox {
        corners.into()
    }

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    const TRUTH: [f64; 4] = [0.0, 0.0, 10.0, 10.0];

    #[test]
    fn giou_by_hand() {
        let giou = |found| giou(boxed(found), boxed(TRUTH));
        assert_near(giou(TRUTH), 1.0);
        // Intersection 25, union 175, enclosing 225.
        assert_near(giou([5.0, 5.0, 15.0, 15.0]), 25.0 / 175.0 - 50.0 / 225.0);
        // Apart: 200 of 300 covered.
        assert_near(giou([20.0, 0.0, 30.0, 10.0]), -1.0 / 3.0);
        assert_near(giou([5.0; 4]), 0.0);
        assert_eq!(giou([10.0, 0.0, 0.0, 10.0]), -1.0);
    }

    #[test]
    fn diou_by_hand() {
        let diou = |found| diou(boxed(found), boxed(TRUTH));
        assert_near(diou(TRUTH), 1.0);
        // Centres 5 apart on each axis, enclosing 15 x 15: 50 / 450.
        assert_near(diou([5.0, 5.0, 15.0, 15.0]), 25.0 / 175.0 - 1.0 / 9.0);
        // Centres 20 apart, enclosing 30 x 10.
        assert_near(diou([20.0, 0.0, 30.0, 10.0]), -400.0 / 1000.0);
        assert_eq!(diou([0.0, 10.0, 10.0, 0.0]), -1.0);
    }

    #[test]
    fn points_and_clicks_are_found() {
        let point = |text: &str| find_point(&format!("<answer>{text}</answer>"));
        assert_eq!(point("at (3, -4.5) or [1, 2]"), Some([3.0, -4.5]));
        assert_eq!(point("{\"point_2d\": [ 7 , 8 ]}"), Some([7.0, 8.0]));
        assert_eq!(point("[0, 10, 20, 40]"), Some([10.0, 25.0]));
        assert_eq!(point("[1, 2, 3]"), None);
        assert_eq!(find_point("(1, 2)"), None);
        let click = |text: &str| find_click(&format!("<answer>{text}</answer>"));
        for text in [
            "click(12, 34)",
            "pyautogui.click(x=12, y=34)",
            "CLICK <point>12 34</point>",
            "click(start_box='(12,34)')",
            "{\"action\": \"left_click\", \"point_2d\": [12, 34]}",
        ] {
            assert_eq!(click(text), Some([12.0, 34.0]), "{text}");
        }
        assert_eq!(click("type(12, 34)"), None);
        assert_eq!(click("click 12"), None);
    }

    #[test]
    fn the_right_and_bottom_edges_are_outside() {
        let is_inside = |x, y| contains(boxed(TRUTH), [x, y]);
        assert!(is_inside(0.0, 0.0) && is_inside(9.5, 9.5));
        assert!(!is_inside(10.0, 5.0) && !is_inside(5.0, 10.0) && !is_inside(-0.5, 5.0));
    }
}
