//! A model folder's tokenizer and the ids that mean something to sampling and training.

use std::path::Path;

use serde_json::Value;

use crate::chat::token_text;
use crate::error::DataError;
use crate::model_files::read_optional_json;

/// Keys of `config.json` (or of its `text_config`) that name image and video tokens.
const PLACEHOLDER_KEYS: [&str; 10] = [
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "image_start_token_id",
    "image_end_token_id",
    "video_start_token_id",
    "video_end_token_id",
    "img_context_token_id",
];
/// Tokens of Qwen's form that stand for images or frames where `config.json` does not say so.
const PLACEHOLDER_TEXTS: [&str; 5] = [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];
const IMAGE_PAD: &str = "<|image_pad|>";
const TURN_START: &str = "<|im_start|>";
const TURN_END: &str = "<|im_end|>";

/// Text to ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos_ids: Vec<u32>,
    pad_id: Option<u32>,
    end_of_turn_id: u32,
    image_token_id: Option<u32>,
    placeholder_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the special ids from `generation_config.json`,
    /// `tokenizer_config.json` and `config.json`.
    ///
    /// # Errors
    /// A missing or broken file, no end-of-sequence token, an id outside the vocabulary.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join("tokenizer.json");
        let refuse = |reason: String| DataError::ModelFile {
            path: path.clone(),
            reason,
        };
        if !path.is_file() {
            return Err(refuse(
                "no such file\nhint: save the tokenizer with transformers once; it writes this file"
                    .to_owned(),
            ));
        }
        let mut inner =
            tokenizers::Tokenizer::from_file(&path).map_err(|error| refuse(error.to_string()))?;
        // Some training tools save these with the tokenizer; prompts must be neither cut nor filled.
        inner
            .with_truncation(None)
            .map_err(|error| refuse(error.to_string()))?;
        inner.with_padding(None);
        let ids = SpecialIds::read(dir, &inner)?;
        let known = |id: &u32| inner.id_to_token(*id).is_some();
        if let Some(id) = ids
            .eos
            .iter()
            .chain(&ids.placeholders)
            .find(|id| !known(id))
        {
            return Err(refuse(format!(
                "special token id {id} is outside the vocabulary of {} tokens",
                inner.get_vocab_size(true)
            )));
        }
        Ok(Self {
            end_of_turn_id: ids.end_of_turn,
            eos_ids: ids.eos,
            pad_id: ids.pad,
            image_token_id: ids.image,
            placeholder_ids: ids.placeholders,
            inner,
        })
    }

    /// Ids of a text. Special tokens written out in it are read as such; none are added.
    ///
    /// # Errors
    /// What the tokenizer library reports.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false).map_err(library_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids; bytes that are no UTF-8 become U+FFFD. With `skip_special_tokens`, tokens
    /// marked special leave no text.
    ///
    /// # Errors
    /// What the tokenizer library reports.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(library_error)
    }

    /// The id of a token given by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens in the vocabulary, added ones counted. A model's head may be wider.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Ids that end an answer, at least one.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The padding token, where the folder names one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// The token that ends a turn in training: `<|im_end|>`, else the end of sequence.
    pub fn end_of_turn_id(&self) -> u32 {
        self.end_of_turn_id
    }

    /// The placeholder of one merged image patch; `None` for a text model.
    pub fn image_token_id(&self) -> Option<u32> {
        self.image_token_id
    }

    /// Ids that stand for images and frames, which sampling must never emit. Sorted.
    pub fn placeholder_ids(&self) -> &[u32] {
        &self.placeholder_ids
    }

    /// Texts that questions and answers must not hold: placeholders and turn marks, written out.
    pub fn reserved_tokens(&self) -> Vec<String> {
        let turn_start = self.token_to_id(TURN_START);
        let mut ids: Vec<u32> = [self.end_of_turn_id]
            .into_iter()
            .chain(turn_start)
            .collect();
        ids.extend(
            self.eos_ids
                .iter()
                .chain(&self.pad_id)
                .chain(&self.placeholder_ids),
        );
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter()
            .filter_map(|id| self.id_to_token(id))
            .collect()
    }
}

fn library_error(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer {
        reason: error.to_string(),
    }
}

struct SpecialIds {
    eos: Vec<u32>,
    pad: Option<u32>,
    end_of_turn: u32,
    image: Option<u32>,
    placeholders: Vec<u32>,
}

impl SpecialIds {
    fn read(dir: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Self, DataError> {
        let read = |name: &str| read_optional_json(&dir.join(name));
        let generation = read("generation_config.json")?.unwrap_or_default();
        let settings = read("tokenizer_config.json")?.unwrap_or_default();
        let config = read("config.json")?.unwrap_or_default();
        let named = |key: &str| tokenizer.token_to_id(&token_text(settings.get(key)?)?);

        let eos_token = named("eos_token");
        let eos = first_that_has_ids([
            ids_of(&generation, "eos_token_id"),
            eos_token.into_iter().collect(),
            config_ids(&config, "eos_token_id"),
        ]);
        let Some(&first_eos) = eos.first() else {
            return Err(DataError::ModelFile {
                path: dir.join("generation_config.json"),
                reason: "no end-of-sequence token: looked for `eos_token_id` here, `eos_token` in \
                         `tokenizer_config.json` and `eos_token_id` in `config.json`"
                    .to_owned(),
            });
        };
        let pad = first_that_has_ids([
            ids_of(&generation, "pad_token_id"),
            named("pad_token").into_iter().collect(),
            config_ids(&config, "pad_token_id"),
        ]);
        let image = first_that_has_ids([
            config_ids(&config, "image_token_id"),
            tokenizer.token_to_id(IMAGE_PAD).into_iter().collect(),
        ]);
        let mut placeholders: Vec<u32> = PLACEHOLDER_KEYS
            .iter()
            .flat_map(|key| config_ids(&config, key))
            .collect();
        placeholders.extend(
            PLACEHOLDER_TEXTS
                .iter()
                .filter_map(|t| tokenizer.token_to_id(t)),
        );
        placeholders.sort_unstable();
        placeholders.dedup();
        Ok(Self {
            end_of_turn: tokenizer
                .token_to_id(TURN_END)
                .or(eos_token)
                .unwrap_or(first_eos),
            pad: pad.first().copied(),
            image: image.first().copied(),
            placeholders,
            eos,
        })
    }
}

fn first_that_has_ids<const N: usize>(places: [Vec<u32>; N]) -> Vec<u32> {
    places
        .into_iter()
        .find(|ids| !ids.is_empty())
        .unwrap_or_default()
}

/// An id or a list of ids.
fn ids_of(object: &Value, key: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match object.get(key) {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// As [`ids_of`], at the top of `config.json` or, as transformers 5 nests it, under `text_config`.
fn config_ids(config: &Value, key: &str) -> Vec<u32> {
    let top = ids_of(config, key);
    if top.is_empty() {
        config
            .get("text_config")
            .map_or(top, |text| ids_of(text, key))
    } else {
        top
    }
}
