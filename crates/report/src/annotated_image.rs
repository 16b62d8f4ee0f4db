//! Images with boxes drawn over them, embedded in the page.

use std::fmt::Write;
use std::io::Cursor;

use image::{ImageFormat, ImageReader, RgbImage};

use crate::base64;
use crate::error::ReportError;
use crate::svg::{Colour, escaped};

/// An image file in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedImage {
    bytes: Vec<u8>,
    mime: &'static str,
    size: [u32; 2],
}

impl EncodedImage {
    /// A PNG, WebP, GIF or BMP file as it is.
    ///
    /// # Errors
    /// Where the bytes are none of these.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ReportError> {
        let wrong = |source| ReportError::Image { source };
        let format = image::guess_format(&bytes).map_err(wrong)?;
        let (width, height) = ImageReader::with_format(Cursor::new(&bytes), format)
            .into_dimensions()
            .map_err(wrong)?;
        Ok(Self { mime: format.to_mime_type(), size: [width, height], bytes })
    }

    /// RGB pixels, `[height, width, 3]`, stored as PNG.
    ///
    /// # Errors
    /// Where the number of bytes does not fit the size.
    pub fn from_rgb(width: u32, height: u32, pixels: &[u8]) -> Result<Self, ReportError> {
        let image = RgbImage::from_raw(width, height, pixels.to_vec())
            .filter(|_| pixels.len() == width as usize * height as usize * 3)
            .ok_or(ReportError::PixelCount { width, height, got: pixels.len() })?;
        let mut bytes = Vec::new();
        image
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .map_err(|source| ReportError::Image { source })?;
        Self::from_bytes(bytes)
    }

    /// A JPEG file, whose size the caller knows.
    pub fn from_jpeg(width: u32, height: u32, bytes: Vec<u8>) -> Self {
        Self { bytes, mime: "image/jpeg", size: [width, height] }
    }

    /// Width and height, px.
    pub fn size(&self) -> [u32; 2] {
        self.size
    }
}

/// A box over an image.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledBox {
    /// Short name, drawn beside the box.
    pub label: String,
    /// Colour of the box.
    pub colour: Colour,
    /// `[x1, y1, x2, y2]` in pixels of the image.
    pub corners: [f64; 4],
}

/// One line below an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CaptionLine {
    /// Whose line it is.
    pub label: String,
    /// Colour of the mark before it.
    pub colour: Option<Colour>,
    /// What it says, such as a completion.
    pub text: String,
    /// The score, set apart.
    pub value: String,
}

/// An image with its boxes, a title and captions.
#[derive(Clone, Debug, PartialEq)]
pub struct AnnotatedImage {
    /// The image.
    pub image: EncodedImage,
    /// Boxes, drawn in this order.
    pub boxes: Vec<LabelledBox>,
    /// What was asked.
    pub title: String,
    /// Lines below.
    pub lines: Vec<CaptionLine>,
}

/// Length that the longer side of an image is brought to, px of the drawing.
const DRAWN_SIDE: f64 = 320.0;
const LABEL_HEIGHT: f64 = 17.0;

/// A rectangle on the drawing: left, top, width, height.
type Rect = [f64; 4];

impl AnnotatedImage {
    /// The image with its boxes as SVG text.
    pub fn svg(&self) -> String {
        let [width, height] = self.image.size.map(f64::from);
        let scale = DRAWN_SIDE / width.max(height);
        let drawn = [width * scale, height * scale];
        let [drawn_width, drawn_height] = drawn;
        // Enlarged pixels stay pixels; a photograph made smaller is smoothed.
        let rendering = if scale > 1.0 { "pixelated" } else { "auto" };
        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="image" viewBox="0 0 {drawn_width:.1} {drawn_height:.1}" role="img" aria-label="{}"><image width="{drawn_width:.1}" height="{drawn_height:.1}" preserveAspectRatio="none" style="image-rendering:{rendering}" href="data:{};base64,{}"/>"#,
            escaped(&self.title),
            self.image.mime,
            base64::encode(&self.image.bytes),
        );
        let rects: Vec<Option<Rect>> = self.boxes.iter().map(|b| rect(b, scale)).collect();
        for (index, (b, rect)) in self.boxes.iter().zip(&rects).enumerate() {
            if let Some(rect) = rect {
                draw_box(&mut svg, *rect, b.colour, self.boxes.len() - index);
            }
        }
        let mut taken = Vec::new();
        for (b, rect) in self.boxes.iter().zip(&rects) {
            if let Some(rect) = rect {
                let at = free_place(*rect, &b.label, &taken, drawn);
                draw_label(&mut svg, at, b);
                taken.push(at);
            }
        }
        svg + "</svg>"
    }
}

/// None where a corner is not a number or the box is inside out: there is nothing to draw.
fn rect(b: &LabelledBox, scale: f64) -> Option<Rect> {
    let [x1, y1, x2, y2] = b.corners.map(|corner| corner * scale);
    let is_drawable = x1 <= x2 && y1 <= y2 && b.corners.iter().all(|c| c.is_finite());
    is_drawable.then_some([x1, y1, x2 - x1, y2 - y1])
}

