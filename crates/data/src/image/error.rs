//! What can go wrong between an image file and its patches.

use std::path::{Path, PathBuf};

/// An image or an image processor's settings that cannot be used, with the file it stands in.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An image file cannot be read, decoded or prepared.
    #[error("{}: {cause}", path.display())]
    File {
        /// The image file.
        path: PathBuf,
        /// Why it cannot be used.
        cause: ImageCause,
    },
    /// A model folder has no settings of an image processor.
    #[error(
        "{}: no image processor settings: expected `preprocessor_config.json`, or `processor_config.json` with `image_processor`",
        dir.display()
    )]
    NoConfig {
        /// The model folder.
        dir: PathBuf,
    },
    /// A settings file exists but cannot be read.
    #[error("{}: {source}", path.display())]
    UnreadableConfig {
        /// The settings file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A settings file is not the JSON that is expected.
    #[error("{}: {source}", path.display())]
    BrokenConfig {
        /// The settings file.
        path: PathBuf,
        /// Where and why reading stopped.
        source: serde_json::Error,
    },
    /// A kind of image processor that there is not.
    #[error("image processor: `image_processor_type`: got `{got}`, expected one of {known}")]
    UnknownKind {
        /// The name as given.
        got: String,
        /// The names that there are.
        known: String,
    },
    /// The model takes other patches than the image processor makes.
    #[error("{}: {reason}", path.display())]
    OtherModel {
        /// The model's configuration.
        path: PathBuf,
        /// In what they differ.
        reason: String,
    },
    /// A setting has an unsupported value.
    #[error("image processor: `{key}`: got {got}, expected {expected}")]
    BadSetting {
        /// The setting's key.
        key: &'static str,
        /// Its value.
        got: String,
        /// The supported values.
        expected: &'static str,
    },
}

impl ImageError {
    pub(super) fn file(path: &Path, cause: ImageCause) -> Self {
        Self::File { path: path.to_owned(), cause }
    }
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageCause {
    /// Nothing at that path.
    #[error("no such file")]
    Missing,
    /// A folder, a pipe or a device.
    #[error("not a regular file")]
    NotAFile,
    /// The system refuses to read it.
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// Zero bytes.
    #[error("empty file, expected an image")]
    Empty,
    /// The first bytes are not those of a known image format.
    #[error("not an image: starts with {magic}, expected PNG, JPEG, WebP, GIF or BMP")]
    NotAnImage {
        /// The first bytes, named where they are known.
        magic: String,
    },
    /// The data end too early.
    #[error("truncated {format}: {detail}")]
    Truncated {
        /// The file's format.
        format: &'static str,
        /// Where the data end.
        detail: String,
    },
    /// The data contradict the format.
    #[error("corrupt {format}: {detail}")]
    Corrupt {
        /// The file's format.
        format: &'static str,
        /// What the decoder met.
        detail: String,
    },
    /// A valid file of a kind that is not read.
    #[error("unsupported {format}: {detail}\nhint: convert it, to PNG or to baseline JPEG")]
    Unsupported {
        /// The file's format.
        format: &'static str,
        /// What is not supported.
        detail: String,
    },
    /// More pixels than may be decoded.
    #[error("{width}x{height} px is over the bound of {max_pixels} pixels")]
    TooLarge {
        /// Declared width, px.
        width: u64,
        /// Declared height, px.
        height: u64,
        /// The bound on width times height.
        max_pixels: u64,
    },
    /// A side of zero pixels.
    #[error("{width}x{height} px: an image needs both sides")]
    NoPixels {
        /// Declared width, px.
        width: u64,
        /// Declared height, px.
        height: u64,
    },
    /// The long side is more than 200 times the short one.
    #[error("{width}x{height} px: the sides' ratio is over 200")]
    ExtremeAspectRatio {
        /// Width, px.
        width: u32,
        /// Height, px.
        height: u32,
    },
    /// With `do_resize` off, a side that patches do not fill.
    #[error("{width}x{height} px: `do_resize` is off and the sides are no multiples of {factor}")]
    NotDivisible {
        /// Width, px.
        width: u32,
        /// Height, px.
        height: u32,
        /// `patch_size * merge_size`, px.
        factor: u32,
    },
}
