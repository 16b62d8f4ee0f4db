//! Question and images to a prompt: chat template, tokenizer and image processor of one model
//! folder, joined as transformers 5.17 joins them. What stands for an image is the family's ([`crate::families`]).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::{PreparedImage, Prompt};
use serde_json::Value;

use crate::chat::{ChatTemplate, Message};
use crate::error::DataError;
use crate::families::DataFamily;
use crate::image::{ImageError, ImageOptions, ImageProcessor, ResizeBackend};
use crate::model_files::read_optional_json;
use crate::tokenizer::Tokenizer;

/// How a [`Processor`] departs from the model folder's own settings.
#[derive(Clone, Copy, Debug)]
pub struct ProcessorOptions {
    /// Whose resize to reproduce.
    pub resize_backend: ResizeBackend,
    /// Least pixels after resizing, in place of the folder's.
    pub min_pixels: Option<u64>,
    /// Most pixels after resizing, in place of the folder's.
    pub max_pixels: Option<u64>,
    /// Whether images are turned as their EXIF orientation says.
    pub apply_exif: bool,
    /// Most tokens a prompt may have, images counted. Longer ones are errors, never cut.
    pub max_prompt_length: Option<usize>,
}

/// Everything that turns a question into a [`Prompt`].
#[derive(Debug)]
pub struct Processor {
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    image_processor: ImageProcessor,
    max_prompt_length: Option<usize>,
    /// `max_position_embeddings` of `config.json`.
    max_positions: Option<usize>,
    /// Longest completion that is to follow a prompt, tokens; 0 once it was warned that one does not fit.
    answer_tokens: AtomicUsize,
}

/// Bytes of text beyond which no token goes.
const MAX_TOKEN_BYTES: usize = 1024;

impl Processor {
    /// Reads a model folder.
    ///
    /// # Errors
    /// A missing or broken file; unsupported settings.
    pub fn from_dir(dir: &Path, options: &ProcessorOptions) -> Result<Self, DataError> {
        let image_options = ImageOptions {
            min_pixels: options.min_pixels,
            max_pixels: options.max_pixels,
            ..ImageOptions::new(options.resize_backend)
        };
        let image_processor =
            ImageProcessor::from_dir(dir, &image_options)?.with_apply_exif(options.apply_exif);
        let config = read_optional_json(&dir.join("config.json"))?.unwrap_or_default();
        image_processor.check_model(dir, &config)?;
        let chat_template = ChatTemplate::from_dir(dir)?;
        let tokenizer = Tokenizer::read(dir, Some(&chat_template))?;
        let family = tokenizer.family();
        if family.model_types.is_empty() {
            base::console::say_once(&unknown_family(dir, &config));
        }
        if let Some(ends) = tokenizer.ends_differ() {
            base::console::say_once(&format!(
                "note: {}: its files differ on where an answer ends; it ends at {ends}",
                dir.display()
            ));
        }
        Ok(Self {
            tokenizer,
            chat_template,
            image_processor,
            max_prompt_length: options.max_prompt_length,
            max_positions: max_positions(&config, family),
            answer_tokens: AtomicUsize::new(0),
        })
    }

    /// Warns once if a prompt leaves no room for a completion of so many tokens.
    pub fn expect_answers(&self, tokens: usize) {
        self.answer_tokens.store(tokens, Ordering::Relaxed);
    }

