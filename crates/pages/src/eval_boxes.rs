//! The images of a scored completion with boxes drawn on the first.

use std::path::PathBuf;

use ::eval::ShownBox;
use report::{AnnotatedImage, Colour, LabelledBox};

use crate::page_image::{for_page, short_label};
use crate::with_causes;

/// Boxes of one colour.
pub struct Layer<'a> {
    /// Their colour.
    pub colour: Colour,
    /// What stands beside a box without a label.
    pub name: &'a str,
    /// The boxes, px of the image.
    pub boxes: &'a [ShownBox],
}

/// The images, and why some are missing.
pub fn shown_images(
    paths: &[PathBuf],
    layers: &[Layer<'_>],
    apply_exif: bool,
) -> (Vec<AnnotatedImage>, String) {
    let (mut shown_images, mut notes) = (Vec::new(), Vec::new());
    for (index, path) in paths.iter().enumerate() {
        match for_page(path, apply_exif) {
            Ok((image, original)) => {
                let size = image.size();
                let scale = [0, 1].map(|axis| f64::from(size[axis]) / f64::from(original[axis]));
                let layers = if index == 0 { layers } else { &[] };
                shown_images.push(AnnotatedImage {
                    image,
                    boxes: layers.iter().flat_map(|layer| layer.drawn(scale)).collect(),
                    title: path.display().to_string(),
                    lines: Vec::new(),
                });
            }
            Err(error) => notes.push(format!("no image: {}", with_causes(&error))),
        }
    }
    (shown_images, notes.join("; "))
}

impl Layer<'_> {
    fn drawn(&self, scale: [f64; 2]) -> impl Iterator<Item = LabelledBox> {
        self.boxes.iter().map(move |shown| {
            let label = match (shown.label.as_str(), shown.is_crowd) {
                ("", _) => self.name.to_owned(),
                (label, false) => short_label(label),
                (label, true) => format!("{} (crowd)", short_label(label)),
            };
            let iou = shown.iou.map(|iou| format!(" {iou:.2}")).unwrap_or_default();
            LabelledBox {
                label: format!("{label}{iou}").trim().to_owned(),
                colour: self.colour,
                corners: [0, 1, 2, 3].map(|corner| shown.bbox_2d[corner] * scale[corner % 2]),
            }
        })
    }
}
