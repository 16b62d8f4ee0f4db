//! The tokenizer of a model folder, with the special ids for sampling and training.

use std::path::Path;

use crate::chat::ChatTemplate;
use crate::error::DataError;
use crate::families::DataFamily;
use crate::special_ids::SpecialIds;
use crate::tokenizer_files;

/// Text to ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos_ids: Vec<u32>,
    pad_id: Option<u32>,
    end_of_turn_id: u32,
    image_token_id: Option<u32>,
    placeholder_ids: Vec<u32>,
    family: DataFamily,
    ends_differ: Option<String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the special ids from `generation_config.json`, `config.json`, `tokenizer_config.json`,
    /// `special_tokens_map.json` and the chat template, where the folder has one that can be read.
    ///
    /// # Errors
    /// A missing or broken file, nothing that ends an answer, an id outside the vocabulary.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        Self::read(dir, ChatTemplate::from_dir(dir).ok().as_ref())
    }

    pub(crate) fn read(dir: &Path, template: Option<&ChatTemplate>) -> Result<Self, DataError> {
        let path = dir.join("tokenizer.json");
        let refuse = |reason: String| DataError::ModelFile { path: path.clone(), reason };
        if !path.is_file() {
            return Err(refuse(
                "no such file\nhint: save the tokenizer with transformers once; it writes this file"
                    .to_owned(),
            ));
        }
        let mut inner =
            tokenizers::Tokenizer::from_file(&path).map_err(|error| refuse(error.to_string()))?;
        // Some training tools save these with the tokenizer; prompts must be neither cut nor filled.
        inner.with_truncation(None).map_err(|error| refuse(error.to_string()))?;
        inner.with_padding(None);
        tokenizer_files::compare(dir, &inner)?;
        let ids = SpecialIds::read(dir, &inner, template)?;
        Ok(Self {
            end_of_turn_id: ids.end_of_turn,
            eos_ids: ids.eos,
            pad_id: ids.pad,
            image_token_id: ids.image,
            placeholder_ids: ids.placeholders,
            family: ids.family,
            ends_differ: ids.ends_differ,
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
        self.inner.decode(ids, skip_special_tokens).map_err(library_error)
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

    /// Ids that end a completion, at least one: all that any file names, and those that the chat template writes there.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The padding token, where the folder names one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// The end tokens and the files that name them, if there are more than transformers' `generate` would use.
    pub fn ends_differ(&self) -> Option<&str> {
        self.ends_differ.as_deref()
    }

    /// The token that ends a completion in training: what the chat template writes there, where `generation_config.json` lists it
    /// or lists none, else `eos_token`.
    pub fn end_of_turn_id(&self) -> u32 {
        self.end_of_turn_id
    }

    /// Family of the model that the texts of its chats are of.
    pub fn family(&self) -> DataFamily {
        self.family
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
        let control = self.family.control_tokens.iter().filter_map(|text| self.token_to_id(text));
        let mut ids: Vec<u32> = control.chain([self.end_of_turn_id]).collect();
        ids.extend(self.eos_ids.iter().chain(&self.pad_id).chain(&self.placeholder_ids));
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.id_to_token(id)).collect()
    }
}

fn library_error(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer { reason: error.to_string() }
}
