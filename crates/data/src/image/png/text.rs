//! Texts and profiles beside the image: read for nothing but their size.

use super::corrupt;
use crate::image::ImageCause;
use crate::image::inflate::{Measured, measure};

/// Pillow's `MAX_TEXT_CHUNK`, bytes of one that is unpacked.
const MAX_UNPACKED: usize = 1 << 20;
/// Pillow's `MAX_TEXT_MEMORY`, bytes of all texts.
const MAX_ALL: usize = 64 << 20;

/// The size of all texts so far, bytes.
#[derive(Default)]
pub(super) struct Texts(usize);

impl Texts {
    /// Reads a chunk, if it is a text or a profile.
    pub(super) fn read(&mut self, name: &[u8; 4], data: &[u8]) -> Result<(), ImageCause> {
        match name {
            b"iCCP" => {
                // Without a zero byte, Pillow takes the first byte for the method.
                let rest = after_zero(data).unwrap_or(data);
                let Some((method, profile)) = rest.split_first() else {
                    return Err(corrupt("chunk `iCCP` is too short"));
                };
                unpacked("iCCP", *method, profile).map(drop)
            }
            b"tEXt" => self.add(data.len()),
            b"zTXt" => match after_zero(data).and_then(<[u8]>::split_first) {
                Some((method, text)) => self.add(unpacked("zTXt", *method, text)?),
                None => Ok(()),
            },
            b"iTXt" => self.read_international(data).unwrap_or(Ok(())),
            _ => Ok(()),
        }
    }

    fn add(&mut self, length: usize) -> Result<(), ImageCause> {
        self.0 += length;
        match self.0 > MAX_ALL {
            true => Err(corrupt(format!("texts of more than {MAX_ALL} bytes"))),
            false => Ok(()),
        }
    }

    /// None of a text that breaks off, which does not count.
    fn read_international(&mut self, data: &[u8]) -> Option<Result<(), ImageCause>> {
        let [is_packed, method, rest @ ..] = after_zero(data)? else {
            return None;
        };
        let text = after_zero(after_zero(rest)?)?;
        match (is_packed, method) {
            (0, _) => Some(self.add(text.len())),
            (_, 0) => Some(unpacked("iTXt", 0, text).and_then(|length| self.add(length))),
            _ => None,
        }
    }
}

/// The length of a packed text; 0 of one that is damaged.
fn unpacked(chunk: &str, method: u8, text: &[u8]) -> Result<usize, ImageCause> {
    if method != 0 {
        return Err(corrupt(format!("chunk `{chunk}`: compression method {method}")));
    }
    match measure(text, MAX_UNPACKED) {
        Measured::Length(length) => Ok(length),
        Measured::Broken => Ok(0),
        Measured::TooLong => {
            Err(corrupt(format!("chunk `{chunk}` unpacks to more than {MAX_UNPACKED} bytes")))
        }
    }
}

fn after_zero(data: &[u8]) -> Option<&[u8]> {
    let zero = data.iter().position(|byte| *byte == 0)?;
    Some(&data[zero + 1..])
}
