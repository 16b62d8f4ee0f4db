//! `Qwen2VLImageProcessor` (transformers 5.17): `smart_resize`, rescale, normalise, patchify.
//!
//! The samples are 8-bit until the last step, so rescaling and normalising are one look-up in a
//! table of 256 values per channel, filled with the arithmetic of the backend that is followed.

use std::path::Path;
use std::sync::Arc;

use base::{ImageLayout, PreparedImage};
use serde_json::Value;

use super::kind::{ImageOptions, ImageShape, Kind, PixelBounds, Prepare};
use super::resize::{Filter, ResizeBackend, resize};
use super::{ImageCause, ImageError, ImageProcessorConfig, RgbImage};

/// Of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
pub(super) const KIND: Kind = Kind {
    types: &[
        "Qwen2VLImageProcessor",
        "Qwen2VLImageProcessorFast",
        "Qwen2VLImageProcessorPil",
        "Qwen2_5_VLImageProcessor",
    ],
    build,
    differences,
};

/// The long side may be this many times the short one.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// Sides under it are enlarged before all else, as VLM-R1's trainer does, px. It is one number whatever the patches: in VLM-R1 one
/// token of Qwen2.5-VL, and so less than one of Qwen3-VL.
const TINY_PX: u32 = 28;

/// The value of each 8-bit sample, per channel.
type SampleTable = [[f32; 256]; 3];

/// Turns images into patches, each on its own.
#[derive(Clone, Debug)]
pub struct QwenImages {
    config: ImageProcessorConfig,
    backend: ResizeBackend,
    filter: Filter,
    table: Box<SampleTable>,
    enlarge_tiny: bool,
}

fn build(
    settings: Value,
    path: &Path,
    options: &ImageOptions,
) -> Result<Arc<dyn Prepare>, ImageError> {
    let config = ImageProcessorConfig::from_json(settings, path)?;
    Ok(Arc::new(QwenImages::new(config, options)?))
}

/// Keys in which two settings differ; none where the others cannot be read.
fn differences(taken: &Value, other: &Value) -> Vec<&'static str> {
    let read = |settings: &Value| ImageProcessorConfig::parse(settings.clone()).ok();
    match (read(taken), read(other)) {
        (Some(taken), Some(other)) => taken.differences(&other),
        _ => Vec::new(),
    }
}

impl QwenImages {
    /// Takes settings, with the bounds of the options in place of theirs.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn new(
        mut config: ImageProcessorConfig,
        options: &ImageOptions,
    ) -> Result<Self, ImageError> {
        config.min_pixels = options.min_pixels.or(config.min_pixels);
        config.max_pixels = options.max_pixels.or(config.max_pixels);
        let filter = config.check(options.backend)?;
        Ok(Self {
            table: Box::new(sample_table(&config, options.backend)),
            config,
            backend: options.backend,
            filter,
            enlarge_tiny: options.enlarge_tiny,
        })
    }

    /// The settings in force.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// The layout of an image of this size after resizing, px.
    fn layout_of(&self, width: u32, height: u32) -> ImageLayout {
        let patches = |side: u32| (side / self.config.patch_size) as usize;
        ImageLayout::merged([1, patches(height), patches(width)], self.config.merge_size as usize)
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

impl Prepare for QwenImages {
    fn shape(&self, width: u32, height: u32) -> Result<ImageShape, ImageCause> {
        check_aspect_ratio(width, height)?;
        let enlarged = if self.enlarge_tiny { enlarged_size(width, height) } else { None };
        let (width, height) = enlarged.unwrap_or((width, height));
        let (width, height) = self.resized_size(width, height)?;
        Ok(ImageShape { layout: self.layout_of(width, height), input_size: [width, height] })
    }

    fn prepare(&self, image: &RgbImage) -> Result<PreparedImage, ImageCause> {
        let original_size = [image.width(), image.height()];
        // Before anything is enlarged: a strip one pixel high could not be held 28 times larger.
        check_aspect_ratio(image.width(), image.height())?;
        let enlarged = if self.enlarge_tiny { enlarge_tiny(image) } else { None };
        let image = enlarged.as_ref().unwrap_or(image);
        let resized = self.resize(image)?;
        let (width, height) = (resized.width(), resized.height());
        let values = patchify(
            &resized,
            &self.table,
            self.config.patch_size as usize,
            self.config.merge_size as usize,
            self.config.temporal_patch_size as usize,
        );
        let layout = self.layout_of(width, height);
        Ok(PreparedImage::new(values, layout, original_size, [width, height]))
    }

    fn patch_size(&self) -> u32 {
        self.config.patch_size
    }

    fn token_side(&self) -> u32 {
        self.config.factor()
    }

    fn pixel_bounds(&self) -> PixelBounds {
        self.config.pixel_bounds()
    }

    /// Refuses images that are cut into other patches than the model takes.
    fn check_model(&self, config: &Value) -> Result<(), String> {
        let images = &self.config;
        for (key, of_model, of_images) in [
            ("merge_size", "spatial_merge_size", images.merge_size),
            ("patch_size", "patch_size", images.patch_size),
            ("temporal_patch_size", "temporal_patch_size", images.temporal_patch_size),
        ] {
            let given = config.get("vision_config").and_then(|vision| vision.get(of_model));
            let given = given.and_then(Value::as_u64);
            if let Some(given) = given.filter(|given| *given != u64::from(of_images)) {
                return Err(format!(
                    "`vision_config.{of_model}` is {given}, but `{key}` of the image processor is {of_images}\n\
                     hint: config.json and preprocessor_config.json are of different models"
                ));
            }
        }
        Ok(())
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

/// The image with its short side enlarged to [`TINY_PX`], or nothing if it is long enough.
fn enlarge_tiny(image: &RgbImage) -> Option<RgbImage> {
    let (new_width, new_height) = enlarged_size(image.width(), image.height())?;
    Some(resize(image, new_width, new_height, Filter::Lanczos, ResizeBackend::Pillow))
}

fn enlarged_size(width: u32, height: u32) -> Option<(u32, u32)> {
    let side = TINY_PX;
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
