//! Question and images to a prompt: chat template, tokenizer and image processor of one model
//! folder, joined as `Qwen2_5_VLProcessor` of transformers 5.17 joins them.

use std::path::Path;
use std::sync::Arc;

use base::{PreparedImage, Prompt};

use crate::chat::{ChatTemplate, Message};
use crate::error::DataError;
use crate::image::{ImageError, ImageProcessor, ResizeBackend};
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
    /// Patches that become one token.
    patches_per_token: usize,
    max_prompt_length: Option<usize>,
}

impl Processor {
    /// Reads a model folder.
    ///
    /// # Errors
    /// A missing or broken file; settings that cannot be obeyed.
    pub fn from_dir(dir: &Path, options: &ProcessorOptions) -> Result<Self, DataError> {
        let image_processor = ImageProcessor::from_dir(dir, options.resize_backend)?
            .with_pixel_bounds(options.min_pixels, options.max_pixels)?
            .with_apply_exif(options.apply_exif);
        let merge_size = image_processor.config().merge_size as usize;
        let chat_template = ChatTemplate::from_dir(dir)?;
        let tokenizer = Tokenizer::read(dir, Some(&chat_template))?;
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
            patches_per_token: merge_size * merge_size,
            max_prompt_length: options.max_prompt_length,
        })
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

    /// The prompt of one user turn, images first, up to where the model's answer begins. `text` is
    /// the question with its task template applied.
    ///
    /// # Errors
    /// What the chat template raises; placeholders in the rendered text that are not the images; a
    /// prompt over the limit.
    pub fn prompt(&self, text: &str, images: &[Arc<PreparedImage>]) -> Result<Prompt, DataError> {
        let rendered = self
            .chat_template
            .render(&[Message::user(images.len(), text)], true)?;
        let ids = self.expand_placeholders(&self.tokenizer.encode(&rendered)?, images)?;
        match self.max_prompt_length {
            Some(max) if ids.len() > max => Err(DataError::PromptTooLong {
                tokens: ids.len(),
                image_tokens: images
                    .iter()
                    .map(|image| self.num_image_tokens(image))
                    .sum(),
                max,
            }),
            _ => Ok(Prompt {
                ids,
                images: images.to_vec(),
            }),
        }
    }

    /// Ids of an answer that is taught or scored: its text, then the end of the turn.
    ///
    /// # Errors
    /// What the tokenizer library reports.
    pub fn answer_ids(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.tokenizer.encode(text)?;
        ids.push(self.tokenizer.end_of_turn_id());
        Ok(ids)
    }

    /// Tokens that stand for an image: one per merged patch.
    pub fn num_image_tokens(&self, image: &PreparedImage) -> usize {
        image.grid_thw.iter().product::<usize>() / self.patches_per_token
    }

    /// Repeats the i-th placeholder once per token of the i-th image. The placeholder is a special
    /// token, so repeating its id equals repeating its text before tokenizing.
    fn expand_placeholders(
        &self,
        ids: &[u32],
        images: &[Arc<PreparedImage>],
    ) -> Result<Vec<u32>, DataError> {
        let is_placeholder = |id: &&u32| Some(**id) == self.tokenizer.image_token_id();
        let placeholders = ids.iter().filter(is_placeholder).count();
        if placeholders != images.len() {
            return Err(DataError::Placeholders {
                placeholders,
                images: images.len(),
            });
        }
        let mut images = images.iter();
        let mut expanded = Vec::with_capacity(ids.len());
        for id in ids {
            let image = if is_placeholder(&id) {
                images.next()
            } else {
                None
            };
            let count = image.map_or(1, |image| self.num_image_tokens(image));
            expanded.extend(std::iter::repeat_n(*id, count));
        }
        Ok(expanded)
    }
}
