//! Kinds of image processors: which there are, and which one a model folder asks for.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{ImageLayout, PreparedImage};
use serde::Deserialize;
use serde_json::Value;

use super::{ImageCause, ImageError, ResizeBackend, RgbImage, qwen};

/// What makes the images of one kind of models: how they are resized, normalised and cut.
pub trait Prepare: Debug + Send + Sync {
    /// The shape that [`Prepare::prepare`] gives an image of this size, px.
    ///
    /// # Errors
    /// As [`Prepare::prepare`].
    fn shape(&self, width: u32, height: u32) -> Result<ImageShape, ImageCause>;

    /// Resizes, normalises and cuts an image into patches.
    ///
    /// # Errors
    /// A shape that is not supported.
    fn prepare(&self, image: &RgbImage) -> Result<PreparedImage, ImageCause>;

    /// Side of a patch, px.
    fn patch_size(&self) -> u32;

    /// Side of what becomes one token, px.
    fn token_side(&self) -> u32;

    /// Least and most pixels after resizing.
    fn pixel_bounds(&self) -> PixelBounds;

    /// Whether the model of this `config.json` takes such patches; what is wrong in words.
    ///
    /// # Errors
    /// It does not.
    fn check_model(&self, config: &Value) -> Result<(), String>;
}

/// What becomes of an image of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Tiles, and the tokens that stand for them.
    pub layout: ImageLayout,
    /// Width and height that the model sees, px.
    pub input_size: [u32; 2],
}

/// `size` of an image processor: numbers of pixels, whatever the names say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "super::config::SizeKeys")]
pub struct PixelBounds {
    /// Least pixels after resizing.
    pub shortest_edge: u64,
    /// Most pixels after resizing.
    pub longest_edge: u64,
}

/// How a run departs from the settings of a model folder.
#[derive(Clone, Copy, Debug)]
pub struct ImageOptions {
    /// Whose resize to reproduce.
    pub backend: ResizeBackend,
    /// Least pixels after resizing, in place of the folder's.
    pub min_pixels: Option<u64>,
    /// Most pixels after resizing, in place of the folder's.
    pub max_pixels: Option<u64>,
    /// Whether an image with a side under 28 px is first enlarged to it with Lanczos, as VLM-R1 does; transformers alone does not.
    pub enlarge_tiny: bool,
}

impl ImageOptions {
    /// The folder's settings, and tiny images enlarged.
    pub fn new(backend: ResizeBackend) -> Self {
        Self { backend, min_pixels: None, max_pixels: None, enlarge_tiny: true }
    }
}

/// Makes a processor of settings, which the file of this path holds.
type Build = fn(Value, &Path, &ImageOptions) -> Result<Arc<dyn Prepare>, ImageError>;

/// A kind of image processors.
pub(super) struct Kind {
    /// `image_processor_type` of its settings.
    pub types: &'static [&'static str],
    /// Takes settings, which the file of this path holds.
    pub build: Build,
    /// Keys in which two settings differ.
    pub differences: fn(&Value, &Value) -> Vec<&'static str>,
}

/// All kinds. Settings that name none are of the first. A further one is a file and a line here.
const KINDS: [Kind; 1] = [qwen::KIND];

/// What a model folder asks for: `image_processor` of `processor_config.json`, else `preprocessor_config.json`, the order of
/// transformers.
///
/// # Errors
/// Neither file has settings, or they are not supported.
pub(super) fn from_dir(dir: &Path, options: &ImageOptions) -> Result<Arc<dyn Prepare>, ImageError> {
    let nested_in = dir.join("processor_config.json");
    let flat_in = dir.join("preprocessor_config.json");
    let flat = read_json(&flat_in)?;
    let nested = read_json(&nested_in)?.and_then(|mut settings| {
        let nested = settings.get_mut("image_processor").map(Value::take);
        nested.filter(|nested| !nested.is_null())
    });
    let (settings, path) = match (nested, &flat) {
        (Some(nested), _) => (nested, nested_in),
        (None, Some(flat)) => (flat.clone(), flat_in),
        (None, None) => return Err(ImageError::NoConfig { dir: dir.to_owned() }),
    };
    let kind = kind_of(&settings)?;
    let keys = flat.map(|flat| (kind.differences)(&settings, &flat)).unwrap_or_default();
    if !keys.is_empty() {
        base::console::say_once(&format!(
            "warning: {}: `image_processor` of `processor_config.json` is taken, as in transformers; `preprocessor_config.json` \
             differs in `{}`",
            dir.display(),
            keys.join("`, `")
        ));
    }
    (kind.build)(settings, &path, options)
}

/// The first kind with its own settings, where no model says otherwise.
///
/// # Errors
/// Options that contradict one another.
pub(super) fn without_model(options: &ImageOptions) -> Result<Arc<dyn Prepare>, ImageError> {
    (KINDS[0].build)(Value::Object(Default::default()), &PathBuf::new(), options)
}

fn kind_of(settings: &Value) -> Result<&'static Kind, ImageError> {
    const ALL: &[Kind] = &KINDS;
    let name = match settings.get("image_processor_type") {
        None | Some(Value::Null) => return Ok(&ALL[0]),
        Some(Value::String(name)) => name.as_str(),
        Some(other) => return Err(unknown_kind(other.to_string())),
    };
    let named = ALL.iter().find(|kind| kind.types.contains(&name));
    named.ok_or_else(|| unknown_kind(name.to_owned()))
}

fn unknown_kind(got: String) -> ImageError {
    let known = KINDS.iter().flat_map(|kind| kind.types).map(|name| format!("`{name}`"));
    ImageError::UnknownKind { got, known: known.collect::<Vec<_>>().join(", ") }
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
