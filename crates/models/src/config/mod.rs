//! Reading `config.json`: the hub's flat form and the nested one of transformers 5. Families add what is their own.

mod conflicts;
mod text;
mod vision;

use std::path::{Path, PathBuf};

use base::model_folder::read_config;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ModelError;
use conflicts::{check_quantization, check_weights_key, contradictions, tied};

pub use text::{RopeParameters, TextConfig};
pub use vision::VisionRope;
pub(crate) use vision::{VisionSizes, vision_theta};

/// A `config.json` that is read.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    value: Value,
    /// Whether the head is the embedding.
    pub(crate) is_tied: bool,
    /// Placeholder token of an image.
    pub(crate) image_token_id: u32,
}

impl ConfigFile {
    /// Reads that of a folder.
    ///
    /// # Errors
    /// No JSON, no sections, and what asks for weights that are not read here.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::of(&folder.join("config.json"), read_config(folder)?)
    }

    /// Of a value that came from `path`, or is to go there.
    ///
    /// # Errors
    /// As [`ConfigFile::read`].
    pub fn of(path: &Path, value: Value) -> Result<Self, ModelError> {
        let mut file =
            ConfigFile { path: path.to_path_buf(), value, is_tied: false, image_token_id: 0 };
        if file.value.get("vision_config").is_none() {
            return Err(file.error("no object `vision_config`"));
        }
        check_weights_key(&file.value).map_err(|cause| file.error(cause))?;
        check_quantization(&file.value).map_err(|cause| file.error(cause))?;
        file.is_tied = tied(&file.value).map_err(|cause| file.error(cause))?;
        let id = file.value.get("image_token_id").and_then(Value::as_u64);
        let id = id.and_then(|id| u32::try_from(id).ok());
        file.image_token_id = id.ok_or_else(|| file.error("no number `image_token_id`"))?;
        Ok(file)
    }

    /// An error about this file.
    pub(crate) fn error(&self, cause: impl Into<String>) -> ModelError {
        ModelError::Config { path: self.path.clone(), cause: cause.into() }
    }

    /// The settings of the text model.
    ///
    /// # Errors
    /// A missing key, a value of another type.
    pub(crate) fn text<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        // A flat file may hold a `text_config` without the sizes, which then stand at the top.
        let nested = self.value.get("text_config").filter(|t| t.get("hidden_size").is_some());
        let (text, place) = nested.map_or((&self.value, ""), |t| (t, "`text_config`: "));
        T::deserialize(text).map_err(|e| self.error(format!("{place}{e}")))
    }

    /// The settings of the vision tower.
    ///
    /// # Errors
    /// As [`ConfigFile::text`].
    pub(crate) fn vision<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        T::deserialize(&self.value["vision_config"])
            .map_err(|e| self.error(format!("`vision_config`: {e}")))
    }

    /// Ends reading: refuses what `checks` refuse, and warns of settings that contradict one another.
    ///
    /// # Errors
    /// The first of `checks` that failed.
    pub(crate) fn finish(&self, checks: Result<(), String>) -> Result<(), ModelError> {
        checks.map_err(|cause| self.error(cause))?;
        for said in contradictions(&self.value) {
            base::console::say_once(&format!("warning: {}: {said}", self.path.display()));
        }
        Ok(())
    }
}

/// Refuses sizes outside 1 to `limit`. Limits are far above any model: beyond, products overflow and memory runs out.
pub(crate) fn within(limit: i64, sizes: &[(&str, i64)]) -> Result<(), String> {
    let wrong = sizes.iter().find(|(_, got)| !(1..=limit).contains(got));
    wrong.map_or(Ok(()), |(what, got)| Err(format!("`{what}`: expected 1 to {limit}, got {got}")))
}

/// Refuses what is not a finite number above 0.
pub(crate) fn above_zero(numbers: &[(&str, f64)]) -> Result<(), String> {
    let wrong = numbers.iter().find(|(_, got)| !(*got > 0.0 && got.is_finite()));
    wrong.map_or(Ok(()), |(what, got)| {
        Err(format!("`{what}`: expected a number above 0, got {got}"))
    })
}

/// Refuses another number than `expected`.
pub(crate) fn equal(what: &str, got: i64, expected: i64) -> Result<(), String> {
    match got == expected {
        true => Ok(()),
        false => Err(format!("{what}: expected {expected}, got {got}")),
    }
}

/// Refuses another word than `expected`.
pub(crate) fn word(what: &str, got: &str, expected: &str) -> Result<(), String> {
    match got == expected {
        true => Ok(()),
        false => Err(format!("`{what}`: expected `{expected}`, got `{got}`")),
    }
}

/// Sizes of few: layers, heads, sides.
pub(crate) const FEW: i64 = 1 << 10;
/// Sizes of many: channels, rows.
pub(crate) const MANY: i64 = 1 << 24;
