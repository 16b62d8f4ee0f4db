//! The chunks of a file: those before the image, its data, and those behind it.

use std::borrow::Cow;

use super::text::Texts;
use super::{Color, Header, corrupt, truncated};
use crate::image::ImageCause;

/// A chunk of which only the start may be there.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    name: [u8; 4],
    length: usize,
    /// As much of its data as the file holds.
    data: &'a [u8],
}

impl<'a> Chunk<'a> {
    fn is(&self, name: &[u8; 4]) -> bool {
        self.name == *name
    }

    fn shown(&self) -> String {
        self.name.escape_ascii().to_string()
    }

    fn whole(&self) -> Result<&'a [u8], ImageCause> {
        match self.data.len() == self.length {
            true => Ok(self.data),
            false => Err(truncated(&format!("chunk `{}` ends early", self.shown()))),
        }
    }
}

/// Reads chunk by chunk.
pub(super) struct Chunks<'a> {
    rest: &'a [u8],
    texts: Texts,
    animation: Animation,
    size: Option<[u32; 2]>,
    color: Option<Color>,
    /// The first chunk of the image.
    first: Option<Chunk<'a>>,
    /// The chunk that ended the image's data.
    next: Option<Chunk<'a>>,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self {
            rest,
            texts: Texts::default(),
            animation: Animation::default(),
            size: None,
            color: None,
            first: None,
            next: None,
        }
    }

    /// All before the image.
    pub(super) fn read_header(&mut self) -> Result<Header, ImageCause> {
        let mut header = None;
        let mut palette: &[u8] = &[];
        loop {
            let chunk = self.chunk()?.ok_or_else(|| truncated("no image"))?;
            match &chunk.name {
                b"IDAT" | b"fdAT" => {
                    self.first = Some(chunk);
                    break;
                }
                b"IEND" => return Err(corrupt("no image")),
                b"IHDR" => {
                    let read = read_header(chunk.whole()?)?;
                    (self.size, self.color) = (Some(read.size), Some(read.color));
                    header = Some(read);
                }
                b"PLTE" if self.color == Some(Color::Palette) => {
                    palette = chunk.whole()?;
                }
                b"tRNS" => check_transparency(&chunk, self.color)?,
                _ => self.read_other(&chunk)?,
            }
            self.check_sum(&chunk)?;
        }
        let mut header = header.ok_or_else(|| corrupt("no header"))?;
        if palette.len() / 3 > header.palette.len() {
            return Err(corrupt(format!("a palette of {} colours", palette.len() / 3)));
        }
        for (color, entry) in header.palette.iter_mut().zip(palette.chunks_exact(3)) {
            color.copy_from_slice(entry);
        }
        self.animation.check_shown(header.size)?;
        Ok(header)
    }

    /// The stream of the image, whose chunks follow one another.
    pub(super) fn image(&mut self) -> Result<Cow<'a, [u8]>, ImageCause> {
        let Some(first) = self.first else {
            return Err(corrupt("no image"));
        };
        if !first.is(b"IDAT") {
            return Err(corrupt("an animation without an image"));
        }
        let mut stream = Cow::Borrowed(first.data);
        self.skip_sum();
        // What is no chunk ends the data: they may be whole.
        while let Some(chunk) = self.chunk().unwrap_or(None) {
            if !chunk.is(b"IDAT") {
                self.next = Some(chunk);
                break;
            }
            stream.to_mut().extend_from_slice(chunk.data);
            self.skip_sum();
        }
        Ok(stream)
    }

    /// What follows the image, to the end or to what is no chunk.
    pub(super) fn read_tail(&mut self) -> Result<(), ImageCause> {
        let mut next = self.next.take();
        while let Some(chunk) = next {
            match &chunk.name {
                b"IEND" => break,
                b"fcTL" if self.animation.is_animated() => break,
                b"IHDR" => {
                    read_header(chunk.whole()?)?;
                }
                b"IDAT" | b"PLTE" => {
                    chunk.whole()?;
                }
                b"tRNS" => check_transparency(&chunk, self.color)?,
                _ => self.read_other(&chunk)?,
            }
            self.skip_sum();
            // What is no chunk ends the file.
            next = self.chunk().unwrap_or(None);
        }
        Ok(())
    }

    /// Ancillary chunks, which may still be invalid.
    fn read_other(&mut self, chunk: &Chunk<'_>) -> Result<(), ImageCause> {
        let data = chunk.whole()?;
        let least = match &chunk.name {
            b"gAMA" => 4,
            b"cHRM" => 32,
            b"sRGB" => 1,
            b"pHYs" => 9,
            b"acTL" => 8,
            b"fcTL" => 26,
            b"fdAT" => 4,
            _ => 0,
        };
        if data.len() < least {
            return Err(corrupt(format!("chunk `{}` is too short", chunk.shown())));
        }
        match &chunk.name {
            b"acTL" => self.animation.control(data),
            b"fcTL" => self.animation.frame(data, self.size)?,
            b"fdAT" => self.animation.data(data)?,
            name => self.texts.read(name, data)?,
        }
        Ok(())
    }

    /// The next chunk; none at the end of the file.
    fn chunk(&mut self) -> Result<Option<Chunk<'a>>, ImageCause> {
        let Some((head, rest)) = self.rest.split_first_chunk::<8>() else {
            self.rest = &[];
            return Ok(None);
        };
        let [l0, l1, l2, l3, name @ ..] = *head;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
            return Err(corrupt(format!("`{}` is no chunk", name.escape_ascii())));
        }
        let (data, rest) = rest.split_at(length.min(rest.len()));
        self.rest = rest;
        Ok(Some(Chunk { name, length, data }))
    }

    fn skip_sum(&mut self) {
        self.rest = self.rest.get(4..).unwrap_or_default();
    }

    fn check_sum(&mut self, chunk: &Chunk<'_>) -> Result<(), ImageCause> {
        let Some((sum, rest)) = self.rest.split_first_chunk::<4>() else {
            return Err(truncated(&format!("no checksum of chunk `{}`", chunk.shown())));
        };
        self.rest = rest;
        match crc32(&[&chunk.name, chunk.data]) == u32::from_be_bytes(*sum) {
            true => Ok(()),
            false => Err(corrupt(format!("wrong checksum of chunk `{}`", chunk.shown()))),
        }
    }
}

