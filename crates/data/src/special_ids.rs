//! Special token ids for sampling and training, from all files of a model folder that name them.

use std::path::Path;

use serde_json::Value;

use crate::chat::{ChatTemplate, token_text};
use crate::error::DataError;
use crate::families::DataFamily;
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
const EOS_ID: &str = "eos_token_id";
const EOS: &str = "eos_token";

/// What is found.
pub(crate) struct SpecialIds {
    /// Every id that ends a completion: those that any file names, and those that the chat template writes there.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
    /// What is taught as the end of an answer.
    pub end_of_turn: u32,
    pub image: Option<u32>,
    pub placeholders: Vec<u32>,
    /// The family that the texts are of.
    pub family: DataFamily,
    /// Where an answer ends and who says so, if the places differ.
    pub ends_differ: Option<String>,
}

impl SpecialIds {
    /// Reads them.
    ///
    /// # Errors
    /// Broken JSON, values that are no ids, ids and tokens outside the vocabulary, nothing that ends an answer.
    pub fn read(
        dir: &Path,
        tokenizer: &tokenizers::Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, DataError> {
        let files = Files::read(dir, tokenizer)?;
        let family = DataFamily::of_config(&files.config);
        let ends = Ends::read(&files, template)?;
        let eos: Vec<u32> = ends.list.iter().map(|end| end.id).collect();
        let Some(&first) = eos.first() else {
            return Err(DataError::ModelFile {
                path: dir.join(GENERATION),
                reason: "no end-of-sequence token: looked for `eos_token_id` here and in `config.json`, `eos_token` in \
                         `tokenizer_config.json` and `special_tokens_map.json`, and what the chat template writes after an answer"
                    .to_owned(),
            });
        };
        let mut placeholders: Vec<u32> =
            family.placeholders.iter().filter_map(|text| tokenizer.token_to_id(text)).collect();
        for key in PLACEHOLDER_KEYS {
            placeholders.extend(files.config_ids(key)?);
        }
        placeholders.sort_unstable();
        placeholders.dedup();
        let image = files.config_ids("image_token_id")?.first().copied();
        let own = family.image_token.and_then(|text| Some((text, tokenizer.token_to_id(text)?)));
        if let (Some(id), Some((text, own))) = (image, own)
            && id != own
        {
            return Err(DataError::ModelFile {
                path: dir.join("config.json"),
                reason: format!(
                    "`image_token_id` is {id}, but `{text}` has the id {own} in tokenizer.json\n\
                     hint: config.json and the tokenizer are of different models"
                ),
            });
        }
        Ok(Self {
            end_of_turn: ends.of_turn.unwrap_or(first),
            pad: files.pad(),
            image: image.or(own.map(|(_, id)| id)),
            family,
            placeholders,
            ends_differ: ends.differ(tokenizer),
            eos,
        })
    }
}

/// A token that ends answers, and all places that say so.
struct End {
    id: u32,
    places: Vec<String>,
}

#[derive(Default)]
struct Ends {
    list: Vec<End>,
    /// The end tokens that transformers' `generate` uses: those of the first file that has any.
    obeyed: Vec<u32>,
    of_turn: Option<u32>,
}

impl Ends {
    fn read(files: &Files<'_>, template: Option<&ChatTemplate>) -> Result<Self, DataError> {
        let mut ends = Self::default();
        let generation = files.ids(GENERATION, &files.generation, EOS_ID)?;
        let config = files.config_ids(EOS_ID)?;
        ends.add(&generation, "`eos_token_id` of generation_config.json");
        ends.add(&config, "`eos_token_id` of config.json");
        let eos_token = files.token(SETTINGS, &files.settings, EOS)?;
        ends.add(eos_token.as_slice(), "`eos_token` of tokenizer_config.json");
        let mapped = files.token(SPECIAL_TOKENS, &files.special_tokens, EOS)?;
        ends.add(mapped.as_slice(), "`eos_token` of special_tokens_map.json");
        ends.obeyed = [&generation, &config, &eos_token.into_iter().collect()]
            .into_iter()
            .find(|ids| !ids.is_empty())
            .cloned()
            .unwrap_or_default();
        let written = template.map(|template| written_ends(template, files.tokenizer));
        let written = written.unwrap_or_default();
        ends.add(&written, "the chat template");
        if ends.list.is_empty() {
            return Ok(ends);
        }
        let listed = written.iter().find(|id| generation.contains(id)).copied();
        // A file that lists other ends leaves no doubt that this one is none.
        let written = written.first().copied();
        ends.of_turn = match generation.is_empty() {
            true => written.or(eos_token),
            false => listed.or(eos_token).or(written),
        };
        // The end that is trained always ends a completion.
        ends.add(ends.of_turn.as_slice().to_owned().as_slice(), "`sft`");
        Ok(ends)
    }

