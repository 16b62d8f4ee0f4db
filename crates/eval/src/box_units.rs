//! Whether predicted boxes that miss the true ones would meet them in other units, or with their numbers in another order.

use rewards::boxes::iou_vlm_r1;
use rewards::{BoundingBox, BoxFormat, ImageSizes};

/// Fewer boxes say nothing.
const MIN_BOXES: usize = 3;
/// A reading is told from this mean IoU on, and from this much more than that of the settings.
const MIN_IOU: f64 = 0.3;
const MIN_GAIN: f64 = 0.2;

/// The boxes of a completion and the true ones of its image, as they stand.
#[derive(Clone, Debug)]
pub(crate) struct Boxes {
    /// Of the completion.
    pub found: Vec<BoundingBox>,
    /// Of the row.
    pub truths: Vec<BoundingBox>,
    /// Sizes of the image.
    pub sizes: ImageSizes,
}

/// In which units boxes of completions and of rows are taken to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    /// Of completions.
    pub completion: BoxFormat,
    /// Of rows.
    pub solution: BoxFormat,
}

/// What the four numbers of a box may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Corners,
    RowsFirst,
    CornerAndSize,
    CentreAndSize,
}

const ORDERS: [Order; 4] =
    [Order::Corners, Order::RowsFirst, Order::CornerAndSize, Order::CentreAndSize];

/// How boxes were meant, as it seems.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// In words: units, order.
    pub what: String,
    /// The settings that read them so; empty where there are none.
    pub flags: String,
    /// Mean IoU of the boxes, read so.
    pub iou: f64,
    /// The same, as the settings read them.
    pub iou_now: f64,
    /// Boxes.
    pub boxes: usize,
}

impl Order {
    fn corners(self, b: BoundingBox) -> BoundingBox {
        let BoundingBox { x1, y1, x2, y2 } = b;
        let corners = match self {
            Self::Corners => [x1, y1, x2, y2],
            Self::RowsFirst => [y1, x1, y2, x2],
            Self::CornerAndSize => [x1, y1, x1 + x2, y1 + y2],
            Self::CentreAndSize => [x1 - x2 / 2.0, y1 - y2 / 2.0, x1 + x2 / 2.0, y1 + y2 / 2.0],
        };
        corners.into()
    }

    fn described(self) -> &'static str {
        match self {
            Self::Corners => "",
            Self::RowsFirst => "`[y1, x1, y2, x2]` in ",
            Self::CornerAndSize => "`[x, y, width, height]` in ",
            Self::CentreAndSize => "`[centre x, centre y, width, height]` in ",
        }
    }
}

/// A reading of the boxes by which they meet the true ones far better than by `units`.
pub(crate) fn better_reading(all: &[Boxes], units: Units) -> Option<Reading> {
    let boxes = all.iter().map(|image| image.found.len()).sum();
    if boxes < MIN_BOXES {
        return None;
    }
    let iou_now = mean_iou(all, units, Order::Corners);
    let mut best: Option<(f64, Units, Order)> = None;
    for (candidate, order) in candidates(units) {
        let iou = mean_iou(all, candidate, order);
        // Of equals the first: units that are alike for these images.
        if best.is_none_or(|(other, ..)| iou > other + 1e-9) {
            best = Some((iou, candidate, order));
        }
    }
    let (iou, read, order) = best?;
    let is_told = iou >= MIN_IOU && iou >= iou_now + MIN_GAIN;
    is_told.then(|| Reading {
        what: described(read, units, order),
        flags: flags(read, units, order),
        iou,
        iou_now,
        boxes,
    })
}

/// The nearest first: one thing changed, then two.
fn candidates(units: Units) -> Vec<(Units, Order)> {
    let formats = BoxFormat::ALL;
    let completions = formats.map(|completion| Units { completion, ..units });
    let solutions = formats.map(|solution| Units { solution, ..units });
    let both = formats
        .iter()
        .flat_map(|&solution| formats.map(|completion| Units { completion, solution }));
    let units = completions.into_iter().chain(solutions).chain(both);
    let mut all: Vec<(Units, Order)> = units.map(|units| (units, Order::Corners)).collect();
    for order in &ORDERS[1..] {
        all.extend(completions.map(|units| (units, *order)));
    }
    all
}

fn mean_iou(all: &[Boxes], units: Units, order: Order) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for image in all {
        let on_image = |b, from: BoxFormat| image.sizes.convert(b, from, BoxFormat::Absolute);
        let truths = image.truths.iter();
        let truths: Vec<_> = truths.map(|&b| on_image(b, units.solution)).collect();
        for &found in &image.found {
            let found = on_image(order.corners(found), units.completion);
            let ious = truths.iter().map(|&truth| iou_vlm_r1(found, truth));
            sum += ious.fold(0.0, f64::max);
            count += 1;
        }
    }
    sum / f64::from(count.max(1))
}

