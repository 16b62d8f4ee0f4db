//! Tiny models, prompts with images, and shorthands.

use std::sync::Arc;

use base::{Completion, DrawKey, ImageLayout, PreparedImage, Prompt};
use engine::{Decoding, EngineError, Generation, Generator, Request, SamplingParams};
use models::{LoadOptions, TrainedParts, VisionLanguageModel, load_model};
use tch::Kind;

pub fn tiny(checkpoint: &str, kind: Kind) -> Box<dyn VisionLanguageModel> {
    let folder = testing::checkpoint(checkpoint);
    load_model(
        &folder,
        LoadOptions { kind, device: torch::device_of_tests(), trained: TrainedParts::NONE },
    )
    .unwrap()
}

pub fn key(prompt: u64) -> DrawKey {
    DrawKey { seed: 3, step: 5, prompt, completion: 0 }
}

/// An image of keyed noise, `height x width` patches.
pub fn image(
    model: &dyn VisionLanguageModel,
    number: u64,
    height: usize,
    width: usize,
) -> Arc<PreparedImage> {
    let patch_dim = model.patch_dim();
    let key = DrawKey { seed: 11, step: 0, prompt: number, completion: 0 };
    // A few draws spread over the patches: an image needs no more, and random numbers are slow.
    let noise: Vec<f32> = (0..97).map(|i| (4.0 * key.uniform(i) - 2.0) as f32).collect();
    let pixel_values =
        (0..height * width * patch_dim).map(|i| noise[(i + i / patch_dim) % noise.len()]).collect();
    let size = [14 * width as u32, 14 * height as u32];
    Arc::new(PreparedImage::new(
        pixel_values,
        ImageLayout::merged([1, height, width], 2),
        size,
        size,
    ))
}

/// A prompt of keyed tokens with an image after every few of them, as the chat template places it.
pub fn prompt(
    number: u64,
    num_text: usize,
    images: &[Arc<PreparedImage>],
    image_token: u32,
) -> Prompt {
    let key = DrawKey { seed: 12, step: 0, prompt: number, completion: 0 };
    // Below the ids of special tokens.
    let text: Vec<u32> = (0..num_text).map(|i| (500.0 * key.uniform(i)) as u32).collect();
    let mut ids = text[..num_text / 2].to_vec();
    for image in images {
        let merged = image.layout.num_tokens();
        // Vision start and end stand right before and after the placeholder's id in these vocabularies.
        ids.push(image_token - 3);
        ids.extend(std::iter::repeat_n(image_token, merged));
        ids.push(image_token - 2);
    }
    ids.extend(&text[num_text / 2..]);
    Prompt { ids, images: images.to_vec() }
}

/// Text only, one image, two images, and one that shares its image with another.
pub fn mixed_prompts(model: &dyn VisionLanguageModel) -> Vec<Prompt> {
    let image_token = model.image_token_id();
    let [small, wide, tall] =
        [(0, 4, 6), (1, 2, 8), (2, 6, 4)].map(|(number, h, w)| image(model, number, h, w));
    vec![
        prompt(0, 9, &[], image_token),
        prompt(1, 14, std::slice::from_ref(&small), image_token),
        prompt(2, 7, &[wide, tall], image_token),
        prompt(3, 1, &[], image_token),
        prompt(4, 11, &[small], image_token),
    ]
}

pub fn requests(prompts: &[Prompt], num_completions: usize) -> Vec<Request> {
    let request = |(i, prompt): (usize, &Prompt)| Request {
        prompt: prompt.clone(),
        num_completions,
        key: key(i as u64),
    };
    prompts.iter().enumerate().map(request).collect()
}

pub fn generate(
    model: &dyn VisionLanguageModel,
    params: &SamplingParams,
    max_concurrent: usize,
    requests: &[Request],
) -> Result<Generation, EngineError> {
    generate_by(Decoding::Eager, model, params, max_concurrent, requests)
}

pub fn generate_by(
    decoding: Decoding,
    model: &dyn VisionLanguageModel,
    params: &SamplingParams,
    max_concurrent: usize,
    requests: &[Request],
) -> Result<Generation, EngineError> {
    Generator::new(model, params.clone(), max_concurrent)?.with_decoding(decoding)?.generate(
        requests,
        &mut |_, _, _| {},
        &|| false,
    )
}

pub fn ids(group: &[Completion]) -> Vec<&[u32]> {
    group.iter().map(|c| c.ids.as_slice()).collect()
}
