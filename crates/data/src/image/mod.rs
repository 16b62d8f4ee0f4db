//! From an image file to the patches that the vision tower takes.
//!
//! [`mod@decode`] reads files as Pillow's `Image.open(path).convert("RGB")` does, [`mod@resize`]
//! resamples as torchvision or Pillow do. How images are resized, normalised and cut is the [`kind`] that the
//! model folder names: one file a kind, [`qwen`] being the only one. Nothing here knows of text or batches; every
//! type is `Send + Sync`, so threads share one [`ImageProcessor`].

mod coefficients;
pub mod config;
pub mod decode;
mod error;
mod gif;
mod inflate;
mod jpeg;
pub mod kind;
mod orientation;
mod png;
mod processor;
pub mod qwen;
pub mod resize;

pub use config::ImageProcessorConfig;
pub use decode::{
    MAX_DECODED_PIXELS, check_magic, decode, decode_file, extension, other_size, read_file,
    size_of_file,
};
pub use error::{ImageCause, ImageError};
pub use kind::{ImageOptions, ImageShape, PixelBounds, Prepare};
pub use orientation::{Orientation, decode_upright};
pub use processor::ImageProcessor;
pub use qwen::{QwenImages, patchify, smart_resize};
pub use resize::{Filter, ResizeBackend, resize, resize_backend};

/// An image of 8-bit red, green and blue samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// Takes `[height, width, 3]` samples, row-major.
    ///
    /// # Panics
    /// If the number of samples is not `3 * width * height`.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Self {
        let expected = 3 * width as usize * height as usize;
        assert_eq!(pixels.len(), expected, "samples of a {width}x{height} image");
        Self { width, height, pixels }
    }

    /// Width, px.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height, px.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Samples, `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}
