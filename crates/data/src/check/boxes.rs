//! Boxes in true answers, and the box convention that a file seems to use.

use config::BoxFormat;
use serde_json::Value;

/// A box of a true answer, as written.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerBox {
    /// Its label, where it has one.
    pub label: Option<String>,
    /// The four numbers.
    pub corners: [f64; 4],
}

/// Pixels that a box may leave its image by: roundings of COCO's tools.
pub(super) const EDGE_PX: f64 = 2.0;
/// Boxes that a suspicion needs.
const FEW_BOXES: u64 = 20;
/// The highest coordinate of boxes in thousandths.
const THOUSAND: f64 = 1000.0;
/// A side on which coordinates in pixels would pass a thousand sooner or later, px.
const LONG_SIDE_PX: f64 = 1300.0;
/// Sides that coordinates in thousandths would pass sooner or later, px.
const SHORT_SIDE_PX: f64 = 700.0;

/// The boxes of an answer: objects with `bbox_2d`, or a list of four numbers that is the whole
/// answer. Other numbers in brackets are no boxes.
pub(super) fn boxes_of(answer: &str) -> Vec<AnswerBox> {
    let text = fenced(answer).unwrap_or(answer).trim();
    match serde_json::from_str::<Value>(text) {
        Ok(value) => {
            let mut boxes = Vec::new();
            collect(&value, true, &mut boxes);
            boxes
        }
        Err(_) => Vec::new(),
    }
}

/// The content of the last ```` ```json ```` block.
fn fenced(answer: &str) -> Option<&str> {
    let start = answer.rfind("```json")? + "```json".len();
    let end = answer[start..].find("```")?;
    Some(&answer[start..start + end])
}

fn collect(value: &Value, is_whole: bool, boxes: &mut Vec<AnswerBox>) {
    match value {
        Value::Object(object) => {
            if let Some(corners) = object.get("bbox_2d").and_then(four_numbers) {
                let label = object.get("label").and_then(Value::as_str);
                boxes.push(AnswerBox { label: label.map(str::to_owned), corners });
            }
        }
        Value::Array(items) => match four_numbers(value) {
            Some(corners) if is_whole => boxes.push(AnswerBox { label: None, corners }),
            Some(_) => {}
            None => items.iter().for_each(|item| collect(item, false, boxes)),
        },
        _ => {}
    }
}

