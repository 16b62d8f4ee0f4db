//! The orientation that an image's metadata give, and its rotation, as in `ImageOps.exif_transpose` of Pillow 12: EXIF first,
//! XMP where there is no EXIF.
//!
//! | format | EXIF | XMP |
//! |---|---|---|
//! | JPEG | segments APP1 before the scan | the same |
//! | PNG | chunk `eXIf` | chunk `iTXt` of `XML:com.adobe.xmp` |
//! | WebP | chunk `EXIF` of an extended file | chunk `XMP ` |
//!
//! GIF and BMP are never turned.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use super::{ImageError, RgbImage, decode, read_file};

/// Metadata longer than this is not read, bytes: what says the orientation stands at its start.
const MAX_METADATA_BYTES: u64 = 1 << 20;
/// Where a PNG whose metadata follow its image is looked at, bytes from its end.
const TAIL_BYTES: u64 = 4096;
const EXIF_MARK: &[u8] = b"Exif\0\0";
const XMP_MARK: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
const PNG_XMP_KEYWORD: &[u8] = b"XML:com.adobe.xmp\0";
const ORIENTATION_TAG: u16 = 0x0112;

/// How a stored image is to be turned; an image that is stored upright has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation(u8);

impl Orientation {
    fn new(number: u64) -> Option<Self> {
        (2..=8).contains(&number).then_some(Self(number as u8))
    }

    /// Its number in EXIF, 2 to 8.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Width and height, once turned, of an image that is stored in `size`.
    pub fn turned_size(self, [width, height]: [u32; 2]) -> [u32; 2] {
        match self.0 {
            5..=8 => [height, width],
            _ => [width, height],
        }
    }

    /// The orientation that the bytes of an image file name.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        Metadata::read(&mut Cursor::new(bytes))?.orientation()
    }

    /// The orientation that an image file names. Its image is not read; one that cannot be opened names none.
    pub fn of_file(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        Metadata::read(&mut BufReader::with_capacity(4096, file))?.orientation()
    }

    /// The image as it is to be shown.
    pub fn turn(self, image: &RgbImage) -> RgbImage {
        let [width, height] = [image.width(), image.height()];
        let [new_width, new_height] = self.turned_size([width, height]);
        let stored = image.pixels();
        let mut pixels = Vec::with_capacity(stored.len());
        for y in 0..new_height {
            for x in 0..new_width {
                let (from_x, from_y) = match self.0 {
                    2 => (width - 1 - x, y),
                    3 => (width - 1 - x, height - 1 - y),
                    4 => (x, height - 1 - y),
                    5 => (y, x),
                    6 => (y, height - 1 - x),
                    7 => (width - 1 - y, height - 1 - x),
                    _ => (width - 1 - y, x),
                };
                let start = 3 * (from_y as usize * width as usize + from_x as usize);
                pixels.extend_from_slice(&stored[start..start + 3]);
            }
        }
        RgbImage::new(new_width, new_height, pixels)
    }
}

/// Reads and decodes an image file; with `apply_exif` it is turned as its orientation says.
///
/// # Errors
/// As [`decode_file`](super::decode_file).
pub fn decode_upright(
    path: &Path,
    max_pixels: u64,
    apply_exif: bool,
) -> Result<RgbImage, ImageError> {
    let bytes = read_file(path)?;
    let image = decode(&bytes, max_pixels).map_err(|cause| ImageError::file(path, cause))?;
    let orientation = Orientation::of_bytes(&bytes).filter(|_| apply_exif);
    Ok(match orientation {
        Some(orientation) => orientation.turn(&image),
        None => image,
    })
}

/// The metadata of a file.
#[derive(Default)]
struct Metadata {
    exif: Vec<u8>,
    xmp: Vec<u8>,
}

impl Metadata {
    /// None where the file is of another format, or breaks off.
    fn read(file: &mut (impl Read + Seek)) -> Option<Self> {
        let mut magic = [0; 12];
        file.read_exact(&mut magic).ok()?;
        let mut metadata = Self::default();
        match magic {
            [0xff, 0xd8, 0xff, ..] => metadata.read_jpeg(file),
            [0x89, b'P', b'N', b'G', ..] => metadata.read_png(file),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => {
                metadata.read_webp(file)
            }
            _ => None,
        };
        // What was read before a file breaks off counts.
        Some(metadata)
    }

    fn read_jpeg(&mut self, file: &mut (impl Read + Seek)) -> Option<()> {
        file.seek(SeekFrom::Start(2)).ok()?;
        loop {
            let marker = next_marker(file)?;
            match marker {
                // Restarts and the start of the image have no length.
                0x01 | 0xd0..=0xd8 => continue,
                // The end of the image, or the start of its scan.
                0xd9 | 0xda => return Some(()),
                _ => {}
            }
            let length = u64::from(u16::from_be_bytes(array(file)?)).checked_sub(2)?;
            if marker != 0xe1 {
                file.seek_relative(length as i64).ok()?;
                continue;
            }
            let segment = bytes(file, length)?;
            if let Some(exif) = segment.strip_prefix(EXIF_MARK) {
                // A long one goes on in further segments.
                self.exif.extend_from_slice(exif);
            } else if let Some(xmp) = segment.strip_prefix(XMP_MARK) {
                self.xmp = xmp.to_vec();
            }
        }
    }

