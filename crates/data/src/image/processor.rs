//! From an image file to patches: decoding, then what the model's kind makes of it.

use std::path::Path;
use std::sync::Arc;

use base::PreparedImage;
use serde_json::Value;

use super::kind::{self, ImageOptions, Prepare};
use super::{ImageCause, ImageError, MAX_DECODED_PIXELS, RgbImage, decode_upright};

/// Turns image files into patches, each on its own.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    kind: Arc<dyn Prepare>,
    apply_exif: bool,
    max_decoded_pixels: u64,
}

impl ImageProcessor {
    /// Reads the settings of a model folder.
    ///
    /// # Errors
    /// The folder has no settings, or unsupported ones.
    pub fn from_dir(dir: &Path, options: &ImageOptions) -> Result<Self, ImageError> {
        Ok(Self::new(kind::from_dir(dir, options)?))
    }

    /// That of VLM-R1's own runs, where no model folder says how images are resized.
    ///
    /// # Errors
    /// Options that contradict one another.
    pub fn without_model(options: &ImageOptions) -> Result<Self, ImageError> {
        Ok(Self::new(kind::without_model(options)?))
    }

    /// Images of this kind. Files are decoded up to [`MAX_DECODED_PIXELS`], unless told otherwise.
    pub fn new(kind: Arc<dyn Prepare>) -> Self {
        Self { kind, apply_exif: false, max_decoded_pixels: MAX_DECODED_PIXELS }
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

    /// How images are resized and cut.
    pub fn kind(&self) -> &dyn Prepare {
        self.kind.as_ref()
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
    /// A shape that is not supported.
    pub fn prepare(&self, image: &RgbImage) -> Result<PreparedImage, ImageCause> {
        self.kind.prepare(image)
    }

    /// Whether the model of a folder takes such patches, by its `config.json`.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check_model(&self, dir: &Path, config: &Value) -> Result<(), ImageError> {
        let path = dir.join("config.json");
        self.kind.check_model(config).map_err(|reason| ImageError::OtherModel { path, reason })
    }
}
