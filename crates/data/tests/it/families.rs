//! Prompts, pixels and answers of every family's tiny checkpoint equal those of transformers (`tools/golden/parity.py`, `families.py`).

use std::sync::Arc;

use data::{Message, Processor};
use serde_json::Value;
use sha2::{Digest, Sha256};
use testing::{ParityCase, golden};

use crate::prompts::options;

fn numbers(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("numbers")
}

fn text<'v>(case: &'v ParityCase, key: &str) -> &'v str {
    case.value[key].as_str().expect("a text")
}

#[test]
fn rows_equal_transformers() {
    for case in ParityCase::all() {
        let processor = Processor::from_dir(&testing::checkpoint(&case.checkpoint), &options())
            .expect("a whole folder");
        let names: Vec<String> =
            serde_json::from_value(case.value["images"].clone()).expect("names");
        let turn = Message::user(names.len(), text(&case, "prompt"));
        let rendered = processor.chat_template().render(&[turn], true).expect("renders");
        assert_eq!(rendered, text(&case, "rendered"), "{}", case.name);

        let load = |name: &String| {
            let path = golden("parity/images").join(name);
            Arc::new(processor.load_image(&path).expect("an image"))
        };
        let images: Vec<_> = names.iter().map(load).collect();
        let tiles: Vec<[usize; 3]> = images.iter().flat_map(|i| i.layout.tiles.clone()).collect();
        let expected: Vec<[usize; 3]> =
            serde_json::from_value(case.value["image_grid_thw"].clone()).expect("grids");
        assert_eq!(tiles, expected, "{}", case.name);
        let prompt = processor.prompt(text(&case, "prompt"), &images).expect("a prompt");
        assert_eq!(prompt.ids, numbers(&case.value["prompt_ids"]), "{}", case.name);
        let answer = processor.answer_ids(text(&case, "completion")).expect("ids");
        assert_eq!(answer, numbers(&case.value["completion_ids"]), "{}", case.name);

        let pixels: Vec<f32> = images.iter().flat_map(|i| i.pixel_values.clone()).collect();
        let bytes: Vec<u8> = pixels.iter().flat_map(|x| x.to_le_bytes()).collect();
        let expected = &case.value["pixel_values"]["sha256"];
        match names.is_empty() {
            true => assert_eq!((pixels.len(), expected), (0, &Value::Null)),
            false => assert_eq!(*expected, hex(&Sha256::digest(bytes)), "{}", case.name),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
