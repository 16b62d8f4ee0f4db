//! A model folder with all that is needed to ask it: weights and processor.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use base::Prompt;
use base::model_folder::{is_adapter, read_family};
use cli::hub::model_folder;
use cli::which_model::hub_name;
use config::{
    DType, DeviceSection, EvalConfig, GenerateConfig, ImageProcessor, LoadSection, LogprobsConfig,
};
use data::{DataFamily, Processor, ProcessorOptions};
use engine::{FastPathChoice, choose_fast_paths};
use models::{
    AdapterSource, LoadOptions, SavedAdapter, TrainedParts, VisionLanguageModel, base_of,
    load_model, load_with_adapter,
};
use rewards::{RewardFamily, family_of};
use tch::{Device, Kind};

/// A model to ask.
pub struct Model {
    /// The weights.
    pub weights: Box<dyn VisionLanguageModel>,
    /// From question to prompt and back.
    pub processor: Processor,
}

/// Which model, and how it is run.
pub struct ModelOptions<'a> {
    model: &'a str,
    revision: Option<&'a str>,
    base_model: Option<&'a str>,
    dtype: DType,
    device: &'a str,
    num_threads: Option<usize>,
    fast_paths: &'a str,
    /// How its images are prepared.
    pub processor: ProcessorOptions,
}

impl<'a> ModelOptions<'a> {
    fn new(
        model: &'a str,
        image_processor: ImageProcessor,
        load: &'a LoadSection,
        machine: &'a DeviceSection,
    ) -> Self {
        Self {
            model,
            revision: load.model_revision.as_deref(),
            base_model: load.base_model.as_deref(),
            dtype: load.dtype,
            device: &machine.device,
            num_threads: machine.num_threads,
            fast_paths: &machine.fast_paths,
            processor: ProcessorOptions {
                resize_backend: data::image::resize_backend(image_processor),
                min_pixels: load.min_pixels.map(|pixels| pixels as u64),
                max_pixels: load.max_pixels.map(|pixels| pixels as u64),
                apply_exif: load.apply_exif,
                max_prompt_length: None,
            },
        }
    }
}

impl<'a> From<&'a GenerateConfig> for ModelOptions<'a> {
    fn from(config: &'a GenerateConfig) -> Self {
        let asked = &config.asked;
        Self::new(&asked.model, asked.image_processor, &config.load, &config.machine)
    }
}

impl<'a> From<&'a LogprobsConfig> for ModelOptions<'a> {
    fn from(config: &'a LogprobsConfig) -> Self {
        let asked = &config.asked;
        Self::new(&asked.model, asked.image_processor, &config.load, &config.machine)
    }
}

impl<'a> From<&'a EvalConfig> for ModelOptions<'a> {
    fn from(config: &'a EvalConfig) -> Self {
        let model = config.asked.model.as_deref().unwrap_or_default();
        let processor = config.asked.image_processor.unwrap_or(ImageProcessor::Torchvision);
        Self::new(model, processor, &config.load, &config.machine)
    }
}

/// A model that is found and not loaded yet.
pub struct Located<'a> {
    options: ModelOptions<'a>,
    folder: PathBuf,
    adapter: Option<SavedAdapter>,
}

impl<'a> Located<'a> {
    /// Finds the folder, and that of the model under an adapter.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(options: impl Into<ModelOptions<'a>>) -> Result<Self> {
        let options: ModelOptions<'_> = options.into();
        let folder = model_folder(options.model, options.revision)?;
        let adapter = is_adapter(&folder).then(|| SavedAdapter::read(&folder)).transpose()?;
        let folder = match &adapter {
            Some(adapter) => base_folder(adapter, options.base_model, options.revision)?,
            None => {
                if let Some(base) = options.base_model {
                    base::console::say_once(&format!(
                        "warning: no effect here: `--base_model {base}` (`{}` is a whole model, not an adapter)",
                        options.model
                    ));
                }
                folder
            }
        };
        Ok(Self { options, folder, adapter })
    }

    /// What turns questions into prompts.
    ///
    /// # Errors
    /// Where the folder does not hold it.
    pub fn processor(&self) -> Result<Processor> {
        Ok(Processor::from_dir(&self.folder, &self.options.processor)?)
    }

    /// Whose rewards are its own.
    ///
    /// # Errors
    /// No `config.json` that names it.
    pub fn family(&self) -> Result<RewardFamily> {
        Ok(family_of(&read_family(&self.folder)?))
    }

    /// Whose texts its chats have.
    ///
    /// # Errors
    /// No `config.json` that names it.
    pub fn texts(&self) -> Result<DataFamily> {
        Ok(DataFamily::of(&read_family(&self.folder)?))
    }

    /// Loads weights that are not trained.
    ///
    /// # Errors
    /// Where the folder does not hold such a model, or there is no such device.
    pub fn weights(&self) -> Result<Box<dyn VisionLanguageModel>> {
        let kind = kind(self.options.dtype);
        let device = prepare_device(self.options.device, self.options.num_threads)?;
        torch::check_kind(device, kind)?;
        let options = LoadOptions { kind, device, trained: TrainedParts::NONE };
        let choice = FastPathChoice::parse(self.options.fast_paths)?;
        let model = match &self.adapter {
            Some(saved) => load_with_adapter(&self.folder, options, AdapterSource::Saved(saved))?,
            None => load_model(&self.folder, options)?,
        };
        for line in choose_fast_paths(model.as_ref(), &choice).lines() {
            base::say!("{line}");
        }
        Ok(model)
    }
}

impl Model {
    /// Loads weights that are not trained.
    ///
    /// # Errors
    /// Where the folder is not there or does not hold such a model.
    pub fn load<'a>(options: impl Into<ModelOptions<'a>>) -> Result<Self> {
        let located = Located::find(options)?;
        let processor = located.processor()?;
        let weights = located.weights()?;
        Ok(Self { weights, processor })
    }

    /// The prompt of a question about images.
    ///
    /// # Errors
    /// Where an image cannot be read, and what the chat template refuses.
    pub fn prompt(&self, question: &str, images: &[PathBuf], place: &str) -> Result<Prompt> {
        let load = |path: &Path| self.processor.load_image(path).map(Arc::new);
        let images = self.processor.load_images(images, load);
        let prompt = images.and_then(|images| self.processor.prompt(question, &images));
        prompt.with_context(|| place.to_owned())
    }
}

/// The folder of the model that an adapter lies over: `given`, or the one that it names, a folder or a
/// name on the hub.
///
/// # Errors
/// As [`model_folder`], and where the adapter names none.
pub fn base_folder(
    adapter: &SavedAdapter,
    given: Option<&str>,
    revision: Option<&str>,
) -> Result<PathBuf> {
    if let Some(name) = given {
        return model_folder(name, revision);
    }
    match adapter.base.as_deref() {
        Some(name) if !Path::new(name).exists() && hub_name(name).is_some() => {
            // A folder beside the adapter goes before a name on the hub.
            base_of(adapter).or_else(|_| model_folder(name, revision))
        }
        _ => Ok(base_of(adapter)?),
    }
}

/// Sets the number of threads and finds the device.
///
/// # Errors
/// Where there is no such device.
pub fn prepare_device(device: &str, num_threads: Option<usize>) -> Result<Device> {
    if let Some(threads) = num_threads {
        tch::set_num_threads(threads as i32);
    }
    Ok(torch::parse_device(device)?)
}

/// libtorch's name of a type.
pub fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::Float32 => Kind::Float,
        DType::BFloat16 => Kind::BFloat16,
    }
}
