//! Prompt ids equal those of transformers' `Qwen2_5_VLProcessor` (`tools/golden/text.py`).

use std::fs;
use std::sync::Arc;

use base::{ImageLayout, PreparedImage};
use data::{DataError, Message, Processor, ProcessorOptions, ResizeBackend, Tokenizer};
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use testing::golden;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
    texts: Vec<GoldenText>,
    halves: Vec<GoldenHalf>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    name: String,
    images: Vec<String>,
    text: String,
    rendered: String,
    grids: Vec<[usize; 3]>,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct GoldenText {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_plain: String,
}

#[derive(Deserialize)]
struct GoldenHalf {
    ids: Vec<u32>,
    decoded: String,
}

fn read_golden() -> Golden {
    testing::read_json(golden("text/prompts.json"))
}

pub fn options() -> ProcessorOptions {
    ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        apply_exif: false,
        max_prompt_length: None,
    }
}

fn processor() -> Processor {
    Processor::from_dir(&golden("text/tokenizer"), &options()).expect("a whole folder")
}

fn image(grid_thw: [usize; 3]) -> Arc<PreparedImage> {
    Arc::new(PreparedImage::new(Vec::new(), ImageLayout::merged(grid_thw, 2), [1, 1], [1, 1]))
}

#[test]
fn golden_files_are_those_of_the_manifest() {
    let root = golden("text");
    let manifest = fs::read(root.join("manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest");
    let listed = manifest["sha256"].as_object().expect("hashes");
    assert!(listed.contains_key("prompts.json") && listed.contains_key("tokenizer/tokenizer.json"));
    for (name, hash) in listed {
        let digest = Sha256::digest(fs::read(root.join(name)).expect("a listed file"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, &hex, "{name}: run `tools/golden/text.py` again");
    }
}

#[test]
fn prompts_equal_transformers() {
    let (processor, golden_prompts) = (processor(), read_golden().prompts);
    assert!(golden_prompts.len() >= 15);
    for prompt in golden_prompts {
        let turn = Message::user(prompt.grids.len(), &prompt.text);
        let rendered = processor.chat_template().render(&[turn], true).expect("renders");
        assert_eq!(rendered, prompt.rendered, "{}", prompt.name);
        let images: Vec<_> = prompt.grids.iter().map(|grid| image(*grid)).collect();
        let ours = processor.prompt(&prompt.text, &images).expect("a prompt");
        assert_eq!(ours.ids, prompt.ids, "{}", prompt.name);
        assert_eq!(ours.images.len(), images.len());
    }
}

#[test]
fn prompts_of_files_equal_transformers() {
    let processor = processor();
    for prompt in read_golden().prompts.iter().filter(|prompt| !prompt.images.is_empty()) {
        let load = |name| {
            let path = golden("text/images").join(name);
            Arc::new(processor.load_image(&path).expect("a golden image"))
        };
        let images: Vec<_> = prompt.images.iter().map(load).collect();
        let grids: Vec<_> = images.iter().map(|image| image.layout.tiles[0]).collect();
        assert_eq!(grids, prompt.grids, "{}", prompt.name);
        assert_eq!(processor.prompt(&prompt.text, &images).expect("a prompt").ids, prompt.ids);
    }
}

#[test]
fn texts_encode_and_decode_as_in_transformers() {
    let tokenizer = Tokenizer::from_dir(&golden("text/tokenizer")).expect("a tokenizer");
    let golden = read_golden();
    for text in golden.texts {
        assert_eq!(tokenizer.encode(&text.text).expect("encodes"), text.ids, "{:?}", text.text);
        assert_eq!(tokenizer.decode(&text.ids, false).expect("decodes"), text.decoded);
        assert_eq!(tokenizer.decode(&text.ids, true).expect("decodes"), text.decoded_plain);
    }
    for half in golden.halves {
        assert_eq!(tokenizer.decode(&half.ids, true).expect("decodes"), half.decoded);
    }
}

#[test]
fn answers_end_their_turn() {
    let processor = processor();
    let ids = processor.answer_ids("<answer> 3 </answer>").expect("ids");
    let end = processor.tokenizer().token_to_id("<|im_end|>").expect("a known token");
    assert_eq!(ids.last(), Some(&end));
    let text = processor.tokenizer().decode(&ids, true).expect("decodes");
    assert_eq!(text, "<answer> 3 </answer>");
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 1);
}

#[test]
fn long_prompts_are_refused_and_never_cut() {
    let text = "How many?";
    let images = [image([1, 4, 6])];
    let length = processor().prompt(text, &images).expect("a prompt").ids.len();
    let limited = |max| {
        let options = ProcessorOptions { max_prompt_length: Some(max), ..options() };
        let processor = Processor::from_dir(&golden("text/tokenizer"), &options).expect("a folder");
        processor.prompt(text, &images)
    };
    assert_eq!(limited(length).expect("fits").ids.len(), length);
    let error = limited(length - 1).expect_err("one token too long");
    assert!(matches!(
        error,
        DataError::PromptTooLong { tokens, image_tokens: 6, max } if tokens == length && max == length - 1
    ));
}

#[test]
fn a_literal_placeholder_is_an_error() {
    let error = processor().prompt("<|image_pad|>", &[image([1, 2, 2])]).expect_err("two for one");
    assert!(matches!(error, DataError::Placeholders { placeholders: 2, images: 1 }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn placeholders_count_merged_patches(
        grids in prop::collection::vec((1usize..3, 1usize..9, 1usize..9), 0..4),
        text in "\\PC{0,40}",
    ) {
        prop_assume!(!text.contains("<|"));
        let processor = processor();
        let images: Vec<_> = grids.iter().map(|(t, h, w)| image([*t, 2 * h, 2 * w])).collect();
        let prompt = processor.prompt(&text, &images).expect("a prompt");
        let placeholder = processor.tokenizer().image_token_id();
        let count = prompt.ids.iter().filter(|id| Some(**id) == placeholder).count();
        prop_assert_eq!(count, grids.iter().map(|(t, h, w)| t * h * w).sum::<usize>());
    }
}