fn four_numbers(value: &Value) -> Option<[f64; 4]> {
    let items = value.as_array()?;
    let numbers: Vec<f64> = items.iter().map(Value::as_f64).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// Whether the second corner lies right and below of the first.
pub(super) fn has_area([x1, y1, x2, y2]: [f64; 4]) -> bool {
    x1 < x2 && y1 < y2
}

/// Whether a box leaves an image of this extent, in the same units, by more than `edge`.
pub(super) fn leaves([x1, y1, x2, y2]: [f64; 4], extent: [f64; 2], edge: [f64; 2]) -> bool {
    x1 < -edge[0] || y1 < -edge[1] || x2 > extent[0] + edge[0] || y2 > extent[1] + edge[1]
}

/// What the boxes of one file have in common, each beside the size of its image.
#[derive(Clone, Debug, Default)]
pub(super) struct Convention {
    boxes: u64,
    highest: f64,
    /// No coordinate over 1.
    in_shares: u64,
    /// Over the edge of the image.
    outside: u64,
    /// Without area as two corners.
    inverted: u64,
    /// Inside the image as corner, width and height.
    fits_as_sizes: u64,
    /// In an image with a side of [`LONG_SIDE_PX`] or more.
    in_long_images: u64,
    /// In an image with no side over [`SHORT_SIDE_PX`].
    in_small_images: u64,
    /// With a coordinate over a thousand.
    over_thousand: u64,
}

impl Convention {
    pub(super) fn add(&mut self, corners: [f64; 4], size: [u32; 2]) {
        let size = size.map(f64::from);
        let [x, y, width, height] = corners;
        let highest = corners.into_iter().fold(f64::MIN, f64::max);
        self.boxes += 1;
        self.highest = self.highest.max(highest);
        self.in_shares += u64::from(highest <= 1.0);
        let edge = [EDGE_PX; 2];
        self.outside += u64::from(leaves(corners, size, edge));
        self.inverted += u64::from(!has_area(corners));
        let as_corners = [x, y, x + width, y + height];
        let fits = width > 0.0 && height > 0.0 && !leaves(as_corners, size, edge);
        self.fits_as_sizes += u64::from(fits);
        let longest = size[0].max(size[1]);
        self.in_long_images += u64::from(longest >= LONG_SIDE_PX);
        self.in_small_images += u64::from(longest <= SHORT_SIDE_PX);
        self.over_thousand += u64::from(highest > THOUSAND);
    }

    /// Whether the boxes look like those of other units than are assumed, in words.
    pub(super) fn suspected_units(&self, assumed: BoxFormat) -> Option<String> {
        let of = |count| format!("{count} of {} boxes", self.boxes);
        if self.boxes == 0 {
            return None;
        }
        if self.in_shares * 20 >= self.boxes * 19 {
            return Some(format!(
                "{} have no coordinate above 1: shares of the image?\n\
                 hint: `--solution_box_format relative_1`",
                of(self.in_shares)
            ));
        }
        if assumed == BoxFormat::Relative1000 {
            return self.suspected_pixels();
        }
        let is_bounded = self.boxes >= FEW_BOXES && self.highest <= THOUSAND;
        if is_bounded && self.outside * 50 >= self.boxes {
            return Some(format!(
                "{} leave their image and none has a coordinate above 1000: thousandths of the image?\n\
                 hint: `--solution_box_format relative_1000`",
                of(self.outside)
            ));
        }
        if is_bounded && self.in_long_images >= FEW_BOXES {
            return Some(format!(
                "{} lie in images with a side of {LONG_SIDE_PX} px or more, and no coordinate is above 1000: \
                 thousandths of the image?\nhint: `--solution_box_format relative_1000`",
                of(self.in_long_images)
            ));
        }
        None
    }

    /// Whether boxes that are taken for thousandths look like pixels, in words.
    fn suspected_pixels(&self) -> Option<String> {
        const HINT: &str = "the model's family writes thousandths, and these are taken for such: pixels of the image?\n\
                            hint: `--solution_box_format absolute`";
        if self.boxes < FEW_BOXES {
            return None;
        }
        if self.over_thousand * 50 >= self.boxes {
            let (over, boxes) = (self.over_thousand, self.boxes);
            return Some(format!("{over} of {boxes} boxes have a coordinate above 1000; {HINT}"));
        }
        let stay_inside = self.outside == 0 && self.in_small_images >= FEW_BOXES;
        stay_inside.then(|| {
            format!(
                "{} of {} boxes lie in images without a side over {SHORT_SIDE_PX} px, and none leaves its image; {HINT}",
                self.in_small_images, self.boxes
            )
        })
    }

    /// Whether the boxes look like corner, width and height, in words.
    pub(super) fn suspected_sizes(&self) -> Option<String> {
        let is_suspect = self.boxes >= FEW_BOXES
            && self.inverted * 50 >= self.boxes
            && self.fits_as_sizes * 50 >= self.boxes * 49;
        is_suspect.then(|| {
            format!(
                "{} of {} boxes have no area as two corners, and {} fit their image as corner, width and height\n\
                 hint: COCO's `bbox` is `[x, y, width, height]`; write `[x, y, x + width, y + height]`",
                self.inverted, self.boxes, self.fits_as_sizes
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corners(answer: &str) -> Vec<[f64; 4]> {
        boxes_of(answer).into_iter().map(|b| b.corners).collect()
    }

    #[test]
    fn boxes_are_found_in_the_forms_that_answers_have() {
        assert_eq!(corners("[1, 2, 3, 4]"), [[1.0, 2.0, 3.0, 4.0]]);
        let list = "```json\n[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cup\"}, {\"bbox_2d\": [5, 6, 7.5, 8]}]\n```";
        assert_eq!(corners(list), [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.5, 8.0]]);
        assert_eq!(boxes_of(list)[0].label.as_deref(), Some("cup"));
        assert_eq!(corners("{\"bbox_2d\": [1, 2, 3, 4]}"), [[1.0, 2.0, 3.0, 4.0]]);
        for none in ["None", "x [1, 2, 3, 4]", "[1, 2, 3]", "[[1, 2, 3, 4]]", "7", "```json\n"] {
            assert_eq!(corners(none), [[0.0; 4]; 0], "{none}");
        }
    }

    fn convention(boxes: &[[f64; 4]], size: [u32; 2]) -> Convention {
        let mut convention = Convention::default();
        boxes.iter().for_each(|b| convention.add(*b, size));
        convention
    }

    #[test]
    fn conventions_are_told_apart() {
        let shift = |i: usize, b: [f64; 4], by: f64| b.map(|x| x + i as f64 * by);
        let many = |b: [f64; 4], by: f64| -> Vec<_> { (0..40).map(|i| shift(i, b, by)).collect() };
        let pixels = convention(&many([10.0, 10.0, 200.0, 100.0], 2.0), [640, 480]);
        assert_eq!(
            (pixels.suspected_units(BoxFormat::Absolute), pixels.suspected_sizes()),
            (None, None)
        );
        let shares = convention(&many([0.1, 0.1, 0.3, 0.4], 0.01), [640, 480]);
        assert!(shares.suspected_units(BoxFormat::Absolute).is_some_and(|s| s.contains("shares")));
        let thousandths = convention(&many([100.0, 100.0, 600.0, 700.0], 5.0), [640, 480]);
        assert!(
            thousandths
                .suspected_units(BoxFormat::Absolute)
                .is_some_and(|s| s.contains("leave their image"))
        );
        let large = convention(&many([100.0, 100.0, 600.0, 700.0], 5.0), [4000, 3000]);
        assert!(
            large
                .suspected_units(BoxFormat::Absolute)
                .is_some_and(|s| s.contains("4000") || s.contains("side"))
        );
        let sizes: Vec<_> = (0..40).map(|i| [200.0 + f64::from(i), 100.0, 60.0, 50.0]).collect();
        let sizes = convention(&sizes, [640, 480]);
        assert!(sizes.suspected_sizes().is_some_and(|s| s.contains("width")));
        assert_eq!(sizes.suspected_units(BoxFormat::Absolute), None);
    }

    #[test]
    fn a_family_of_thousandths_suspects_pixels() {
        let told = |b: [f64; 4], by: f64, size| {
            let boxes: Vec<_> = (0..40).map(|i| b.map(|x| x + f64::from(i) * by)).collect();
            convention(&boxes, size).suspected_units(BoxFormat::Relative1000)
        };
        let inside = told([10.0, 10.0, 200.0, 100.0], 2.0, [640, 480]);
        assert!(inside.is_some_and(|s| s.contains("none leaves its image")));
        let large = told([500.0, 500.0, 1200.0, 1300.0], 5.0, [4000, 3000]);
        assert!(large.is_some_and(|s| s.contains("above 1000") && s.contains("absolute`")));
        let shares = told([0.1, 0.1, 0.3, 0.4], 0.01, [640, 480]);
        assert!(shares.is_some_and(|s| s.contains("relative_1`")));
        assert_eq!(told([100.0, 100.0, 600.0, 700.0], 5.0, [640, 480]), None);
        assert_eq!(told([100.0, 100.0, 600.0, 700.0], 5.0, [4000, 3000]), None);
        let few = convention(&[[10.0, 10.0, 20.0, 20.0]], [640, 480]);
        assert_eq!(few.suspected_units(BoxFormat::Relative1000), None);
    }

    #[test]
    fn few_boxes_are_no_suspicion() {
        let few = convention(&[[100.0, 100.0, 900.0, 900.0]], [640, 480]);
        assert_eq!((few.suspected_units(BoxFormat::Absolute), few.suspected_sizes()), (None, None));
        assert_eq!(Convention::default().suspected_units(BoxFormat::Absolute), None);
    }
}