/// Boxes that lie on each other stay visible: those drawn first are wider.
fn draw_box(svg: &mut String, [x, y, width, height]: Rect, colour: Colour, boxes_above: usize) {
    let stroke = 1.25 + 1.25 * boxes_above as f64;
    let halo = stroke + 1.5;
    let place =
        format!(r#"x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="none""#);
    let _ = write!(
        svg,
        r#"<rect {place} stroke="var(--card)" stroke-opacity="0.7" stroke-width="{halo}"/><rect {place} style="stroke:{}" stroke-width="{stroke}"/>"#,
        colour.css()
    );
}

fn draw_label(svg: &mut String, [x, y, width, height]: Rect, b: &LabelledBox) {
    let _ = write!(
        svg,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}" rx="3" style="fill:{}"/><text class="label" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        b.colour.css(),
        x + width / 2.0,
        y + 12.5,
        escaped(&b.label)
    );
}

/// The first place at a corner of the box where the label hides no other label.
fn free_place([x, y, width, height]: Rect, label: &str, taken: &[Rect], page: [f64; 2]) -> Rect {
    let label_width = 7.2 * label.chars().count() as f64 + 9.0;
    let right = x + width - label_width;
    let above = y - LABEL_HEIGHT - 2.0;
    let below = y + height + 2.0;
    let corners = [
        [x, above],
        [x, below],
        [right, above],
        [right, below],
        [x - label_width - 2.0, y],
        [x + width + 2.0, y],
        [x - label_width - 2.0, below - LABEL_HEIGHT],
        [x + width + 2.0, below - LABEL_HEIGHT],
    ];
    let clamped = corners.map(|[left, top]| {
        let left = left.clamp(0.0, (page[0] - label_width).max(0.0));
        let top = top.clamp(0.0, (page[1] - LABEL_HEIGHT).max(0.0));
        [left, top, label_width, LABEL_HEIGHT]
    });
    let is_free = |place: &&Rect| !taken.iter().any(|other| overlap(**place, *other));
    *clamped.iter().find(is_free).unwrap_or(&clamped[0])
}

fn overlap([ax, ay, aw, ah]: Rect, [bx, by, bw, bh]: Rect) -> bool {
    ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(boxes: &[[f64; 4]]) -> AnnotatedImage {
        AnnotatedImage {
            image: EncodedImage::from_rgb(4, 2, &[128; 24]).expect("pixels"),
            boxes: boxes
                .iter()
                .map(|&corners| LabelledBox {
                    label: "GRPO".to_owned(),
                    colour: Colour::Blue,
                    corners,
                })
                .collect(),
            title: "a <red> ball".to_owned(),
            lines: Vec::new(),
        }
    }

    #[test]
    fn pixels_become_a_png_of_their_size() {
        let image = EncodedImage::from_rgb(4, 2, &[7; 24]).expect("pixels");
        assert_eq!((image.size(), image.mime), ([4, 2], "image/png"));
        let decoded = image::load_from_memory(&image.bytes).expect("a png").to_rgb8();
        assert_eq!(decoded.as_raw(), &[7; 24]);
        for length in [23, 27] {
            assert!(matches!(
                EncodedImage::from_rgb(4, 2, &vec![7; length]),
                Err(ReportError::PixelCount { .. })
            ));
        }
        assert!(matches!(
            EncodedImage::from_bytes(b"no image".to_vec()),
            Err(ReportError::Image { .. })
        ));
    }

    #[test]
    fn boxes_are_scaled_with_the_image() {
        // 4 px are drawn 320 wide: 80 to the pixel.
        let svg = image(&[[1.0, 0.5, 3.0, 2.0]]).svg();
        assert!(svg.contains(r#"x="80.0" y="40.0" width="160.0" height="120.0""#));
        assert!(svg.contains("pixelated") && svg.contains("a &lt;red&gt; ball"));
        assert!(svg.contains("data:image/png;base64,iVBORw0KGgo"));
    }

    #[test]
    fn labels_of_equal_boxes_lie_apart_and_inside() {
        let page = [320.0, 160.0];
        let mut taken = Vec::new();
        for _ in 0..3 {
            let place = free_place([100.0, 40.0, 80.0, 80.0], "GRPO", &taken, page);
            assert!(taken.iter().all(|&other| !overlap(place, other)));
            assert!(place[0] >= 0.0 && place[0] + place[2] <= 320.0);
            assert!(place[1] >= 0.0 && place[1] + place[3] <= 160.0);
            taken.push(place);
        }
    }

    #[test]
    fn a_box_that_is_none_is_not_drawn() {
        let svg = image(&[[3.0, 0.0, 1.0, 2.0], [0.0, 0.0, f64::NAN, 1.0]]).svg();
        assert!(!svg.contains("GRPO") && !svg.contains("<rect"));
    }
}
