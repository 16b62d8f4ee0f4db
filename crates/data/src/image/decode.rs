//! Image files to RGB samples, equal to Pillow's `Image.open(path).convert("RGB")`.
//!
//! The format is read from the content, never from the extension. Declared sizes are checked before
//! anything is decoded. As in Pillow, alpha and transparency are dropped (not blended), 16-bit grey
//! is clipped at 255, other 16-bit samples keep their high byte, and EXIF rotation is not applied here ([`super::Orientation`] does).

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::{bmp::BmpDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder};

use super::{ImageCause, ImageError, RgbImage, gif, jpeg, png};

/// Pillow's limit: an image of more pixels is taken for a decompression bomb.
pub const MAX_DECODED_PIXELS: u64 = 178_956_970;

/// Bytes needed to tell the formats apart.
const MAGIC_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
}

/// Reads and decodes an image file.
///
/// # Errors
/// [`ImageError::File`]: the file is missing, empty, truncated, corrupt, not an image, or declares
/// more than `max_pixels` pixels.
pub fn decode_file(path: &Path, max_pixels: u64) -> Result<RgbImage, ImageError> {
    let bytes = read_file(path)?;
    decode(&bytes, max_pixels).map_err(|cause| ImageError::file(path, cause))
}

/// Reads a file whole, but only if it starts like an image.
///
/// # Errors
/// [`ImageError::File`]: the file is missing, empty, or does not start like an image.
pub fn read_file(path: &Path) -> Result<Vec<u8>, ImageError> {
    read_image_file(path).map_err(|cause| ImageError::file(path, cause))
}

/// Looks at the first bytes of a file: cheap, and enough to find what is no image at all.
///
/// # Errors
/// [`ImageError::File`]: the file is missing, empty, or does not start like an image.
pub fn check_magic(path: &Path) -> Result<(), ImageError> {
    open_image_file(path).map(drop).map_err(|cause| ImageError::file(path, cause))
}

fn read_image_file(path: &Path) -> Result<Vec<u8>, ImageCause> {
    let (mut bytes, mut file) = open_image_file(path)?;
    file.read_to_end(&mut bytes).map_err(ImageCause::Unreadable)?;
    Ok(bytes)
}

/// The first bytes of an image file, and the file after them.
fn open_image_file(path: &Path) -> Result<(Vec<u8>, File), ImageCause> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => ImageCause::Missing,
        _ => ImageCause::Unreadable(error),
    };
    // Asked before opening: to open a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(ImageCause::NotAFile);
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    sniff(&bytes)?;
    Ok((bytes, file))
}

/// Decodes the bytes of an image file.
///
/// # Errors
/// The bytes are empty, truncated, corrupt, not an image, or declare more than `max_pixels` pixels.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageCause> {
    match sniff(bytes)? {
        Format::Png => png::decode(bytes, max_pixels),
        Format::WebP => {
            check_webp_length(bytes)?;
            let decoder =
                WebPDecoder::new(Cursor::new(bytes)).map_err(|error| cause("WebP", &error))?;
            to_rgb("WebP", decoder, max_pixels)
        }
        Format::Bmp => {
            let decoder =
                BmpDecoder::new(Cursor::new(bytes)).map_err(|error| cause("BMP", &error))?;
            let mut image = to_rgb("BMP", decoder, max_pixels)?;
            if let Some(levels) = bmp_16bit_levels(bytes) {
                truncate_levels(&mut image.pixels, levels);
            }
            Ok(image)
        }
        Format::Jpeg => jpeg::decode(bytes, max_pixels),
        Format::Gif => gif::decode(bytes, max_pixels),
    }
}

/// Bytes of a file that usually hold its header.
const HEADER_BYTES: u64 = 1 << 16;

/// Width and height of an image file by its header, px; none where it does not say.
pub fn size_of_file(path: &Path) -> Option<[u32; 2]> {
    let (mut bytes, mut file) = open_image_file(path).ok()?;
    let of = |bytes: &[u8]| match decode(bytes, 0) {
        // No image is that small, so nothing is decoded.
        Err(ImageCause::TooLarge { width, height, .. }) => {
            Some([u32::try_from(width).ok()?, u32::try_from(height).ok()?])
        }
        _ => None,
    };
    file.by_ref().take(HEADER_BYTES).read_to_end(&mut bytes).ok()?;
    of(&bytes).or_else(|| {
        file.read_to_end(&mut bytes).ok()?;
        of(&bytes)
    })
}

/// That an image has another size than is said of it, in words.
pub fn other_size(path: &Path, stated: [f64; 2]) -> Option<String> {
    let [width, height] = size_of_file(path)?;
    let is_same = [width, height].map(f64::from) == stated;
    (!is_same).then(|| format!("{width} x {height}, stated {} x {}", stated[0], stated[1]))
}

/// The end of a name for a file with these bytes, by how they start.
///
/// # Errors
/// They do not start like an image.
pub fn extension(bytes: &[u8]) -> Result<&'static str, ImageCause> {
    Ok(match sniff(bytes)? {
        Format::Png => "png",
        Format::Jpeg => "jpg",
        Format::WebP => "webp",
        Format::Gif => "gif",
        Format::Bmp => "bmp",
    })
}

fn sniff(bytes: &[u8]) -> Result<Format, ImageCause> {
    match bytes {
        [] => Err(ImageCause::Empty),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Format::Png),
        [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'B', b'M', ..] => Ok(Format::Bmp),
        _ => Err(ImageCause::NotAnImage { magic: describe_magic(bytes) }),
    }
}