fn described(read: Units, now: Units, order: Order) -> String {
    let mut what = Vec::new();
    if read.completion != now.completion || order != Order::Corners {
        what.push(format!(
            "the boxes of the completions as {}{}",
            order.described(),
            read.completion.described()
        ));
    }
    if read.solution != now.solution {
        let units = read.solution.described();
        what.push(format!("the boxes of the rows as {units}"));
    }
    what.join(" and ")
}

fn flags(read: Units, now: Units, order: Order) -> String {
    if order != Order::Corners {
        return String::new();
    }
    let mut flags = Vec::new();
    if read.completion != now.completion {
        flags.push(format!("--box_format {}", read.completion.word()));
    }
    if read.solution != now.solution {
        flags.push(format!("--solution_box_format {}", read.solution.word()));
    }
    flags.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: ImageSizes = ImageSizes { original: [640, 480], input: [336, 252] };
    const NOW: Units = Units { completion: BoxFormat::ModelInput, solution: BoxFormat::Absolute };

    /// True boxes in `solution`, and completions that mean them in `completion` and `order`.
    fn boxes(
        completion: BoxFormat,
        solution: BoxFormat,
        write: fn([f64; 4]) -> [f64; 4],
    ) -> Vec<Boxes> {
        let truths =
            [[64.0, 48.0, 320.0, 96.0], [320.0, 240.0, 640.0, 300.0], [10.0, 200.0, 60.0, 470.0]];
        let one = |truth: &[f64; 4]| {
            let on = |to| SIZES.convert((*truth).into(), BoxFormat::Absolute, to);
            Boxes {
                found: vec![write(on(completion).into()).into()],
                truths: vec![on(solution)],
                sizes: SIZES,
            }
        };
        truths.iter().map(one).collect()
    }

    fn same(b: [f64; 4]) -> [f64; 4] {
        b
    }

    #[test]
    fn units_are_found_by_what_they_would_meet() {
        use BoxFormat::{Absolute, ModelInput, Relative1, Relative1000};
        assert_eq!(better_reading(&boxes(ModelInput, Absolute, same), NOW), None);
        for (completion, solution, flags) in [
            (Absolute, Absolute, "--box_format absolute"),
            (Relative1000, Absolute, "--box_format relative_1000"),
            (Relative1, Absolute, "--box_format relative_1"),
            (ModelInput, Relative1, "--solution_box_format relative_1"),
            (Relative1, Relative1, "--box_format relative_1 --solution_box_format relative_1"),
        ] {
            let reading = better_reading(&boxes(completion, solution, same), NOW).unwrap();
            assert!((reading.iou - 1.0).abs() < 1e-9, "{reading:?}");
            assert!(reading.iou_now < 0.5, "{reading:?}");
            assert_eq!(reading.flags, flags);
        }
    }

    #[test]
    fn orders_are_named() {
        let turned = |write| {
            let reading =
                better_reading(&boxes(BoxFormat::Relative1000, BoxFormat::Absolute, write), NOW);
            reading.unwrap()
        };
        let rows_first = turned(|[x1, y1, x2, y2]| [y1, x1, y2, x2]);
        assert!(rows_first.what.contains("`[y1, x1, y2, x2]` in thousandths"), "{rows_first:?}");
        assert_eq!(rows_first.flags, "");
        let sized = turned(|[x1, y1, x2, y2]| [x1, y1, x2 - x1, y2 - y1]);
        assert!(sized.what.contains("`[x, y, width, height]`"), "{sized:?}");
        let centred =
            turned(|[x1, y1, x2, y2]| [(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1]);
        assert!(centred.what.contains("centre"), "{centred:?}");
    }

    #[test]
    fn bad_boxes_are_bad_in_all_units() {
        let mut wrong = boxes(BoxFormat::ModelInput, BoxFormat::Absolute, same);
        let shifted: Vec<_> = wrong.iter().map(|image| image.found.clone()).collect();
        for (index, image) in wrong.iter_mut().enumerate() {
            image.found.clone_from(&shifted[(index + 1) % 3]);
        }
        assert_eq!(better_reading(&wrong, NOW), None);
        let one = &boxes(BoxFormat::Relative1, BoxFormat::Absolute, same)[..1];
        assert_eq!(better_reading(one, NOW), None, "one box says nothing");
    }
}
