//! `Qwen2VLImageProcessor` (transformers 5.17): `smart_resize`, rescale, normalise, patchify.
//!
//! The samples are 8-bit until the last step, so rescaling and normalising are one look-up in a
//! table of 256 values per channel, filled with the arithmetic of the backend that is followed.

use std::path::Path;

use base::{ImageLayout, PreparedImage};

use super::resize::{Filter, ResizeBackend, resize};
use super::{
    ImageCause, ImageError, ImageProcessorConfig, MAX_DECODED_PIXELS, RgbImage, decode_upright,
};

/// The long side may be this many times the short one.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// The value of each 8-bit sample, per channel.
type SampleTable = [[f32; 256]; 3];

/// Turns image files into patches, each on its own.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    backend: ResizeBackend,
    filter: Filter,
    table: Box<SampleTable>,
    enlarge_tiny: bool,
    apply_exif: bool,
    max_decoded_pixels: u64,
}

impl ImageProcessor {
    /// Reads the settings of a model folder.
    ///
    /// # Errors
    /// The folder has no settings, or unsupported ones.
    pub fn from_dir(dir: &Path, backend: ResizeBackend) -> Result<Self, ImageError> {
        Self::new(ImageProcessorConfig::from_dir(dir)?, backend)
    }

    /// Takes settings as they are. Tiny images are enlarged, and files are decoded up to
    /// [`MAX_DECODED_PIXELS`], unless told otherwise.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn new(config: ImageProcessorConfig, backend: ResizeBackend) -> Result<Self, ImageError> {
        let filter = config.check(backend)?;
        Ok(Self {
            table: Box::new(sample_table(&config, backend)),
            config,
            backend,
            filter,
            enlarge_tiny: true,
            apply_exif: false,
            max_decoded_pixels: MAX_DECODED_PIXELS,
        })
    }

    /// Overrides the bounds on the number of pixels after resizing, where given.
    ///
    /// # Errors
    /// The least is zero or over the most.
    pub fn with_pixel_bounds(
        mut self,
        min_pixels: Option<u64>,
        max_pixels: Option<u64>,
    ) -> Result<Self, ImageError> {
        self.config.min_pixels = min_pixels.or(self.config.min_pixels);
        self.config.max_pixels = max_pixels.or(self.config.max_pixels);
        self.config.check(self.backend)?;
        Ok(self)
    }

    /// Whether an image with a side under [`ImageProcessorConfig::factor`] is first enlarged to it
    /// with Lanczos, as VLM-R1 does; transformers alone does not.
    pub fn with_enlarge_tiny(mut self, enlarge_tiny: bool) -> Self {
        self.enlarge_tiny = enlarge_tiny;
        self
    }

    /// Whether a file is turned as its orientation says, as transformers' `load_image` does; VLM-R1 does not.
    pub fn with_apply_exif(mut self, apply_exif: bool) -> Self {
        self.apply_exif = apply_exif;
        self
    }

    /// Whether files are turned as their orientation says.
    pub fn applies_exif(&self) -> bool {
        self.apply_exif
    }

    /// Overrides the most pixels that a file may declare.
    pub fn with_max_decoded_pixels(mut self, max_decoded_pixels: u64) -> Self {
        self.max_decoded_pixels = max_decoded_pixels;
        self
    }

    /// The settings in force.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// Reads, decodes and prepares an image file.
    ///
    /// # Errors
    /// [`ImageError::File`], with the path and the cause.
    pub fn load(&self, path: &Path) -> Result<PreparedImage, ImageError> {
        let image = decode_upright(path, self.max_decoded_pixels, self.apply_exif)?;
        self.prepare(&image).map_err(|cause| ImageError::file(path, cause))
    }

    /// Resizes, normalises and cuts an image into patches.
    ///
    /// # Errors
    /// The sides' ratio is over 200, or resizing is off and patches do not fill the sides.
    pub fn prepare(&self, image: &RgbImage) -> Result<PreparedImage, ImageCause> {
        let original_size = [image.width(), image.height()];
        // Before anything is enlarged: a strip one pixel high could not be held 28 times larger.
        check_aspect_ratio(image.width(), image.height())?;
        let factor = self.config.factor();
        let enlarged = if self.enlarge_tiny { enlarge_to(image, factor) } else { None };
        let image = enlarged.as_ref().unwrap_or(image);
        let resized = self.resize(image)?;
        let (width, height) = (resized.width(), resized.height());
        let patch_size = self.config.patch_size;
        Ok(PreparedImage::new(
            patchify(
                &resized,
                &self.table,
                patch_size as usize,
                self.config.merge_size as usize,
                self.config.temporal_patch_size as usize,
            ),
            self.layout_of([1, (height / patch_size) as usize, (width / patch_size) as usize]),
            original_size,
            [width, height],
        ))
    }

    /// The layout of an image of `grid_thw` patches.
    fn layout_of(&self, grid_thw: [usize; 3]) -> ImageLayout {
        ImageLayout::merged(grid_thw, self.config.merge_size as usize)
    }

    /// The layout of an image of this size, px: that which [`ImageProcessor::prepare`] gives it.
    ///
    /// # Errors
    /// As [`ImageProcessor::prepare`].
    pub fn layout(&self, width: u32, height: u32) -> Result<ImageLayout, ImageCause> {
        self.grid(width, height).map(|grid| self.layout_of(grid))
    }

    /// Patches in time, height and width of an image of this size, px: those that
    /// [`ImageProcessor::prepare`] would cut it into.
    ///
    /// # Errors
    /// As [`ImageProcessor::prepare`].
    pub fn grid(&self, width: u32, height: u32) -> Result<[usize; 3], ImageCause> {
        check_aspect_ratio(width, height)?;
        let enlarged = match self.enlarge_tiny {
            true => enlarged_size(width, height, self.config.factor()),
            false => None,
        };
        let (width, height) = enlarged.unwrap_or((width, height));
        let (width, height) = self.resized_size(width, height)?;
        let patches = |side: u32| (side / self.config.patch_size) as usize;
        Ok([1, patches(height), patches(width)])
    }

    fn resize(&self, image: &RgbImage) -> Result<RgbImage, ImageCause> {
        let (new_width, new_height) = self.resized_size(image.width(), image.height())?;
        if !self.config.do_resize {
            return Ok(image.clone());
        }
        Ok(resize(image, new_width, new_height, self.filter, self.backend))
    }

    /// Width and height after resizing.
    fn resized_size(&self, width: u32, height: u32) -> Result<(u32, u32), ImageCause> {
        let factor = self.config.factor();
        if !self.config.do_resize {
            if !width.is_multiple_of(factor) || !height.is_multiple_of(factor) {
                return Err(ImageCause::NotDivisible { width, height, factor });
            }
            return Ok((width, height));
        }
        let bounds = self.config.pixel_bounds();
        let (new_height, new_width) =
            smart_resize(height, width, factor, bounds.shortest_edge, bounds.longest_edge)?;
        Ok((new_width, new_height))
    }
}