/// Names what a file that is no image starts with.
fn describe_magic(bytes: &[u8]) -> String {
    let known = match bytes {
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some("TIFF"),
        [b'%', b'P', b'D', b'F', ..] => Some("PDF"),
        [0x1f, 0x8b, ..] => Some("gzip"),
        [b'P', b'K', 3, 4, ..] => Some("zip"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some("AVIF, HEIF or MP4"),
        [b'8', b'B', b'P', b'S', ..] => Some("Photoshop"),
        [0, 0, 1, 0, ..] => Some("ICO"),
        [0, 0, 0, 12, b'j', b'P', ..] => Some("JPEG 2000"),
        _ => None,
    };
    let head = &bytes[..bytes.len().min(MAGIC_BYTES)];
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match known {
        Some(name) => format!("the magic of {name}"),
        None if head.iter().all(printable) => {
            let text: String = head.iter().map(|&byte| char::from(byte)).collect();
            format!("the text `{}`", text.escape_default())
        }
        None => {
            let hex: Vec<String> = head.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("the bytes `{}`", hex.join(" "))
        }
    }
}

/// Refuses sizes that are zero or over the bound, before memory is taken for them.
pub(super) fn check_size(width: u64, height: u64, max_pixels: u64) -> Result<(), ImageCause> {
    if width == 0 || height == 0 {
        return Err(ImageCause::NoPixels { width, height });
    }
    if width.saturating_mul(height) > max_pixels {
        return Err(ImageCause::TooLarge { width, height, max_pixels });
    }
    Ok(())
}

fn to_rgb(
    format: &'static str,
    decoder: impl ImageDecoder,
    max_pixels: u64,
) -> Result<RgbImage, ImageCause> {
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), max_pixels)?;
    let color = decoder.color_type();
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples).map_err(|error| cause(format, &error))?;
    match rgb_samples(color, samples) {
        Some(pixels) => Ok(RgbImage::new(width, height, pixels)),
        None => Err(ImageCause::Unsupported {
            format,
            detail: format!(
                "{} channels of {} bits",
                color.channel_count(),
                color.bits_per_pixel() / u16::from(color.channel_count())
            ),
        }),
    }
}

/// Drops alpha and repeats grey; nothing for samples that are no bytes.
fn rgb_samples(color: ColorType, samples: Vec<u8>) -> Option<Vec<u8>> {
    Some(match color {
        ColorType::L8 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        ColorType::La8 => samples.chunks_exact(2).flat_map(grey).collect(),
        ColorType::Rgb8 => samples,
        ColorType::Rgba8 => samples.chunks_exact(4).flat_map(rgb).collect(),
        _ => return None,
    })
}

fn rgb(pixel: &[u8]) -> [u8; 3] {
    [pixel[0], pixel[1], pixel[2]]
}

fn grey(pixel: &[u8]) -> [u8; 3] {
    [pixel[0]; 3]
}

/// The decoder forgives a few missing bytes at the end; Pillow does not.
fn check_webp_length(bytes: &[u8]) -> Result<(), ImageCause> {
    let declared = bytes
        .get(4..8)
        .map_or(0, |size| 8 + u64::from(u32::from_le_bytes([size[0], size[1], size[2], size[3]])));
    if declared > bytes.len() as u64 {
        return Err(ImageCause::Truncated {
            format: "WebP",
            detail: format!("{} of {declared} bytes", bytes.len()),
        });
    }
    Ok(())
}

/// The highest value of each channel of a 16-bit BMP; nothing for other depths.
fn bmp_16bit_levels(bytes: &[u8]) -> Option<[u32; 3]> {
    const BIT_FIELDS: [u8; 4] = [3, 0, 0, 0];
    const SIX_BITS_OF_GREEN: [u8; 4] = [0xe0, 0x07, 0, 0];
    if bytes.get(28..30)? != [16, 0] {
        return None;
    }
    let has_masks = bytes.get(30..34)? == BIT_FIELDS;
    if has_masks && bytes.get(58..62)? == SIX_BITS_OF_GREEN {
        Some([31, 63, 31])
    } else {
        Some([31, 31, 31])
    }
}

/// Pillow stretches 5 and 6 bits to 8 by truncation where the decoder rounds.
fn truncate_levels(pixels: &mut [u8], levels: [u32; 3]) {
    for pixel in pixels.chunks_exact_mut(3) {
        for (sample, levels) in pixel.iter_mut().zip(levels) {
            let level = (u32::from(*sample) * levels + 127) / 255;
            *sample = (level * 255 / levels) as u8;
        }
    }
}

/// Sorts a decoder's error into truncated, corrupt and unsupported.
fn cause(format: &'static str, error: &image::ImageError) -> ImageCause {
    let detail = error.to_string();
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageCause::Truncated { format, detail }
        }
        image::ImageError::Unsupported(_) => ImageCause::Unsupported { format, detail },
        _ if ends_early(error) => ImageCause::Truncated { format, detail },
        _ => ImageCause::Corrupt { format, detail },
    }
}

/// Whether an end of file hides among the sources of an error.
fn ends_early(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::UnexpectedEof
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_not_an_image() {
        let text = decode(b"<!DOCTYPE html><html>", 10).unwrap_err().to_string();
        assert_eq!(
            text,
            "not an image: starts with the text `<!DOCTYPE html><`, expected PNG, JPEG, WebP, GIF or BMP"
        );
        let pdf = decode(b"%PDF-1.7\n", 10).unwrap_err().to_string();
        assert!(pdf.contains("the magic of PDF"), "{pdf}");
        let bytes = decode(&[0, 1, 254], 10).unwrap_err().to_string();
        assert!(bytes.contains("the bytes `00 01 fe`"), "{bytes}");
        assert!(matches!(decode(&[], 10), Err(ImageCause::Empty)));
    }
}
