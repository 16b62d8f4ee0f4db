//! Images as pages show them: small, and encoded for the page.

use std::path::Path;

use data::image::{Filter, MAX_DECODED_PIXELS, ResizeBackend, decode_upright, resize};
use report::EncodedImage;

use crate::PageError;

/// Longest side of an image on a page, px.
const MAX_SIDE_PX: u32 = 640;
/// Pixels up to which an image is kept without loss.
const MAX_PNG_PIXELS: u32 = 160 * 160;
const JPEG_QUALITY: f32 = 85.0;
/// Characters that fit beside a box.
const MAX_LABEL: usize = 16;

/// The image of a file, in a size for a page, and the size of the file's own, px; with `apply_exif` turned as its orientation
/// says.
///
/// # Errors
/// Where the file cannot be decoded.
pub fn for_page(path: &Path, apply_exif: bool) -> Result<(EncodedImage, [u32; 2]), PageError> {
    let image = decode_upright(path, MAX_DECODED_PIXELS, apply_exif)?;
    let original = [image.width(), image.height()];
    let longest = original[0].max(original[1]);
    let image = if longest > MAX_SIDE_PX {
        let side =
            |side: u32| (f64::from(side) * f64::from(MAX_SIDE_PX) / f64::from(longest)).round();
        let [width, height] = original.map(|length| side(length).max(1.0) as u32);
        resize(&image, width, height, Filter::Bicubic, ResizeBackend::Pillow)
    } else {
        image
    };
    let size = [image.width(), image.height()];
    let encoded = if size[0] * size[1] <= MAX_PNG_PIXELS {
        EncodedImage::from_rgb(size[0], size[1], image.pixels())?
    } else {
        EncodedImage::from_jpeg(
            size[0],
            size[1],
            jpeg(size, image.pixels()).map_err(PageError::Jpeg)?,
        )
    };
    Ok((encoded, original))
}

/// What fits beside a box.
pub fn short_label(label: &str) -> String {
    match label.char_indices().nth(MAX_LABEL) {
        Some((end, _)) => format!("{}\u{2026}", &label[..end]),
        None => label.to_owned(),
    }
}

fn jpeg([width, height]: [u32; 2], pixels: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut jpeg = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    jpeg.set_size(width as usize, height as usize);
    jpeg.set_quality(JPEG_QUALITY);
    let mut jpeg = jpeg.start_compress(Vec::new())?;
    jpeg.write_scanlines(pixels)?;
    jpeg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_keeps_its_size_and_colour() {
        let bytes = jpeg([40, 20], &[200, 30, 30].repeat(800)).expect("a jpeg");
        let image = data::image::decode(&bytes, 10_000).expect("an image");
        assert_eq!((image.width(), image.height()), (40, 20));
        let [red, green, blue] = [0, 1, 2].map(|channel| image.pixels()[channel]);
        assert!(red > 190 && green < 45 && blue < 45, "{red} {green} {blue}");
    }
}
