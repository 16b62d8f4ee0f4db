//! JPEG through libjpeg, byte-equal to Pillow: accurate integer DCT, smooth chroma upsampling.

use std::any::Any;
use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use mozjpeg::{ColorSpace, Decompress};

use super::decode::check_size;
use super::{ImageCause, RgbImage};

const FORMAT: &str = "JPEG";

/// Decodes a JPEG file; four components are taken as inverted CMYK, as Pillow does.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageCause> {
    let ran_out = Cell::new(false);
    let reader = StrictReader {
        rest: bytes,
        ran_out: &ran_out,
    };
    // libjpeg reports fatal errors by unwinding to here.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_from(reader, max_pixels)));
    let detail = match decoded {
        Ok(Ok(image)) => return Ok(image),
        Ok(Err(Failure::Cause(cause))) => return Err(cause),
        Ok(Err(Failure::Io(error))) => error.to_string(),
        Err(payload) => panic_text(payload.as_ref()),
    };
    if ran_out.get() {
        let detail = format!("more data expected after {} bytes", bytes.len());
        return Err(ImageCause::Truncated {
            format: FORMAT,
            detail,
        });
    }
    Err(ImageCause::Corrupt {
        format: FORMAT,
        detail,
    })
}

enum Failure {
    Cause(ImageCause),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn decode_from(reader: StrictReader<'_>, max_pixels: u64) -> Result<RgbImage, Failure> {
    let decoder = Decompress::new_reader(reader)?;
    let (width, height) = (decoder.width() as u64, decoder.height() as u64);
    check_size(width, height, max_pixels).map_err(Failure::Cause)?;
    let components = decoder.components().len();
    let color_space = match components {
        1 => ColorSpace::JCS_GRAYSCALE,
        3 => ColorSpace::JCS_RGB,
        4 => ColorSpace::JCS_CMYK,
        _ => {
            return Err(Failure::Cause(ImageCause::Unsupported {
                format: FORMAT,
                detail: format!("an image of {components} components"),
            }));
        }
    };
    let mut started = decoder.to_colorspace(color_space)?;
    let samples: Vec<u8> = started.read_scanlines()?;
    // Reads to the end-of-image marker: a file that lacks it is truncated.
    started.finish()?;
    let pixels = match components {
        1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        3 => samples,
        _ => samples
            .chunks_exact(4)
            .flat_map(inverted_cmyk_to_rgb)
            .collect(),
    };
    Ok(RgbImage::new(width as u32, height as u32, pixels))
}

/// Pillow's conversion of a CMYK pixel stored inverted, as Adobe's programs store it.
fn inverted_cmyk_to_rgb(pixel: &[u8]) -> [u8; 3] {
    // With inverted samples c = 255 - C and k = 255 - K, Pillow's `nk - MULDIV255(C, nk)` has nk = k.
    let not_black = u32::from(pixel[3]);
    [0, 1, 2].map(|channel| {
        let ink = 255 - u32::from(pixel[channel]);
        let product = ink * not_black + 128;
        let scaled = ((product >> 8) + product) >> 8;
        not_black.saturating_sub(scaled) as u8
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<String>() {
        text.trim_start_matches("libjpeg fatal error: ").to_owned()
    } else if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "the decoder gave up".to_owned()
    }
}

/// A reader that fails at the end of the data, where libjpeg's own would make up an end marker and
/// let a truncated picture pass.
struct StrictReader<'a> {
    rest: &'a [u8],
    ran_out: &'a Cell<bool>,
}

impl Read for StrictReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.rest.read(buf)
    }
}

impl BufRead for StrictReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ran_out.set(true);
            // Any kind but `UnexpectedEof`, which the decoder forgives.
            return Err(io::Error::other("out of data"));
        }
        Ok(self.rest)
    }

    fn consume(&mut self, amount: usize) {
        self.rest = &self.rest[amount..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmyk_corners() {
        // Stored inverted: no ink at all is white, full black is black, full cyan lacks red.
        assert_eq!(inverted_cmyk_to_rgb(&[255, 255, 255, 255]), [255, 255, 255]);
        assert_eq!(inverted_cmyk_to_rgb(&[255, 255, 255, 0]), [0, 0, 0]);
        assert_eq!(inverted_cmyk_to_rgb(&[0, 255, 255, 255]), [0, 255, 255]);
    }
}
