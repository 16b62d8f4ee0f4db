//! What a model family is. Each has a folder, and a line in `lib.rs`.

use std::fmt::Debug;
use std::path::Path;

use base::model_folder::read_family;
use serde_json::Value;
use torch::WeightFiles;

use crate::config::ConfigFile;
use crate::contradictions::{self, stays_tied};
use crate::lora::AdapterSource;
use crate::model::{LoadOptions, Part, TextShape, VisionLanguageModel};
use crate::names::Names;
use crate::parameters::Builder;
use crate::{FAMILIES, ModelError};

/// What there is to know of a family before one of its models is loaded.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Its weights in checkpoints.
    pub names: Names,
    /// The part of the weight of a name after [`Names::current`].
    pub part_of: fn(&str) -> Part,
    /// The parts that `--freeze_vision_modules` freezes.
    pub vision_modules: &'static [Part],
    /// Reads a configuration.
    pub read_config: fn(&ConfigFile) -> Result<Box<dyn FamilyConfig>, ModelError>,
    /// The `config.json` of a tiny model, without ids of tokens.
    pub tiny_config: fn(&TinySizes) -> Value,
}

/// Sizes of a tiny model, such as that of the demo.
#[derive(Clone, Copy, Debug)]
pub struct TinySizes {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Channels of the text model.
    pub width: i64,
    /// Channels of its MLP.
    pub mlp: i64,
    /// Its layers.
    pub layers: usize,
    /// Its query heads.
    pub heads: i64,
    /// Its key and value heads.
    pub kv_heads: i64,
    /// Base of its rotary frequencies.
    pub rope_theta: f64,
    /// Of its rotary frequencies, how many turn with time, height and width.
    pub mrope_section: [i64; 3],
    /// Channels of the vision tower.
    pub vision_width: i64,
    /// Channels of its MLP.
    pub vision_mlp: i64,
    /// Its blocks.
    pub vision_blocks: usize,
    /// Its heads.
    pub vision_heads: i64,
    /// Side of a patch, px.
    pub patch_size: u32,
    /// Patches along a side that become one token.
    pub merge_size: u32,
    /// Side of an image, px.
    pub image_size: u32,
}

/// The configuration of a model.
pub trait FamilyConfig: Debug {
    /// Its family.
    fn family(&self) -> &'static Family;

    /// Sizes of the text model.
    fn text_shape(&self) -> TextShape;

    /// Sizes of the vision tower.
    fn vision_shape(&self) -> VisionShape;

    /// Whether the head is the embedding.
    fn is_tied(&self) -> bool;

    /// Says that it is not.
    fn untie(&mut self);

    /// The same model with these sizes instead of its own.
    fn scaled(&self, size: &ScaledSize) -> Box<dyn FamilyConfig>;

    /// A model whose layers take their weights from the builder.
    ///
    /// # Errors
    /// libtorch's own; mismatches are collected by the builder.
    fn build(&self, builder: Builder<'_>) -> Result<Box<dyn VisionLanguageModel>, ModelError>;
}

/// Sizes that a model is cut to, to try it.
#[derive(Clone, Copy, Debug)]
pub struct ScaledSize {
    /// Text layers.
    pub layers: usize,
    /// Rows of the embedding and the head.
    pub vocab_size: i64,
    /// Blocks of the vision tower.
    pub vision_blocks: usize,
}

/// Sizes of a vision tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisionShape {
    /// Channels.
    pub hidden_size: i64,
    /// Channels of the MLP.
    pub intermediate_size: i64,
    /// Whether the MLP has a gate.
    pub is_gated: bool,
    /// Blocks.
    pub blocks: usize,
    /// Blocks whose patches see the whole image.
    pub full_blocks: usize,
    /// Patches of a window, which those of the other blocks see.
    pub window: usize,
    /// Layers of the text model that features of their own are added to.
    pub num_deepstack: usize,
    /// Side of a patch, px.
    pub patch_size: usize,
    /// Numbers of a patch.
    pub patch_dim: usize,
    /// Patches along a side that become one token.
    pub merge: usize,
}

/// The family of a model folder.
///
/// # Errors
/// A missing or broken `config.json`, and a `model_type` that no family has.
pub fn family_of(folder: &Path) -> Result<&'static Family, ModelError> {
    let got = read_family(folder)?;
    let found = FAMILIES.iter().find(|family| family.model_type == got);
    found.copied().ok_or_else(|| ModelError::Family {
        path: folder.join("config.json"),
        got,
        known: FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", "),
    })
}

/// The weights of a model with this `config.json`, by their names in transformers 5 and their sizes.
///
/// # Errors
/// A configuration that the family refuses.
pub fn weights_of(family: &Family, config: &Value) -> Result<Vec<(String, Vec<i64>)>, ModelError> {
    let config = (family.read_config)(&ConfigFile::of(Path::new("config.json"), config.clone())?)?;
    let model = config.counted()?;
    let parameters = model.parameters().list.iter();
    Ok(parameters.map(|parameter| (parameter.name.clone(), parameter.value.size())).collect())
}

impl Family {
    /// Reads `config.json` of a folder of this family, and what its weights, where they are there, say against it.
    ///
    /// # Errors
    /// A missing key, a value that is not computed here, weight files that cannot be read.
    pub fn config(&self, folder: &Path) -> Result<Box<dyn FamilyConfig>, ModelError> {
        let mut config = (self.read_config)(&ConfigFile::read(folder)?)?;
        if config.is_tied()
            && let Some(files) = contradictions::weights_if_there(folder)?
            && !stays_tied(&self.names, &files, folder)?
        {
            config.untie();
        }
        Ok(config)
    }

    /// Loads a Hugging Face folder of this family, with adapters if given.
    ///
    /// # Errors
    /// A configuration that does not parse, or weights that do not fit it, all listed.
    pub fn load(
        &'static self,
        folder: &Path,
        options: LoadOptions,
        adapters: Option<AdapterSource<'_>>,
    ) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
        let mut config = (self.read_config)(&ConfigFile::read(folder)?)?;
        let files = WeightFiles::open(folder)?;
        contradictions::warn_of_files(&files, folder);
        if config.is_tied() && !stays_tied(&self.names, &files, folder)? {
            config.untie();
        }
        config.build(Builder::new(self, &files, folder, options, adapters))
    }
}

impl dyn FamilyConfig + '_ {
    /// The model with all its weights and linear layers, each of one number in memory: to be counted, not to be run.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn counted(&self) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
        self.build(Builder::counted(self.family()))
    }

    /// A model of these sizes with constant weights, to measure memory and time.
    ///
    /// # Errors
    /// libtorch's own, and targets of adapters that name no layer.
    pub fn blank(
        &self,
        options: LoadOptions,
        adapters: Option<AdapterSource<'_>>,
    ) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
        self.build(Builder::blank(self.family(), options, adapters))
    }
}
