//! Compares the other files of a tokenizer with `tokenizer.json`, the only one that is read.
//!
//! transformers 5.17 takes vocabulary and merges from `tokenizer.json` too, but the added tokens from `added_tokens_decoder` of
//! `tokenizer_config.json`, where that is there.

use std::path::Path;

use serde_json::Value;

use crate::error::DataError;
use crate::model_files::read_optional_json;

/// Refuses added tokens with other ids than in `tokenizer.json`, and says where other files of the folder differ from it.
///
/// # Errors
/// Broken JSON, and those added tokens.
pub(crate) fn compare(dir: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<(), DataError> {
    let settings = dir.join("tokenizer_config.json");
    let decoder = read_optional_json(&settings)?.unwrap_or_default();
    if let Some(decoder) = decoder.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, token) in decoder {
            let text = token.get("content").and_then(Value::as_str);
            let got = text.and_then(|text| tokenizer.token_to_id(text));
            if got.is_none() || got.map(|got| got.to_string()).as_ref() != Some(id) {
                let text = text.unwrap_or_default();
                let place = got.map_or("is no token".to_owned(), |got| format!("has the id {got}"));
                return Err(DataError::ModelFile {
                    path: settings,
                    reason: format!(
                        "`added_tokens_decoder`: `{text}` has the id {id}, in tokenizer.json it {place}\nhint: take both files from one model"
                    ),
                });
            }
        }
    }
    for name in ["vocab.json", "added_tokens.json"] {
        let Some(Value::Object(vocabulary)) = read_optional_json(&dir.join(name))? else {
            continue;
        };
        let differs = |(text, id): &(&String, &Value)| {
            tokenizer.token_to_id(text).map(u64::from) != id.as_u64()
        };
        let different: Vec<_> = vocabulary.iter().filter(differs).collect();
        if let Some((text, id)) = different.first() {
            base::console::say_once(&format!(
                "warning: {}: differs from tokenizer.json, which is read, in {} tokens, such as `{text}` with the id {id}",
                dir.join(name).display(),
                different.len()
            ));
        }
    }
    Ok(())
}