/// Height and width nearest to an image's that are multiples of `factor` and, times each other,
/// between `min_pixels` and `max_pixels`, at nearly the same aspect ratio.
///
/// # Errors
/// The sides' ratio is over 200.
pub fn smart_resize(
    height: u32,
    width: u32,
    factor: u32,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(u32, u32), ImageCause> {
    check_aspect_ratio(width, height)?;
    let (h, w, step) = (f64::from(height), f64::from(width), f64::from(factor));
    let area = h * w;
    // Python's `round`: halves go to the even neighbour.
    let mut sides = [h, w].map(|side| (side / step).round_ties_even() * step);
    let pixels = sides[0] * sides[1];
    if pixels > max_pixels as f64 {
        let shrink = (area / max_pixels as f64).sqrt();
        sides = [h, w].map(|side| ((side / shrink / step).floor() * step).max(step));
    } else if pixels < min_pixels as f64 {
        let grow = (min_pixels as f64 / area).sqrt();
        sides = [h, w].map(|side| (side * grow / step).ceil() * step);
    }
    let [new_height, new_width] = sides.map(|side| side as u32);
    Ok((new_height, new_width))
}

fn check_aspect_ratio(width: u32, height: u32) -> Result<(), ImageCause> {
    let (long, short) = (width.max(height), width.min(height));
    if f64::from(long) / f64::from(short) > MAX_ASPECT_RATIO {
        return Err(ImageCause::ExtremeAspectRatio { width, height });
    }
    Ok(())
}

/// The image with its short side enlarged to `side` px, or nothing if it is long enough.
fn enlarge_to(image: &RgbImage, side: u32) -> Option<RgbImage> {
    let (new_width, new_height) = enlarged_size(image.width(), image.height(), side)?;
    Some(resize(image, new_width, new_height, Filter::Lanczos, ResizeBackend::Pillow))
}

fn enlarged_size(width: u32, height: u32, side: u32) -> Option<(u32, u32)> {
    if width >= side && height >= side {
        return None;
    }
    let stretch =
        |long: u32, short: u32| (f64::from(long) * (f64::from(side) / f64::from(short))) as u32;
    Some(if width < height {
        (side, stretch(height, width))
    } else {
        (stretch(width, height), side)
    })
}

fn sample_table(config: &ImageProcessorConfig, backend: ResizeBackend) -> SampleTable {
    std::array::from_fn(|channel| {
        let (mean, std) = (config.image_mean[channel], config.image_std[channel]);
        std::array::from_fn(|sample| match backend {
            ResizeBackend::Torchvision => torchvision_value(config, sample as f32, mean, std),
            ResizeBackend::Pillow => pillow_value(config, sample as f32, mean, std),
        })
    })
}

/// Rescaling fused into mean and deviation, all in f32.
fn torchvision_value(config: &ImageProcessorConfig, sample: f32, mean: f64, std: f64) -> f32 {
    let (mean, std) = (mean as f32, std as f32);
    match (config.do_rescale, config.do_normalize) {
        (true, true) => {
            let inverse = (1.0 / config.rescale_factor) as f32;
            (sample - mean * inverse) / (std * inverse)
        }
        (false, true) => (sample - mean) / std,
        (true, false) => sample * config.rescale_factor as f32,
        (false, false) => sample,
    }
}

/// Rescaling in f64, rounded to f32, then normalising in f32.
fn pillow_value(config: &ImageProcessorConfig, sample: f32, mean: f64, std: f64) -> f32 {
    let rescaled =
        if config.do_rescale { (f64::from(sample) * config.rescale_factor) as f32 } else { sample };
    if config.do_normalize { (rescaled - mean as f32) / std as f32 } else { rescaled }
}

/// Cuts an image into patches, in the order in which the model merges them.
///
/// # Shapes
/// From `[height, width, 3]` samples to
/// `[height / (merge * patch), width / (merge * patch), merge, merge, 3, temporal, patch, patch]`,
/// flat; the first four axes number the patches.
///
/// # Panics
/// If the sides are not multiples of `patch_size * merge_size`.
pub fn patchify(
    image: &RgbImage,
    table: &SampleTable,
    patch_size: usize,
    merge_size: usize,
    temporal_patch_size: usize,
) -> Vec<f32> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let block = patch_size * merge_size;
    assert!(
        width.is_multiple_of(block) && height.is_multiple_of(block),
        "{width}x{height} px in blocks of {block} px"
    );
    let mut values = Vec::with_capacity(3 * width * height * temporal_patch_size);
    for block_top in (0..height).step_by(block) {
        for block_left in (0..width).step_by(block) {
            for top in (block_top..block_top + block).step_by(patch_size) {
                for left in (block_left..block_left + block).step_by(patch_size) {
                    let corner = 3 * (top * width + left);
                    for (channel, table) in table.iter().enumerate() {
                        let samples = &image.pixels()[corner + channel..];
                        let start = values.len();
                        push_patch(&mut values, samples, table, patch_size, 3 * width);
                        let end = values.len();
                        // A still image shows the same in every frame of the patch.
                        for _ in 1..temporal_patch_size {
                            values.extend_from_within(start..end);
                        }
                    }
                }
            }
        }
    }
    values
}

/// Appends one channel of one patch; `samples` starts at the patch's first sample of that channel.
fn push_patch(
    values: &mut Vec<f32>,
    samples: &[u8],
    table: &[f32; 256],
    patch_size: usize,
    row: usize,
) {
    for line in samples.chunks(row).take(patch_size) {
        let channel = line.iter().step_by(3).take(patch_size);
        values.extend(channel.map(|&sample| table[usize::from(sample)]));
    }
}
