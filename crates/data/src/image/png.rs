//! PNG as Pillow 13 reads it, its forgiveness and its refusals included (`PngImagePlugin.py`, `ZipDecode.c`).
//!
//! | | Pillow, and so here |
//! |---|---|
//! | chunks before the image | checksums are compared; unknown ones are passed over |
//! | the image | the checksum of the zlib stream counts, those of its chunks do not |
//! | chunks behind it | may be missing, `IEND` too; what is read of them must be whole |
//! | compressed texts, profiles | 1 MiB each, all texts together 64 MiB; nothing is kept of them |
//!
//! Of an animation the image is read that is shown where animations are not known.

mod chunks;
mod pixels;
mod text;

use std::borrow::Cow;

use self::chunks::Chunks;
use self::pixels::Pixels;
use super::decode::check_size;
use super::inflate::{Inflate, Stop};
use super::{ImageCause, RgbImage};

const FORMAT: &str = "PNG";
const NUM_SIGNATURE_BYTES: usize = 8;

pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageCause> {
    let mut chunks = Chunks::new(&bytes[NUM_SIGNATURE_BYTES..]);
    let header = chunks.read_header()?;
    let [width, height] = header.size;
    check_size(u64::from(width), u64::from(height), max_pixels)?;
    let stream = chunks.image()?;
    let mut pixels = Pixels::new(&header);
    let mut unpacked = Inflate::new(&stream).map_err(stopped)?;
    while let Some(length) = pixels.next_row() {
        let row = unpacked.take(length).map_err(stopped)?;
        match row.len() {
            // A stream that ends between two rows leaves the others black.
            0 if !pixels.is_empty() => break,
            got if got < length => return Err(truncated("the image lacks rows")),
            _ => pixels.take_row(row)?,
        }
    }
    // What is wrong right behind the last row, Pillow meets with it; what lies further on, it never reads.
    match unpacked.is_over() {
        Ok(_) | Err(Stop::Input) => {}
        Err(stop) => return Err(stopped(stop)),
    }
    chunks.read_tail()?;
    Ok(RgbImage::new(width, height, pixels.finish()))
}

/// What the chunks before the image say.
struct Header {
    /// Width and height, px.
    size: [u32; 2],
    /// Bits of a sample.
    depth: u8,
    color: Color,
    is_interlaced: bool,
    /// Red, green and blue of an index.
    palette: [[u8; 3]; 256],
}

impl Header {
    fn bits_per_pixel(&self) -> usize {
        self.color.num_samples() * usize::from(self.depth)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Color {
    Grey,
    Rgb,
    Palette,
    GreyAlpha,
    Rgba,
}

impl Color {
    fn num_samples(self) -> usize {
        match self {
            Self::Grey | Self::Palette => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

fn stopped(stop: Stop) -> ImageCause {
    match stop {
        Stop::Input => truncated("the image's data end early"),
        Stop::Broken(why) => corrupt(format!("the image's data: {why}")),
    }
}

fn truncated(detail: &str) -> ImageCause {
    ImageCause::Truncated { format: FORMAT, detail: detail.to_owned() }
}

fn corrupt(detail: impl Into<Cow<'static, str>>) -> ImageCause {
    ImageCause::Corrupt { format: FORMAT, detail: detail.into().into_owned() }
}
