//! Prompts of each model family equal those of transformers' own processors, from text to pixels.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::image::{ImageOptions, ImageProcessor};
use data::{Message, Processor, ProcessorOptions, ResizeBackend};
use serde::Deserialize;
use testing::golden;

use crate::image::sha256;

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    images: Vec<String>,
    prompt: String,
    rendered: String,
    prompt_ids: Vec<u32>,
    completion: String,
    completion_ids: Vec<u32>,
    #[serde(default)]
    image_grid_thw: Vec<[usize; 3]>,
    pixel_values: Option<Pixels>,
}

#[derive(Deserialize)]
struct Pixels {
    shape: [usize; 2],
    sha256: String,
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a golden folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.is_dir());
    paths.sort();
    paths
}

fn processor(folder: &Path) -> Processor {
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        max_prompt_length: None,
        apply_exif: false,
    };
    Processor::from_dir(folder, &options).expect("a model folder")
}

/// transformers enlarges no tiny image beforehand.
fn images(folder: &Path) -> ImageProcessor {
    let options =
        ImageOptions { enlarge_tiny: false, ..ImageOptions::new(ResizeBackend::Torchvision) };
    ImageProcessor::from_dir(folder, &options).expect("settings")
}

#[test]
fn prompts_and_pixels_of_each_family_equal_transformers() {
    let mut compared = 0;
    for family in folders_in(&golden("families")) {
        for folder in folders_in(&family.join("cases")) {
            let name = folder.display().to_string();
            let text = fs::read_to_string(folder.join("case.json")).expect("a case");
            let case: Case = serde_json::from_str(&text).expect("a case");
            let checkpoint = family.join("checkpoints").join(&case.checkpoint);
            let (processor, preparing) = (processor(&checkpoint), images(&checkpoint));
            let path = |image: &String| golden("parity/images").join(image);
            let load = |image| Arc::new(preparing.load(&path(image)).expect("an image"));
            let prepared: Vec<_> = case.images.iter().map(load).collect();
            let turn = Message::user(prepared.len(), &case.prompt);
            let rendered = processor.chat_template().render(&[turn], true).expect("renders");
            assert_eq!(rendered, case.rendered, "{name}");
            let prompt = processor.prompt(&case.prompt, &prepared).expect("a prompt");
            assert_eq!(prompt.ids, case.prompt_ids, "{name}");
            let answer = processor.answer_ids(&case.completion).expect("ids");
            assert_eq!(answer, case.completion_ids, "{name}");
            let tiles = prepared.iter().flat_map(|image| image.layout.tiles.clone());
            assert_eq!(tiles.collect::<Vec<_>>(), case.image_grid_thw, "{name}");
            let values: Vec<f32> =
                prepared.iter().flat_map(|image| image.pixel_values.iter().copied()).collect();
            if let Some(pixels) = case.pixel_values {
                assert_eq!(values.len(), pixels.shape.iter().product::<usize>(), "{name}");
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(sha256(&bytes), pixels.sha256, "{name}");
            } else {
                assert!(values.is_empty(), "{name}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 22, "{compared} cases");
}
