//! Rows of an image: filters undone, samples put where they belong.

use super::{Color, Header, corrupt};
use crate::image::ImageCause;

/// First column and row, and steps between them, of the passes of Adam7.
const PASSES: [[u32; 4]; 7] = [
    [0, 0, 8, 8],
    [4, 0, 8, 8],
    [0, 4, 4, 8],
    [2, 0, 4, 4],
    [0, 2, 2, 4],
    [1, 0, 2, 2],
    [0, 1, 1, 2],
];
const WHOLE: [[u32; 4]; 1] = [[0, 0, 1, 1]];

/// An image that is filled row by row.
pub(super) struct Pixels<'a> {
    header: &'a Header,
    passes: &'static [[u32; 4]],
    /// The pass under way, and its next row in the image.
    pass: usize,
    y: u32,
    /// The row before without its filter, and the row that is read.
    rows: [Vec<u8>; 2],
    num_rows: usize,
    rgb: Vec<u8>,
}

impl<'a> Pixels<'a> {
    pub(super) fn new(header: &'a Header) -> Self {
        let [width, height] = header.size.map(|side| side as usize);
        let black = match header.color {
            Color::Palette => header.palette[0],
            _ => [0; 3],
        };
        let rgb = match black {
            [0, 0, 0] => vec![0; 3 * width * height],
            color => color.repeat(width * height),
        };
        Self {
            header,
            passes: if header.is_interlaced { &PASSES } else { &WHOLE },
            pass: 0,
            y: 0,
            rows: [Vec::new(), Vec::new()],
            num_rows: 0,
            rgb,
        }
    }

    /// Bytes of the next row with its filter; none where the image is full.
    pub(super) fn next_row(&mut self) -> Option<usize> {
        let [width, height] = self.header.size;
        loop {
            let [left, _, step_x, _] = *self.passes.get(self.pass)?;
            if self.y < height && left < width {
                let columns = (width - left).div_ceil(step_x) as usize;
                return Some(1 + (columns * self.header.bits_per_pixel()).div_ceil(8));
            }
            self.pass += 1;
            self.y = self.passes.get(self.pass).map_or(0, |pass| pass[1]);
            self.rows[0].clear();
        }
    }

    /// Whether no row was taken yet.
    pub(super) fn is_empty(&self) -> bool {
        self.num_rows == 0
    }

    /// Takes the row that was asked for.
    pub(super) fn take_row(&mut self, row: &[u8]) -> Result<(), ImageCause> {
        let Some((filter, row)) = row.split_first() else {
            return Ok(());
        };
        let [before, current] = &mut self.rows;
        before.resize(row.len(), 0);
        current.clear();
        current.extend_from_slice(row);
        let header = self.header;
        unfilter(*filter, before, current, header.bits_per_pixel().div_ceil(8))?;
        self.place();
        let [_, _, _, step_y] = self.passes[self.pass];
        self.y += step_y;
        self.num_rows += 1;
        self.rows.swap(0, 1);
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.rgb
    }

    /// Puts the samples of the row into the image.
    fn place(&mut self) {
        let [left, _, step_x, _] = self.passes[self.pass];
        let width = self.header.size[0] as usize;
        let row = &self.rows[1];
        let start = 3 * self.y as usize * width;
        let line = &mut self.rgb[start..start + 3 * width];
        if self.header.color == Color::Rgb && self.header.depth == 8 && step_x == 1 {
            line.copy_from_slice(row);
            return;
        }
        let pixels = line.chunks_exact_mut(3).skip(left as usize).step_by(step_x as usize);
        let header = self.header;
        let samples = header.color.num_samples();
        match header.depth {
            8 => {
                for (pixel, from) in pixels.zip(row.chunks_exact(samples)) {
                    pixel.copy_from_slice(&color_of(header, |index| from[index]));
                }
            }
            16 => {
                // Pillow clips grey, and keeps the high byte of all else.
                let narrow = |from: &[u8], index: usize| match header.color {
                    Color::Grey if from[0] > 0 => 255,
                    Color::Grey => from[1],
                    _ => from[2 * index],
                };
                for (pixel, from) in pixels.zip(row.chunks_exact(2 * samples)) {
                    pixel.copy_from_slice(&color_of(header, |index| narrow(from, index)));
                }
            }
            depth => {
                let depth = usize::from(depth);
                let highest = (1u8 << depth) - 1;
                let scale = match header.color {
                    Color::Palette => 1,
                    _ => 255 / highest,
                };
                for (index, pixel) in pixels.enumerate() {
                    let byte = row[index * depth / 8];
                    let sample = byte >> (8 - depth - index * depth % 8) & highest;
                    pixel.copy_from_slice(&color_of(header, |_| sample * scale));
                }
            }
        }
    }
}

/// The colour of a pixel by its samples, alpha dropped.
fn color_of(header: &Header, sample: impl Fn(usize) -> u8) -> [u8; 3] {
    match header.color {
        Color::Grey | Color::GreyAlpha => [sample(0); 3],
        Color::Palette => header.palette[usize::from(sample(0))],
        Color::Rgb | Color::Rgba => [sample(0), sample(1), sample(2)],
    }
}

/// Adds to each byte what its filter took from it.
fn unfilter(filter: u8, before: &[u8], row: &mut [u8], step: usize) -> Result<(), ImageCause> {
    match filter {
        0 => {}
        1 => {
            for at in step..row.len() {
                row[at] = row[at].wrapping_add(row[at - step]);
            }
        }
        2 => {
            for (byte, above) in row.iter_mut().zip(before) {
                *byte = byte.wrapping_add(*above);
            }
        }
        3 => {
            for at in 0..row.len() {
                let left = if at < step { 0 } else { row[at - step] };
                let mean = u16::midpoint(left.into(), before[at].into()) as u8;
                row[at] = row[at].wrapping_add(mean);
            }
        }
        4 => {
            let head = step.min(row.len());
            for at in 0..head {
                row[at] = row[at].wrapping_add(before[at]);
            }
            for at in head..row.len() {
                let guess = paeth(row[at - step], before[at], before[at - step]);
                row[at] = row[at].wrapping_add(guess);
            }
        }
        other => return Err(corrupt(format!("a row with filter {other}"))),
    }
    Ok(())
}

/// Of left, above and above left the one nearest to their plane.
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, above, corner].map(i16::from);
    let (to_left, to_above) = ((b - c).abs(), (a - c).abs());
    let to_corner = (a + b - 2 * c).abs();
    if to_left <= to_above && to_left <= to_corner {
        left
    } else if to_above <= to_corner {
        above
    } else {
        corner
    }
}
