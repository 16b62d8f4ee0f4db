//! Settings of [`super::qwen`], key for key as `preprocessor_config.json` has them.
//!
//! Keys that are absent or null take the defaults of `Qwen2VLImageProcessor` (transformers 5.17).

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::kind::PixelBounds;
use super::{Filter, ImageError, ResizeBackend};

/// What an image processor does; see `Qwen2VLImageProcessor` of transformers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ImageProcessorConfig {
    /// Side of a patch, px.
    pub patch_size: u32,
    /// Frames of a patch: a still image is repeated that often.
    pub temporal_patch_size: u32,
    /// Patches merged per axis by the model.
    pub merge_size: u32,
    /// Least pixels after resizing; wins over `size`.
    pub min_pixels: Option<u64>,
    /// Most pixels after resizing; wins over `size`.
    pub max_pixels: Option<u64>,
    /// Bounds as transformers 5 writes them.
    pub size: PixelBounds,
    /// Mean per channel.
    pub image_mean: [f64; 3],
    /// Standard deviation per channel.
    pub image_std: [f64; 3],
    /// Factor that takes samples to `[0, 1]`.
    pub rescale_factor: f64,
    /// Whether to resize.
    pub do_resize: bool,
    /// Whether to multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// Whether to subtract the mean and divide by the standard deviation.
    pub do_normalize: bool,
    /// Whether to convert to RGB; only `true` is supported.
    pub do_convert_rgb: bool,
    /// Filter, by Pillow's number: 1 Lanczos, 2 bilinear, 3 bicubic.
    pub resample: u32,
}

/// `size` as files have it: in part, and under older names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SizeKeys {
    shortest_edge: Option<u64>,
    longest_edge: Option<u64>,
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
}

impl From<SizeKeys> for PixelBounds {
    fn from(keys: SizeKeys) -> Self {
        let or =
            |value: Option<u64>, older: Option<u64>, default| value.or(older).unwrap_or(default);
        let default = Self::default();
        Self {
            shortest_edge: or(keys.shortest_edge, keys.min_pixels, default.shortest_edge),
            longest_edge: or(keys.longest_edge, keys.max_pixels, default.longest_edge),
        }
    }
}

impl Default for PixelBounds {
    fn default() -> Self {
        Self { shortest_edge: 56 * 56, longest_edge: 28 * 28 * 1280 }
    }
}

impl Default for ImageProcessorConfig {
    fn default() -> Self {
        Self {
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            min_pixels: None,
            max_pixels: None,
            size: PixelBounds::default(),
            // CLIP's.
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            rescale_factor: 1.0 / 255.0,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            do_convert_rgb: true,
            resample: 3,
        }
    }
}

