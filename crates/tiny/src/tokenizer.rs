//! A small byte-level BPE tokenizer with Qwen2.5-VL's special tokens, and the settings files of a
//! model folder that belong to it.
//!
//! It differs from Qwen's in three ways, all of which make sequences short: a number is one token,
//! so is a comma with its space between numbers, and so is each sentence that is given as one.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

use crate::scenes::IMAGE_PX;

/// Side of an image patch, px.
pub const PATCH_SIZE: u32 = 8;
/// Patches along a side that merge into one token.
pub const MERGE_SIZE: u32 = 2;

const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|, (?=\p{N})|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// In the order of Qwen2.5's vocabulary.
const SPECIAL: [&str; 14] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

const SYSTEM: &str = "You are a helpful assistant.";

/// What a tokenizer is made for.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Sentences that are one token each.
    pub sentences: Vec<String>,
    /// Texts whose every word becomes one token; those of a sentence only if they stand here too.
    pub texts: Vec<String>,
}

/// Ids that `config.json` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenIds {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// `<|endoftext|>`.
    pub end_of_text: u32,
    /// `<|im_end|>`.
    pub end_of_turn: u32,
    /// `<|vision_start|>`.
    pub vision_start: u32,
    /// `<|vision_end|>`.
    pub vision_end: u32,
    /// `<|vision_pad|>`.
    pub vision_pad: u32,
    /// `<|image_pad|>`.
    pub image_pad: u32,
    /// `<|video_pad|>`.
    pub video_pad: u32,
}

impl TokenIds {
    /// Their keys in `config.json`.
    pub fn keys(&self) -> [(&'static str, u32); 7] {
        [
            ("bos_token_id", self.end_of_text),
            ("eos_token_id", self.end_of_turn),
            ("image_token_id", self.image_pad),
            ("video_token_id", self.video_pad),
            ("vision_start_token_id", self.vision_start),
            ("vision_end_token_id", self.vision_end),
            ("vision_token_id", self.vision_pad),
        ]
    }
}

/// Qwen2.5-VL's chat template: a default system turn, then the turns, images as placeholders.
const CHAT_TEMPLATE: &str = concat!(
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}",
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}",
    "<|im_start|>{{ message['role'] }}\n",
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n",
    "{% else %}{% for content in message['content'] %}",
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}",
    "{% set image_count.value = image_count.value + 1 %}",
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "{% elif content['type'] == 'video' or 'video' in content %}",
    "{% set video_count.value = video_count.value + 1 %}",
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}",
    "<|vision_start|><|video_pad|><|vision_end|>",
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n",
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
);

/// Writes `tokenizer.json`, `tokenizer_config.json`, `chat_template.json`, `generation_config.json`
/// and `preprocessor_config.json` into `folder`.
///
/// # Errors
/// A file that cannot be written.
pub fn write(folder: &Path, words: &Words) -> Result<TokenIds> {
    let mut bpe = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(pre_tokenizer()?))
        .with_post_processor(Some(ByteLevel::default()))
        .with_decoder(Some(ByteLevel::default()))
        .build()
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    // More merges than the corpus has: every word of it becomes one token.
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(4096)
        .min_frequency(1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    bpe.train(&mut trainer, corpus(words).iter()).map_err(|e| anyhow!("tokenizer: {e}"))?;
    let added = |text: &str, special| AddedToken::from(text, special).normalized(false);
    bpe.add_special_tokens(SPECIAL.map(|text| added(text, true)))
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    let sentences = words.sentences.iter().map(String::as_str);
    bpe.add_tokens(std::iter::once(SYSTEM).chain(sentences).map(|text| added(text, false)))
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    let path = folder.join("tokenizer.json");
    bpe.save(&path, true).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    let id = |text: &str| bpe.token_to_id(text).with_context(|| format!("tokenizer: no `{text}`"));
    let ids = TokenIds {
        vocab_size: bpe.get_vocab_size(true),
        end_of_text: id("<|endoftext|>")?,
        end_of_turn: id("<|im_end|>")?,
        vision_start: id("<|vision_start|>")?,
        vision_end: id("<|vision_end|>")?,
        vision_pad: id("<|vision_pad|>")?,
        image_pad: id("<|image_pad|>")?,
        video_pad: id("<|video_pad|>")?,
    };
    write_settings(folder, &ids)?;
    Ok(ids)
}

fn pre_tokenizer() -> Result<Sequence> {
    let pattern = SplitPattern::Regex(SPLIT.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]))
}

fn corpus(words: &Words) -> Vec<String> {
    let mut lines: Vec<String> =
        [SYSTEM, "system\n", "user\n", "assistant\n"].map(str::to_owned).into();
    lines.extend(words.texts.iter().cloned());
    lines.extend((0..=IMAGE_PX).map(|number| format!("[{number}, {number}]")));
    lines
}

fn write_settings(folder: &Path, ids: &TokenIds) -> Result<()> {
    let pixels = u64::from(IMAGE_PX).pow(2);
    let files: [(&str, Value); 4] = [
        // Where processors of transformers look, as in the hub's folders.
        ("chat_template.json", json!({"chat_template": CHAT_TEMPLATE})),
        (
            "tokenizer_config.json",
            json!({
                "add_prefix_space": false,
                "bos_token": null,
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": false,
                "eos_token": "<|im_end|>",
                "errors": "replace",
                "model_max_length": 2048,
                "pad_token": "<|endoftext|>",
                "split_special_tokens": false,
                // Qwen's own class would put Qwen's splitting in the place of the file's.
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": null,
            }),
        ),
        (
            "generation_config.json",
            json!({
                "bos_token_id": ids.end_of_text,
                "eos_token_id": [ids.end_of_turn, ids.end_of_text],
                "pad_token_id": ids.end_of_text,
            }),
        ),
        (
            "preprocessor_config.json",
            json!({
                "min_pixels": u64::from(PATCH_SIZE * MERGE_SIZE).pow(2),
                "max_pixels": 16 * pixels,
                "patch_size": PATCH_SIZE,
                "temporal_patch_size": 2,
                "merge_size": MERGE_SIZE,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            }),
        ),
    ];
    for (name, value) in files {
        let path = folder.join(name);
        fs::write(&path, format!("{value:#}\n")).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
