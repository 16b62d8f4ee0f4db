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
    let reader = StrictReader { rest: bytes, ran_out: &ran_out };
    // libjpeg reports fatal errors by unwinding to here.
    let decode = || decode_from(reader, bytes, max_pixels);
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    let detail = match decoded {
        Ok(Ok(image)) => return Ok(image),
        Ok(Err(Failure::Cause(cause))) => return Err(cause),
        Ok(Err(Failure::Io(error))) => error.to_string(),
        Err(payload) => panic_text(payload.as_ref()),
    };
    if ran_out.get() {
        let detail = format!("more data expected after {} bytes", bytes.len());
        return Err(ImageCause::Truncated { format: FORMAT, detail });
    }
    Err(match unsupported(&detail) {
        Some(detail) => ImageCause::Unsupported { format: FORMAT, detail },
        None => ImageCause::Corrupt { format: FORMAT, detail },
    })
}

/// What a valid file asks of libjpeg that it is not built for, by its messages (`jerror.h`).
fn unsupported(message: &str) -> Option<String> {
    const PROCESS: &str = "Unsupported JPEG process: SOF type ";
    const PRECISION: &str = "Unsupported JPEG data precision ";
    if let Some(kind) = message.strip_prefix(PROCESS) {
        let name = match kind {
            "0xc3" => "lossless coding",
            "0xc5" | "0xc6" | "0xc7" => "hierarchical coding",
            "0xcb" => "lossless arithmetic coding",
            "0xcd" | "0xce" | "0xcf" => "hierarchical arithmetic coding",
            _ => "coding",
        };
        return Some(format!("{name} (SOF {kind})"));
    }
    if let Some(bits) = message.strip_prefix(PRECISION) {
        return Some(format!("{bits} bits a sample"));
    }
    let known = [
        ("arithmetic coding", "arithmetic coding"),
        ("color conversion", "its colour conversion"),
        ("CCIR601", "CCIR601 sampling"),
        ("Fractional sampling", "fractional sampling"),
        ("omitted at compile time", "a feature that is not built"),
        ("Not implemented", "a feature that is not built"),
        ("Too many color components", "so many components"),
        ("Maximum supported image dimension", "a side of more than 65500 px"),
    ];
    let found = known.iter().find(|(words, _)| message.contains(words));
    found.map(|(_, detail)| (*detail).to_owned())
}

/// Refuses images whose scans are many and large: a few bytes can ask for a pass over all coefficients.
fn check_scans(bytes: &[u8], pixels: u64) -> Result<(), ImageCause> {
    /// What encoders write at most is about half of it.
    const MANY: u64 = 32;
    /// Scans times pixels: some seconds of work.
    const MAX_WORK: u64 = 1 << 30;
    let scans = num_scans(bytes);
    match scans > MANY && scans.saturating_mul(pixels) > MAX_WORK {
        true => Err(ImageCause::Corrupt {
            format: FORMAT,
            detail: format!("{scans} scans over {pixels} px"),
        }),
        false => Ok(()),
    }
}

/// Scans of a file: its SOS markers, wherever they stand between segments.
fn num_scans(bytes: &[u8]) -> u64 {
    let (mut scans, mut at) = (0, 2);
    while let Some(found) =
        bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xff))
    {
        at += found + 1;
        let Some(marker) = bytes.get(at) else {
            break;
        };
        match marker {
            // A byte of data, a restart, a byte that fills.
            0x00 | 0x01 | 0xd0..=0xd8 | 0xff => {}
            0xd9 => break,
            _ => {
                scans += u64::from(*marker == 0xda);
                let length = bytes
                    .get(at + 1..at + 3)
                    .map_or(0, |l| usize::from(l[0]) << 8 | usize::from(l[1]));
                at += 1 + length;
            }
        }
    }
    scans
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

fn decode_from(
    reader: StrictReader<'_>,
    bytes: &[u8],
    max_pixels: u64,
) -> Result<RgbImage, Failure> {
    let decoder = Decompress::new_reader(reader)?;
    let (width, height) = (decoder.width() as u64, decoder.height() as u64);
    check_size(width, height, max_pixels)
        .and_then(|()| check_scans(bytes, width * height))
        .map_err(Failure::Cause)?;
    let components = decoder.components().len();
    let color_space = match components {
        1 => ColorSpace::JCS_GRAYSCALE,
        3 => ColorSpace::JCS_RGB,
        4 => ColorSpace::JCS_CMYK,
        _ => {
            return Err(Failure::Cause(ImageCause::Unsupported {
                format: FORMAT,
                detail: format!("{components} components"),
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
        _ => samples.chunks_exact(4).flat_map(inverted_cmyk_to_rgb).collect(),
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
/// let a truncated image pass.
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
