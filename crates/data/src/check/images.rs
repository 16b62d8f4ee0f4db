//! Images as the check sees them: decoded once however many rows show them, then only size, digest
//! and a thumbnail of each are kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

use crate::image::{ImageError, MAX_DECODED_PIXELS, Orientation, RgbImage, decode, read_file};

/// Cells of a thumbnail along a side.
const GRID: usize = 8;
const CELLS: usize = GRID * GRID * 3;
/// Levels by which the cells of two images of one thing may differ: resizing and compression.
const MAX_CELL_DIFFERENCE: u8 = 8;
/// Levels that the cells of an image must span to be told from others.
const MIN_CONTRAST: u8 = 24;
/// Share by which width to height of two images of one thing may differ.
const MAX_ASPECT_DIFFERENCE: f64 = 0.03;

/// What is kept of a decoded image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFacts {
    /// The file.
    pub path: PathBuf,
    /// Width and height, px.
    pub size: [u32; 2],
    /// How its metadata would turn it, where orientation is not applied.
    pub orientation: Option<Orientation>,
    /// The first half of SHA-256 of the file.
    pub(super) digest: [u8; 16],
    /// Mean colours of a grid of cells.
    pub(super) thumbnail: [u8; CELLS],
}

impl ImageFacts {
    fn read(path: &Path, apply_exif: bool) -> Result<Self, ImageError> {
        let bytes = read_file(path)?;
        let image = decode(&bytes, MAX_DECODED_PIXELS)
            .map_err(|cause| ImageError::File { path: path.to_owned(), cause })?;
        let orientation = Orientation::of_bytes(&bytes);
        let (image, orientation) = match orientation.filter(|_| apply_exif) {
            Some(orientation) => (orientation.turn(&image), None),
            None => (image, orientation),
        };
        let hash = Sha256::digest(&bytes);
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash[..16]);
        Ok(Self {
            path: path.to_owned(),
            size: [image.width(), image.height()],
            orientation,
            digest,
            thumbnail: thumbnail(&image),
        })
    }

    /// Mean level of the thumbnail: images of one thing have nearly the same.
    pub(super) fn mean_level(&self) -> f64 {
        let sum: u64 = self.thumbnail.iter().map(|&level| u64::from(level)).sum();
        sum as f64 / CELLS as f64
    }

    /// Whether both are images of one thing, resized or recompressed.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let aspect = |[width, height]: [u32; 2]| f64::from(width) / f64::from(height);
        let ratio = aspect(self.size) / aspect(other.size);
        (1.0 - MAX_ASPECT_DIFFERENCE..=1.0 + MAX_ASPECT_DIFFERENCE).contains(&ratio)
            && self
                .thumbnail
                .iter()
                .zip(&other.thumbnail)
                .all(|(a, b)| a.abs_diff(*b) <= MAX_CELL_DIFFERENCE)
            && self.has_contrast()
    }

    fn has_contrast(&self) -> bool {
        let low = self.thumbnail.iter().min().copied().unwrap_or_default();
        let high = self.thumbnail.iter().max().copied().unwrap_or_default();
        high - low >= MIN_CONTRAST
    }
}

/// How far the means of two similar images may differ, levels.
pub(super) const MAX_MEAN_DIFFERENCE: f64 = MAX_CELL_DIFFERENCE as f64;

fn thumbnail(image: &RgbImage) -> [u8; CELLS] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut cells = [0; CELLS];
    for (index, cell) in cells.chunks_exact_mut(3).enumerate() {
        // A side shorter than the grid shows pixels several times.
        let span = |at: usize, side: usize| {
            let start = at * side / GRID;
            start..((at + 1) * side / GRID).max(start + 1)
        };
        let (rows, columns) = (span(index / GRID, height), span(index % GRID, width));
        let count = (rows.len() * columns.len()) as u64;
        let mut sums = [0u64; 3];
        for row in rows {
            let line = &image.pixels()[3 * (row * width + columns.start)..];
            for pixel in line[..3 * columns.len()].chunks_exact(3) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += u64::from(sample);
                }
            }
        }
        for (cell, sum) in cell.iter_mut().zip(sums) {
            *cell = (sum / count) as u8;
        }
    }
    cells
}

/// A decoded image, or why it is none.
type Decoded = Result<Arc<ImageFacts>, String>;

/// Images by path, each decoded once; other threads wait for the first.
#[derive(Debug, Default)]
pub(super) struct Images(Mutex<HashMap<PathBuf, Arc<OnceLock<Decoded>>>>);

impl Images {
    /// What is kept of the image at `path`.
    ///
    /// # Errors
    /// Why it cannot be decoded, in words.
    pub(super) fn get(&self, path: &Path, apply_exif: bool) -> Decoded {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match slots.get(path) {
                Some(slot) => Arc::clone(slot),
                None => Arc::clone(slots.entry(path.to_owned()).or_default()),
            }
        };
        slot.get_or_init(|| {
            ImageFacts::read(path, apply_exif).map(Arc::new).map_err(|error| error.to_string())
        })
        .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> ImageFacts {
        let at = |i: u32| pixel(i % width, i / width);
        let pixels = (0..width * height).flat_map(at).collect();
        ImageFacts {
            path: PathBuf::new(),
            size: [width, height],
            orientation: None,
            digest: [0; 16],
            thumbnail: thumbnail(&RgbImage::new(width, height, pixels)),
        }
    }

    fn ramp(width: u32) -> impl Fn(u32, u32) -> [u8; 3] {
        move |x, y| [(x * 255 / width) as u8, (y * 255 / width) as u8, 40]
    }

    #[test]
    fn a_resized_image_looks_the_same_and_another_does_not() {
        let image = facts(64, 64, ramp(64));
        assert!(image.looks_like(&facts(128, 128, ramp(128))));
        assert!(!image.looks_like(&facts(128, 64, ramp(128))), "another shape");
        let mirrored = facts(64, 64, |x, y| ramp(64)(63 - x, y));
        assert!(!image.looks_like(&mirrored));
        let moved = facts(64, 64, |x, y| if x < 10 && y < 10 { [255; 3] } else { ramp(64)(x, y) });
        assert!(!image.looks_like(&moved));
    }

    #[test]
    fn plain_images_are_not_told_apart() {
        let grey = facts(64, 64, |_, _| [90; 3]);
        assert!(!grey.looks_like(&grey.clone()));
    }

    #[test]
    fn images_smaller_than_the_grid_have_thumbnails() {
        let tiny = facts(1, 3, |_, y| [y as u8 * 100; 3]);
        assert_eq!(tiny.thumbnail[0], 0);
        assert_eq!(tiny.thumbnail[CELLS - 1], 200);
    }
}