/// The header chunk. Its kind of image is checked here, its size when pixels are read.
fn read_header(data: &[u8]) -> Result<Header, ImageCause> {
    let Some([w0, w1, w2, w3, h0, h1, h2, h3, depth, color, _, filter, interlace]) =
        data.first_chunk::<13>().copied()
    else {
        return Err(corrupt("chunk `IHDR` is too short"));
    };
    let color = match (color, depth) {
        (0, 1 | 2 | 4 | 8 | 16) => Color::Grey,
        (2, 8 | 16) => Color::Rgb,
        (3, 1 | 2 | 4 | 8) => Color::Palette,
        (4, 8 | 16) => Color::GreyAlpha,
        (6, 8 | 16) => Color::Rgba,
        _ => {
            return Err(corrupt(format!("colour type {color} with {depth} bits a sample")));
        }
    };
    if filter != 0 {
        return Err(corrupt(format!("filter method {filter}")));
    }
    Ok(Header {
        size: [[w0, w1, w2, w3], [h0, h1, h2, h3]].map(u32::from_be_bytes),
        depth,
        color,
        is_interlaced: interlace != 0,
        // Colours that the file does not name are black.
        palette: [[0; 3]; 256],
    })
}

fn check_transparency(chunk: &Chunk<'_>, color: Option<Color>) -> Result<(), ImageCause> {
    let least = match color {
        Some(Color::Rgb) => 6,
        Some(Color::Grey) => 2,
        _ => 0,
    };
    match chunk.whole()?.len() < least {
        true => Err(corrupt("chunk `tRNS` is too short")),
        false => Ok(()),
    }
}

/// What is said of an animation.
#[derive(Default)]
struct Animation {
    num_frames: u32,
    number: Option<u32>,
    /// Left, top, width and height of the frame described last.
    frame: Option<[u32; 4]>,
}

impl Animation {
    fn is_animated(&self) -> bool {
        self.num_frames > 1
    }

    fn control(&mut self, data: &[u8]) {
        let frames = number(data, 0);
        // A second one takes back the first.
        let is_usable = self.num_frames == 0 && frames <= 0x8000_0000;
        self.num_frames = if is_usable { frames } else { 0 };
    }

    /// The data of a frame, which follow its description.
    fn data(&mut self, data: &[u8]) -> Result<(), ImageCause> {
        match self.number {
            Some(last) => self.count(data, last.checked_add(1)),
            None => self.count(data, None),
        }
    }

    fn count(&mut self, data: &[u8], expected: Option<u32>) -> Result<(), ImageCause> {
        let next = number(data, 0);
        self.number = Some(next);
        match expected == Some(next) {
            true => Ok(()),
            false => Err(corrupt("an animation whose frames are out of order")),
        }
    }

    fn frame(&mut self, data: &[u8], size: Option<[u32; 2]>) -> Result<(), ImageCause> {
        self.count(data, self.number.map_or(Some(0), |last| last.checked_add(1)))?;
        let [width, height, left, top] = [4, 8, 12, 16].map(|at| number(data, at));
        self.frame = Some([left, top, width, height]);
        // Before the header there is no image to lie in.
        let [whole_width, whole_height] = size.unwrap_or_default();
        let is_within = |start: u32, length: u32, side: u32| {
            u64::from(start) + u64::from(length) <= u64::from(side)
        };
        match is_within(left, width, whole_width) && is_within(top, height, whole_height) {
            true => Ok(()),
            false => Err(corrupt("a frame of the animation leaves the image")),
        }
    }

    /// The first frame must be the image.
    fn check_shown(&self, [width, height]: [u32; 2]) -> Result<(), ImageCause> {
        match self.frame {
            Some(frame) if frame != [0, 0, width, height] => {
                Err(corrupt("the first frame of the animation is not the image"))
            }
            _ => Ok(()),
        }
    }
}

fn number(data: &[u8], at: usize) -> u32 {
    let bytes = data.get(at..).and_then(<[u8]>::first_chunk::<4>);
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// CRC-32 of ISO 3309, of parts joined.
fn crc32(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = table();
    let mut crc = !0;
    for byte in parts.iter().copied().flatten() {
        crc = crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)];
    }
    !crc
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}
