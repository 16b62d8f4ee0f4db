//! Settings of an image processor, key for key as `preprocessor_config.json` has them.
//!
//! Keys that are absent or null take the defaults of `Qwen2VLImageProcessor` (transformers 5.17).

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Filter, ImageError, ResizeBackend};

/// Classes whose `smart_resize` and patch layout [`super::preprocess`] follows.
const KNOWN_TYPES: [&str; 4] = [
    "Qwen2VLImageProcessor",
    "Qwen2VLImageProcessorFast",
    "Qwen2VLImageProcessorPil",
    "Qwen2_5_VLImageProcessor",
];

/// What an image processor does; see `Qwen2VLImageProcessor` of transformers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ImageProcessorConfig {
    /// The class that wrote the settings.
    pub image_processor_type: Option<String>,
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

/// `size` of an image processor: numbers of pixels, whatever the names say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "SizeKeys")]
pub struct PixelBounds {
    /// Least pixels after resizing.
    pub shortest_edge: u64,
    /// Most pixels after resizing.
    pub longest_edge: u64,
}

/// `size` as files have it: in part, and under older names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeKeys {
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
            image_processor_type: None,
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
    /// Reads a model folder: `image_processor` of `processor_config.json`, else
    /// `preprocessor_config.json`, the order of transformers.
    ///
    /// # Errors
    /// Neither file has settings, or they are no JSON of the expected shape.
    pub fn from_dir(dir: &Path) -> Result<Self, ImageError> {
        let nested_in = dir.join("processor_config.json");
        let flat_in = dir.join("preprocessor_config.json");
        let flat = read_json(&flat_in)?;
        if let Some(Value::Object(mut settings)) = read_json(&nested_in)?
            && let Some(nested) = settings.remove("image_processor")
            && !nested.is_null()
        {
            let taken = Self::from_json(nested, &nested_in)?;
            // What cannot be read does not count.
            let other = flat.and_then(|flat| Self::from_json(flat, &flat_in).ok());
            let keys = other.map(|other| taken.differences(&other));
            if let Some(keys) = keys.filter(|keys| !keys.is_empty()) {
                base::console::say_once(&format!(
                    "warning: {}: `image_processor` of `processor_config.json` is taken, as in transformers; `preprocessor_config.json` \
                     differs in `{}`",
                    dir.display(),
                    keys.join("`, `")
                ));
            }
            return Ok(taken);
        }
        match flat {
            Some(settings) => Self::from_json(settings, &flat_in),
            None => Err(ImageError::NoConfig { dir: dir.to_owned() }),
        }
    }

    /// Keys that another has other values of.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
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

    fn from_json(mut settings: Value, path: &Path) -> Result<Self, ImageError> {
        if let Value::Object(keys) = &mut settings {
            keys.retain(|_, value| !value.is_null());
        }
        let size = settings.get("size").cloned();
        let read: Self = serde_json::from_value(settings)
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
        if let Some(name) = &self.image_processor_type
            && !KNOWN_TYPES.contains(&name.as_str())
        {
            let expected = "an image processor of Qwen2-VL or Qwen2.5-VL";
            return Err(bad("image_processor_type", format!("`{name}`"), expected));
        }
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

/// The JSON of a file, or nothing if there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, ImageError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ImageError::UnreadableConfig { path: path.to_owned(), source });
        }
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|source| ImageError::BrokenConfig { path: path.to_owned(), source })
}