    fn add(&mut self, ids: &[u32], place: &str) {
        for id in ids {
            let known = self.list.iter_mut().find(|end| end.id == *id);
            match known {
                // `sft` teaches what the template writes.
                Some(_) if place == "`sft`" => {}
                Some(end) => end.places.push(place.to_owned()),
                None => self.list.push(End { id: *id, places: vec![place.to_owned()] }),
            }
        }
    }

    /// All end tokens with their files, where they differ from those that transformers uses.
    fn differ(&self, tokenizer: &tokenizers::Tokenizer) -> Option<String> {
        if self.list.iter().all(|end| self.obeyed.contains(&end.id)) {
            return None;
        }
        let ends = self.list.iter().map(|end| {
            let text = tokenizer.id_to_token(end.id).unwrap_or_default();
            format!("`{text}` ({}, by {})", end.id, end.places.join(", "))
        });
        Some(ends.collect::<Vec<_>>().join(" and "))
    }
}

/// Added tokens that the template writes after the last answer, white space between them.
fn written_ends(template: &ChatTemplate, tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    let text = template.after_answer().unwrap_or_default();
    let added = tokenizer.get_added_tokens_decoder();
    let mut rest = text.trim_start();
    let mut ends = Vec::new();
    let longest = |rest: &str| {
        let starts = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty() && rest.starts_with(&token.content));
        starts.max_by_key(|(_, token)| token.content.len())
    };
    while let Some((id, token)) = longest(rest) {
        if !ends.contains(id) {
            ends.push(*id);
        }
        rest = rest[token.content.len()..].trim_start();
    }
    ends
}

const GENERATION: &str = "generation_config.json";
const CONFIG: &str = "config.json";
const SETTINGS: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// The files that name ids, and the vocabulary that these must be in.
struct Files<'a> {
    dir: &'a Path,
    tokenizer: &'a tokenizers::Tokenizer,
    generation: Value,
    config: Value,
    settings: Value,
    special_tokens: Value,
}

impl<'a> Files<'a> {
    fn read(dir: &'a Path, tokenizer: &'a tokenizers::Tokenizer) -> Result<Self, DataError> {
        let read = |name: &str| read_optional_json(&dir.join(name)).map(Option::unwrap_or_default);
        Ok(Self {
            generation: read(GENERATION)?,
            config: read(CONFIG)?,
            settings: read(SETTINGS)?,
            special_tokens: read(SPECIAL_TOKENS)?,
            dir,
            tokenizer,
        })
    }

    /// An id, a list of ids, or none.
    fn ids(&self, file: &str, object: &Value, key: &str) -> Result<Vec<u32>, DataError> {
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| {
                self.refuse(
                    file,
                    format!("`{key}`: expected a token id or a list of them, got {value}"),
                )
            })?;
            if self.tokenizer.id_to_token(id).is_none() {
                let size = self.tokenizer.get_vocab_size(true);
                return Err(self.refuse(
                    file,
                    format!("`{key}`: token id {id} is outside the vocabulary of {size} tokens of tokenizer.json"),
                ));
            }
            Ok(id)
        };
        match object.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    /// As [`Files::ids`], at the top of `config.json` and, as transformers 5 nests it, under `text_config`.
    fn config_ids(&self, key: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.ids(CONFIG, &self.config, key)?;
        if let Some(text) = self.config.get("text_config") {
            let inner = self.ids(CONFIG, text, key)?;
            ids.extend(inner);
        }
        Ok(ids)
    }

    /// A token named by its text.
    fn token(&self, file: &str, object: &Value, key: &str) -> Result<Option<u32>, DataError> {
        let Some(value) = object.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let text = token_text(value)
            .ok_or_else(|| self.refuse(file, format!("`{key}`: expected a token, got {value}")))?;
        match self.tokenizer.token_to_id(&text) {
            Some(id) => Ok(Some(id)),
            None => Err(self.refuse(
                file,
                format!("`{key}`: token `{text}` is not in the vocabulary of tokenizer.json"),
            )),
        }
    }

    /// The padding token. Nothing is padded here, so that one that cannot be is none.
    fn pad(&self) -> Option<u32> {
        let key = "pad_token_id";
        let named = self.token(SETTINGS, &self.settings, "pad_token");
        [
            self.ids(GENERATION, &self.generation, key),
            named.map(|id| id.into_iter().collect()),
            self.config_ids(key),
        ]
        .into_iter()
        .find_map(|ids| ids.ok()?.first().copied())
    }

    fn refuse(&self, file: &str, reason: String) -> DataError {
        DataError::ModelFile { path: self.dir.join(file), reason }
    }
}