impl ImageProcessorConfig {
    /// Keys that another has other values of.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (bounds, others) = (self.pixel_bounds(), other.pixel_bounds());
        let same = [
            ("patch_size", self.patch_size == other.patch_size),
            ("temporal_patch_size", self.temporal_patch_size == other.temporal_patch_size),
            ("merge_size", self.merge_size == other.merge_size),
            ("min_pixels", bounds.shortest_edge == others.shortest_edge),
            ("max_pixels", bounds.longest_edge == others.longest_edge),
            ("image_mean", self.image_mean == other.image_mean),
            ("image_std", self.image_std == other.image_std),
            ("rescale_factor", self.rescale_factor == other.rescale_factor),
            ("do_resize", self.do_resize == other.do_resize),
            ("do_rescale", self.do_rescale == other.do_rescale),
            ("do_normalize", self.do_normalize == other.do_normalize),
            ("do_convert_rgb", self.do_convert_rgb == other.do_convert_rgb),
            ("resample", self.resample == other.resample),
        ];
        let differing = same.into_iter().filter(|(_, same)| !same);
        differing.map(|(key, _)| key).collect()
    }

    pub(super) fn parse(mut settings: Value) -> Result<Self, serde_json::Error> {
        if let Value::Object(keys) = &mut settings {
            keys.retain(|_, value| !value.is_null());
        }
        serde_json::from_value(settings)
    }

    /// The settings, and what is said of keys that contradict one another.
    pub(super) fn from_json(settings: Value, path: &Path) -> Result<Self, ImageError> {
        let size = settings.get("size").filter(|size| !size.is_null()).cloned();
        let read = Self::parse(settings)
            .map_err(|source| ImageError::BrokenConfig { path: path.to_owned(), source })?;
        let Some(size) = size else {
            return Ok(read);
        };
        let say =
            |text: String| base::console::say_once(&format!("warning: {}: {text}", path.display()));
        for (key, edge, given, of_size) in [
            ("min_pixels", "shortest_edge", read.min_pixels, read.size.shortest_edge),
            ("max_pixels", "longest_edge", read.max_pixels, read.size.longest_edge),
        ] {
            let in_size = [edge, key].map(|key| size.get(key).and_then(Value::as_u64));
            match (in_size, given) {
                ([None, None], None) => say(format!(
                    "`size` has no `{edge}`: {of_size} is taken, the default; transformers resizes no image by it"
                )),
                ([Some(edges), Some(pixels)], None) if edges != pixels => {
                    say(format!("`{edge}` {edges} of `size` is taken; its `{key}` is {pixels}"))
                }
                ([None, None], Some(_)) => {}
                (_, Some(given)) if given != of_size => say(format!(
                    "`{key}` {given} is taken, as in transformers; `size` has {of_size}"
                )),
                _ => {}
            }
        }
        Ok(read)
    }

    /// Bounds on the number of pixels after resizing.
    pub fn pixel_bounds(&self) -> PixelBounds {
        PixelBounds {
            shortest_edge: self.min_pixels.unwrap_or(self.size.shortest_edge),
            longest_edge: self.max_pixels.unwrap_or(self.size.longest_edge),
        }
    }

    /// Side of what becomes one token: both sides of a prepared image are multiples of it, px.
    pub fn factor(&self) -> u32 {
        self.patch_size * self.merge_size
    }

    /// Refuses unsupported settings; returns the filter of `resample`.
    pub(super) fn check(&self, backend: ResizeBackend) -> Result<Filter, ImageError> {
        let bad = |key, got: String, expected| ImageError::BadSetting { key, got, expected };
        for (key, value) in [
            ("patch_size", self.patch_size),
            ("temporal_patch_size", self.temporal_patch_size),
            ("merge_size", self.merge_size),
        ] {
            if !(1..=1024).contains(&value) {
                return Err(bad(key, value.to_string(), "a number from 1 to 1024"));
            }
        }
        let bounds = self.pixel_bounds();
        if bounds.shortest_edge == 0 {
            return Err(bad("min_pixels", "0".to_owned(), "at least 1"));
        }
        if bounds.longest_edge < bounds.shortest_edge {
            let got = bounds.longest_edge.to_string();
            return Err(bad("max_pixels", got, "at least `min_pixels`"));
        }
        if self.image_std.iter().any(|&std| std == 0.0 || !std.is_finite()) {
            return Err(bad("image_std", format!("{:?}", self.image_std), "no zeros"));
        }
        if self.rescale_factor == 0.0 || !self.rescale_factor.is_finite() {
            return Err(bad("rescale_factor", self.rescale_factor.to_string(), "not 0"));
        }
        if !self.do_convert_rgb {
            return Err(bad("do_convert_rgb", "false".to_owned(), "true"));
        }
        match (self.resample, backend) {
            (1, ResizeBackend::Pillow) => Ok(Filter::Lanczos),
            (2, _) => Ok(Filter::Bilinear),
            (3, _) => Ok(Filter::Bicubic),
            (other, ResizeBackend::Pillow) => {
                let expected = "1 (Lanczos), 2 (bilinear) or 3 (bicubic)";
                Err(bad("resample", other.to_string(), expected))
            }
            (other, ResizeBackend::Torchvision) => {
                let expected = "2 (bilinear) or 3 (bicubic) with `torchvision`";
                Err(bad("resample", other.to_string(), expected))
            }
        }
    }
}