    fn read_png(&mut self, file: &mut (impl Read + Seek)) -> Option<()> {
        file.seek(SeekFrom::Start(8)).ok()?;
        loop {
            let length = u64::from(u32::from_be_bytes(array(file)?));
            let name: [u8; 4] = array(file)?;
            match &name {
                b"eXIf" => self.exif = bytes(file, length)?,
                b"iTXt" => {
                    let text = bytes(file, length)?;
                    if text.starts_with(PNG_XMP_KEYWORD) {
                        self.xmp = text;
                    }
                }
                b"IEND" => return Some(()),
                b"IDAT" => return self.read_png_tail(file),
                _ => drop(file.seek_relative(length as i64).ok()?),
            }
            // The checksum.
            file.seek_relative(4).ok()?;
        }
    }

    /// Metadata behind the image: its chunks are not walked through, of which there may be thousands.
    fn read_png_tail(&mut self, file: &mut (impl Read + Seek)) -> Option<()> {
        let end = file.seek(SeekFrom::End(0)).ok()?;
        file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES))).ok()?;
        let tail = bytes(file, TAIL_BYTES.min(end))?;
        for (at, _) in tail.windows(4).enumerate().filter(|(_, name)| *name == b"eXIf") {
            let length = at.checked_sub(4).map(|start| &tail[start..at]);
            let length = u32::from_be_bytes(length?.try_into().ok()?) as usize;
            let content = tail.get(at + 4..(at + 4).checked_add(length)?);
            if let Some(exif) = content.filter(|exif| is_tiff(exif)) {
                self.exif = exif.to_vec();
            }
        }
        Some(())
    }

    fn read_webp(&mut self, file: &mut (impl Read + Seek)) -> Option<()> {
        const HAS_EXIF: u8 = 0x08;
        const HAS_XMP: u8 = 0x04;
        let mut flags = None;
        loop {
            let name: [u8; 4] = array(file)?;
            let length = u64::from(u32::from_le_bytes(array(file)?));
            let padding = length % 2;
            match &name {
                b"VP8X" if flags.is_none() => {
                    flags = bytes(file, length)?.first().copied();
                    file.seek_relative(padding as i64).ok()?;
                }
                // A file that is not extended has an image alone.
                _ if flags.is_none() => return Some(()),
                b"EXIF" if flags? & HAS_EXIF != 0 => {
                    self.exif = bytes(file, length)?;
                    file.seek_relative(padding as i64).ok()?;
                }
                b"XMP " if flags? & HAS_XMP != 0 => {
                    self.xmp = bytes(file, length)?;
                    file.seek_relative(padding as i64).ok()?;
                }
                _ => drop(file.seek_relative((length + padding) as i64).ok()?),
            }
        }
    }

    fn orientation(&self) -> Option<Orientation> {
        match orientation_of_exif(&self.exif) {
            Some(number) => Orientation::new(number),
            None => orientation_of_xmp(&self.xmp).and_then(Orientation::new),
        }
    }
}

/// The next marker of a JPEG file, bytes between segments passed over.
fn next_marker(file: &mut impl Read) -> Option<u8> {
    let mut byte: [u8; 1] = array(file)?;
    while byte[0] != 0xff {
        byte = array(file)?;
    }
    while byte[0] == 0xff {
        byte = array(file)?;
    }
    Some(byte[0])
}

fn array<const N: usize>(file: &mut impl Read) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// The next `length` bytes; of a declared length nothing is taken on trust.
fn bytes(file: &mut (impl Read + Seek), length: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let kept = length.min(MAX_METADATA_BYTES);
    file.by_ref().take(kept).read_to_end(&mut bytes).ok()?;
    file.seek_relative((length - kept) as i64).ok()?;
    Some(bytes)
}

fn is_tiff(bytes: &[u8]) -> bool {
    matches!(bytes, [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..])
}

/// The tag of EXIF's first directory, whatever it says; none where there is no such tag.
fn orientation_of_exif(mut exif: &[u8]) -> Option<u64> {
    while let Some(rest) = exif.strip_prefix(EXIF_MARK) {
        exif = rest;
    }
    let is_little = match exif {
        [b'I', b'I', 42, 0, ..] => true,
        [b'M', b'M', 0, 42, ..] => false,
        _ => return None,
    };
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = exif.get(at..at.checked_add(size)?)?.iter();
        let add = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        Some(match is_little {
            true => bytes.rev().fold(0, add),
            false => bytes.fold(0, add),
        })
    };
    let directory = usize::try_from(number(4, 4)?).ok()?;
    let entries = number(directory, 2)? as usize;
    (0..entries)
        .map(|index| directory + 2 + 12 * index)
        .rfind(|entry| number(*entry, 2) == Some(u64::from(ORIENTATION_TAG)))
        .and_then(|entry| {
            // SHORT and LONG, with or without a sign: what Pillow takes for a whole number.
            let size = match number(entry + 2, 2)? {
                3 | 8 => 2,
                4 | 9 => 4,
                _ => return Some(0),
            };
            match number(entry + 4, 4)? {
                0 => None,
                count if count * size <= 4 => number(entry + 8, size as usize),
                // Of several the first, which lie elsewhere.
                _ => number(usize::try_from(number(entry + 8, 4)?).ok()?, size as usize),
            }
        })
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn orientation_of_xmp(xmp: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"tiff:Orientation";
    let names = xmp.windows(NAME.len()).enumerate();
    let after = names.filter(|(_, name)| *name == NAME);
    after.into_iter().find_map(|(at, _)| {
        let rest = &xmp[at + NAME.len()..];
        let rest = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?;
        let digit = rest.first().filter(|byte| byte.is_ascii_digit())?;
        Some(u64::from(digit - b'0'))
    })
}