    /// Family of the model.
    pub fn family(&self) -> DataFamily {
        self.tokenizer.family()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// The image processor.
    pub fn image_processor(&self) -> &ImageProcessor {
        &self.image_processor
    }

    /// Reads, decodes and prepares an image file.
    ///
    /// # Errors
    /// The file is missing, no image, truncated or too large.
    pub fn load_image(&self, path: &Path) -> Result<PreparedImage, ImageError> {
        self.image_processor.load(path)
    }

    /// Images of a prompt, each path once, until they alone are more than a prompt may hold.
    ///
    /// # Errors
    /// Those of `load`, and images that are too many.
    pub fn load_images<P: AsRef<Path> + PartialEq>(
        &self,
        paths: &[P],
        mut load: impl FnMut(&Path) -> Result<Arc<PreparedImage>, ImageError>,
    ) -> Result<Vec<Arc<PreparedImage>>, DataError> {
        let mut images: Vec<Arc<PreparedImage>> = Vec::new();
        let mut tokens = 0;
        for (index, path) in paths.iter().enumerate() {
            let too_many = |tokens: usize, (max, limit)| DataError::TooManyImages {
                read: index,
                images: paths.len(),
                tokens,
                max,
                limit,
            };
            // An image takes a token at least.
            let left = paths.len() - index;
            if let Some(limit) = self.limit().filter(|limit| tokens > limit.0 || left > limit.0) {
                return Err(too_many(tokens, limit));
            }
            // A row may name an image twice: one copy, whatever the cache holds.
            let earlier = paths[..index].iter().position(|other| other == path);
            let image = match earlier {
                Some(earlier) => Arc::clone(&images[earlier]),
                None => load(path.as_ref())?,
            };
            tokens += image.layout.num_tokens();
            images.push(image);
        }
        Ok(images)
    }

    /// Most tokens of a prompt, and what says so.
    fn limit(&self) -> Option<(usize, &'static str)> {
        let own = self.max_prompt_length.map(|max| (max, "`max_prompt_length`"));
        let positions = "`max_position_embeddings` of config.json";
        let models = self.max_positions.map(|max| (max, positions));
        own.into_iter().chain(models).min_by_key(|(max, _)| *max)
    }

    /// The prompt of one user turn, images first, up to where the model's answer begins. `text` is
    /// the question with its task template applied.
    ///
    /// # Errors
    /// What the chat template raises; placeholders in the rendered text that are not the images; a
    /// prompt over the limit.
    pub fn prompt(&self, text: &str, images: &[Arc<PreparedImage>]) -> Result<Prompt, DataError> {
        let rendered = self.chat_template.render(&[Message::user(images.len(), text)], true)?;
        let bytes = rendered.len();
        if let Some((max, limit)) = self.limit().filter(|limit| bytes / MAX_TOKEN_BYTES > limit.0) {
            return Err(DataError::TooMuchText { bytes, max, limit });
        }
        let encoded = self.tokenizer.encode(&self.with_image_texts(&rendered, images)?)?;
        let runs = || images.iter().flat_map(|image| &image.layout.runs).copied();
        let image_tokens: usize = runs().sum();
        // Counted before they stand there.
        let tokens = (encoded.len() + image_tokens).saturating_sub(runs().count());
        match (self.max_prompt_length, self.max_positions) {
            (Some(max), _) if tokens > max => {
                Err(DataError::PromptTooLong { tokens, image_tokens, max })
            }
            (_, Some(max)) if tokens > max => {
                Err(DataError::BeyondPositions { tokens, image_tokens, max })
            }
            _ => {
                let ids = self.expand_placeholders(&encoded, runs())?;
                self.say_if_no_room(ids.len());
                Ok(Prompt { ids, images: images.to_vec() })
            }
        }
    }

    fn say_if_no_room(&self, tokens: usize) {
        let answer = self.answer_tokens.load(Ordering::Relaxed);
        let Some(max) = self.max_positions.filter(|max| answer > 0 && tokens + answer > *max)
        else {
            return;
        };
        // Only the first thread warns.
        if self.answer_tokens.swap(0, Ordering::Relaxed) > 0 {
            base::say!(
                "warning: a prompt of {tokens} tokens and an answer of up to {answer} are more than `max_position_embeddings` {max} of \
                 config.json: the model was not made for such lengths (said once)"
            );
        }
    }

    /// Ids of a completion that is trained or scored: its text, then the end of the turn.
    ///
    /// # Errors
    /// What the tokenizer library reports.
    pub fn answer_ids(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.tokenizer.encode(text)?;
        ids.push(self.tokenizer.end_of_turn_id());
        Ok(ids)
    }

    /// The text with what stands for each image in place of the image token that the chat template wrote.
    fn with_image_texts(
        &self,
        rendered: &str,
        images: &[Arc<PreparedImage>],
    ) -> Result<String, DataError> {
        let token = self.tokenizer.image_token_id().and_then(|id| self.tokenizer.id_to_token(id));
        // Without such a token there are no images in a text.
        let Some(token) = token else { return Ok(rendered.to_owned()) };
        let placeholders = rendered.matches(&token).count();
        if placeholders != images.len() {
            return Err(DataError::Placeholders { placeholders, images: images.len() });
        }
        let mut images = images.iter();
        let mut text = String::with_capacity(rendered.len());
        for (index, piece) in rendered.split(&token).enumerate() {
            if let (1.., Some(image)) = (index, images.as_slice().first()) {
                text += &(self.family().image_text)(&image.layout, &token);
                images.next();
            }
            text += piece;
        }
        Ok(text)
    }

    /// Repeats the i-th placeholder as often as its run is long. The placeholder is a special token, so repeating its id equals
    /// repeating its text before tokenizing.
    fn expand_placeholders(
        &self,
        ids: &[u32],
        mut runs: impl Iterator<Item = usize> + Clone,
    ) -> Result<Vec<u32>, DataError> {
        let is_placeholder = |id: &&u32| Some(**id) == self.tokenizer.image_token_id();
        let placeholders = ids.iter().filter(is_placeholder).count();
        let expected = runs.clone().count();
        if placeholders != expected {
            return Err(DataError::Placeholders { placeholders, images: expected });
        }
        let mut expanded = Vec::with_capacity(ids.len());
        for id in ids {
            let run = if is_placeholder(&id) { runs.next() } else { None };
            expanded.extend(std::iter::repeat_n(*id, run.unwrap_or(1)));
        }
        Ok(expanded)
    }
}

fn unknown_family(dir: &Path, config: &Value) -> String {
    let model_type = config["model_type"].as_str().unwrap_or_default();
    format!(
        "note: {}: texts of family `{model_type}` are not known: the image token is `image_token_id` of config.json, each image is that \
         token alone, and every task asks for a thought and an answer unless `--question_template` says otherwise",
        dir.display()
    )
}

/// Positions of the model, as its configuration or that of its class has them; none of a folder without a model.
fn max_positions(config: &Value, family: DataFamily) -> Option<usize> {
    const KEY: &str = "max_position_embeddings";
    config.get("vision_config")?;
    let nested = config.get("text_config").and_then(|text| text.get(KEY));
    let given = nested.or(config.get(KEY)).and_then(Value::as_u64);
    usize::try_from(given.or(family.max_positions)?).ok()
}
