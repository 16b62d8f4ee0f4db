//! A small byte-level BPE tokenizer with Qwen2.5-VL's special tokens, and the settings files of a
//! model folder that belong to it.
//!
//! It differs from Qwen's in three ways, all of which make sequences short: a number is one token,
//! so is a comma with its space between numbers, and so is each sentence that stands in every
//! prompt.

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

use super::dataset::QUESTION;
use super::scenes::{PICTURE_PX, all_expressions};

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
const DEMAND: &str = " First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> tags. Output the final answer in JSON format.";
const PLAIN_DEMAND: &str = " Please provide the bounding box coordinate in JSON format.";

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
pub fn write(folder: &Path) -> Result<TokenIds> {
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
    bpe.train(&mut trainer, corpus().iter())
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    let added = |text: &str, special| AddedToken::from(text, special).normalized(false);
    bpe.add_special_tokens(SPECIAL.map(|text| added(text, true)))
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    bpe.add_tokens([SYSTEM, QUESTION[0], DEMAND, PLAIN_DEMAND].map(|text| added(text, false)))
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    let path = folder.join("tokenizer.json");
    bpe.save(&path, true)
        .map_err(|e| anyhow!("{}: {e}", path.display()))?;
    let id = |text: &str| {
        bpe.token_to_id(text)
            .with_context(|| format!("tokenizer: no `{text}`"))
    };
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
    Ok(Sequence::new(vec![
        split.into(),
        ByteLevel::new(false, false, false).into(),
    ]))
}

/// All that prompts and answers of the demo are made of.
fn corpus() -> Vec<String> {
    let mut lines = vec![
        SYSTEM.to_owned(),
        format!("{}{}", QUESTION[0], QUESTION[1]),
        DEMAND.to_owned(),
        PLAIN_DEMAND.to_owned(),
        "system\n".to_owned(),
        "user\n".to_owned(),
        "assistant\n".to_owned(),
    ];
    for expression in all_expressions() {
        // As in a question, and as a thinking text begins.
        lines.push(format!("{expression}."));
        let name = expression.trim_start_matches("the ");
        lines.push(format!(
            "<think>{name}</think><answer>{{\"bbox\": [1, 2, 3, 4]}}</answer>"
        ));
    }
    lines.extend((0..=PICTURE_PX).map(|number| format!("[{number}, {number}]")));
    lines
}

fn write_settings(folder: &Path, ids: &TokenIds) -> Result<()> {
    let pixels = u64::from(PICTURE_PX).pow(2);
    let files: [(&str, Value); 4] = [
        // Where processors of transformers look, as in the hub's folders.
        (
            "chat_template.json",
            json!({"chat_template": CHAT_TEMPLATE}),
        ),
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

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;

    fn tokens(bpe: &Tokenizer, text: &str) -> Vec<String> {
        let ids = bpe.encode(text, false).unwrap();
        assert_eq!(bpe.decode(ids.get_ids(), false).unwrap(), text);
        ids.get_ids()
            .iter()
            .map(|&id| bpe.decode(&[id], false).unwrap())
            .collect()
    }

    #[test]
    fn numbers_words_and_prompt_sentences_are_one_token_each() {
        let folder = tempfile::tempdir().unwrap();
        let ids = write(folder.path()).unwrap();
        let bpe = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        assert!(ids.vocab_size < 1024, "{}", ids.vocab_size);
        for number in 0..=PICTURE_PX {
            assert_eq!(tokens(&bpe, &number.to_string()).len(), 1, "{number}");
        }
        let answer = "<think>red disc</think><answer>{\"bbox\": [8, 16, 24, 40]}</answer>";
        let expected = "<think|>red| disc|</|think|><|answer|>{\"|bbox|\":| [|8|, |16|, |24|, |40|]}</|answer|>";
        assert_eq!(tokens(&bpe, answer).join("|"), expected);
        assert_eq!(
            tokens(&bpe, "[8, 16, 24, 40]").join("|"),
            "[|8|, |16|, |24|, |40|]"
        );
        let question = format!("{}the red disc.{DEMAND}", QUESTION[0]);
        let expected = [QUESTION[0], "the", " red", " disc", ".", DEMAND];
        assert_eq!(tokens(&bpe, &question), expected);
        let turn = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n";
        assert_eq!(tokens(&bpe, turn).len(), 9);
        // Whatever is not in the corpus still goes in and out.
        tokens(&bpe, "Größe 1234 ✓ <|im_end|>");
    }

    #[test]
    fn the_same_files_every_time() {
        let [a, b] = [0, 1].map(|_| tempfile::tempdir().unwrap());
        assert_eq!(write(a.path()).unwrap(), write(b.path()).unwrap());
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ] {
            assert_eq!(
                fs::read(a.path().join(name)).unwrap(),
                fs::read(b.path().join(name)).unwrap(),
                "{name}"
            );
        }
    }
}
