//! Separable antialiased resampling of 8-bit RGB images, byte-equal to torchvision or to Pillow.
//!
//! Horizontal pass first, rounded to 8 bits, then the vertical pass; an axis that keeps its size is
//! skipped. Torchvision here is `resize(..., antialias=True)` on a CPU uint8 tensor (torchvision
//! 0.26, torch 2.11); Pillow is `Image.resize` of versions 10 to 12 (13 may swap the passes).

use super::RgbImage;
use super::coefficients::AxisWeights;

/// Whose arithmetic resizing follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResizeBackend {
    /// What transformers 5 runs on a CPU.
    #[default]
    Torchvision,
    /// What transformers 4.49 and VLM-R1 ran.
    Pillow,
}

/// What the flag `--image_processor` means.
pub fn resize_backend(flag: config::ImageProcessor) -> ResizeBackend {
    match flag {
        config::ImageProcessor::Torchvision => ResizeBackend::Torchvision,
        config::ImageProcessor::Pillow => ResizeBackend::Pillow,
    }
}

/// Resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic, support 2.
    Bicubic,
    /// Windowed sinc, support 3.
    Lanczos,
}

/// Rows that the horizontal pass works on at once.
const ROWS: usize = 8;
/// Samples that the horizontal pass computes at once: [`ROWS`] pixels of a column.
const COLUMN_SAMPLES: usize = 3 * ROWS;
/// Samples that the vertical pass computes at once.
const ROW_SAMPLES: usize = 32;

/// Resizes an image to `width` x `height` px.
///
/// # Panics
/// If a side of the image or of the target is zero.
pub fn resize(
    image: &RgbImage,
    width: u32,
    height: u32,
    filter: Filter,
    backend: ResizeBackend,
) -> RgbImage {
    let sides = [image.width, image.height, width, height];
    assert!(sides.iter().all(|&side| side > 0), "zero side in {sides:?}");
    let axis = |inputs: u32, outputs: u32| {
        AxisWeights::new(inputs as usize, outputs as usize, filter, backend)
    };
    let mut pixels = None;
    if width != image.width {
        let weights = axis(image.width, width);
        pixels = Some(resize_rows(&image.pixels, image.width as usize, &weights));
    }
    if height != image.height {
        let source = pixels.as_deref().unwrap_or(&image.pixels);
        let weights = axis(image.height, height);
        pixels = Some(resize_columns(source, 3 * width as usize, &weights));
    }
    let pixels = pixels.unwrap_or_else(|| image.pixels.clone());
    RgbImage::new(width, height, pixels)
}

/// `[rows, width, 3]` to `[rows, outputs, 3]`.
fn resize_rows(source: &[u8], width: usize, weights: &AxisWeights) -> Vec<u8> {
    let (row_in, row_out) = (3 * width, 3 * weights.num_outputs());
    let rows = source.len() / row_in;
    let mut target = vec![0; rows * row_out];
    // A band of rows, transposed so that the samples of a column lie side by side:
    // [width, ROWS, 3]. Rows missing from the last band keep old samples, which are not read out.
    let mut band = vec![0; width * COLUMN_SAMPLES];
    let mut column = [0; COLUMN_SAMPLES];
    for (rows_in, rows_out) in source.chunks(ROWS * row_in).zip(target.chunks_mut(ROWS * row_out)) {
        for (row, samples) in rows_in.chunks_exact(row_in).enumerate() {
            for (pixel, slot) in samples.chunks_exact(3).zip(band.chunks_exact_mut(COLUMN_SAMPLES))
            {
                slot[3 * row..3 * row + 3].copy_from_slice(pixel);
            }
        }
        for output in 0..weights.num_outputs() {
            let (start, taps) = weights.taps(output);
            let first = start * COLUMN_SAMPLES;
            weighted_sums(&band[first..], COLUMN_SAMPLES, taps, weights.precision, &mut column);
            for (row, pixel) in rows_out.chunks_exact_mut(row_out).zip(column.chunks_exact(3)) {
                row[3 * output..3 * output + 3].copy_from_slice(pixel);
            }
        }
    }
    target
}

/// `[height, row]` to `[outputs, row]`.
fn resize_columns(source: &[u8], row: usize, weights: &AxisWeights) -> Vec<u8> {
    let mut target = vec![0; weights.num_outputs() * row];
    for (output, out_row) in target.chunks_exact_mut(row).enumerate() {
        let (start, taps) = weights.taps(output);
        let (whole, rest) = out_row.as_chunks_mut::<ROW_SAMPLES>();
        let mut first = start * row;
        for samples in whole {
            weighted_sums(&source[first..], row, taps, weights.precision, samples);
            first += ROW_SAMPLES;
        }
        for sample in rest {
            let single = std::array::from_mut(sample);
            weighted_sums(&source[first..], row, taps, weights.precision, single);
            first += 1;
        }
    }
    target
}

/// `N` neighbouring sums of `taps[t] * source[t * stride + i]`, rounded and clipped to 8 bits.
fn weighted_sums<const N: usize>(
    source: &[u8],
    stride: usize,
    taps: &[i32],
    precision: u32,
    out: &mut [u8; N],
) {
    let mut sums = [1i32 << (precision - 1); N];
    for (&weight, line) in taps.iter().zip(source.chunks(stride)) {
        for (sum, &sample) in sums.iter_mut().zip(&line[..N]) {
            *sum += weight * i32::from(sample);
        }
    }
    for (sample, sum) in out.iter_mut().zip(sums) {
        *sample = (sum >> precision).clamp(0, 255) as u8;
    }
}
