//! What predictions say of launches, against the counts of the stand-in for CUDA (`make test-device`).

use std::sync::Arc;

use base::{DrawKey, ImageLayout, PreparedImage, Prompt};
use engine::{Decoding, Engine, Request, SamplingParams};
use models::model::forward;
use models::qwen2_5_vl::Config;
use models::{
    Checkpointing, FamilyConfig, InputsBuilder, LoadOptions, PackedAttention, TrainedParts,
    VisionLanguageModel,
};
use tch::{Kind, Tensor};
use train::plan::launches;

fn now() -> i64 {
    torch::device_counts().expect("the stand-in for CUDA: `make test-device`").launches
}

fn model(layers: usize, blocks: usize, trained: TrainedParts) -> Box<dyn VisionLanguageModel> {
    let mut config = Config::read(&testing::checkpoint("nested")).unwrap();
    config.text.num_hidden_layers = layers;
    config.vision.depth = blocks;
    let device = torch::device_of_tests();
    (&config as &dyn FamilyConfig)
        .blank(LoadOptions { kind: Kind::BFloat16, device, trained }, None)
        .unwrap()
}

fn prompt(text: u32, image_token: u32) -> Prompt {
    let pixels = vec![0.5; 4 * 6 * 3 * 2 * 14 * 14];
    let image =
        Arc::new(PreparedImage::new(pixels, ImageLayout::merged([1, 4, 6], 2), [84, 56], [84, 56]));
    let mut ids: Vec<u32> = (0..text).collect();
    ids.push(image_token - 3);
    ids.extend([image_token; 6]);
    ids.push(image_token - 2);
    Prompt { ids, images: vec![image] }
}

/// Launches forward and backward of a packed batch.
fn training(layers: usize, blocks: usize) -> [i64; 2] {
    let model = model(layers, blocks, TrainedParts::ALL);
    let mut builder = InputsBuilder::new(&*model);
    for text in [5, 9] {
        builder.push_prompt(&prompt(text, model.image_token_id())).unwrap();
    }
    let batch = builder.build();
    let (kind, device) = model.compute();
    let attention = PackedAttention::new(&batch.layout, true, kind, device);
    let pass = batch.pass_inputs(&*model);
    let mut found = [0; 2];
    // The first pass makes what later ones reuse.
    for _ in 0..2 {
        let start = now();
        let hidden = forward(&*model, &mut Checkpointing::new(false), &batch, &pass, &attention);
        let loss: Tensor = hidden.sum(Kind::Float);
        let middle = now();
        loss.backward();
        found = [middle - start, now() - middle];
        for parameter in &model.parameters().list {
            drop(torch::take_grad(&parameter.value).unwrap());
        }
    }
    found
}

/// Launches of ten decoded tokens of six completions.
fn decoding(layers: usize) -> i64 {
    let model = model(layers, 1, TrainedParts::NONE);
    let mut engine = Engine::new(&*model, 8).unwrap().with_decoding(Decoding::Eager).unwrap();
    let params = SamplingParams { max_new_tokens: 60, ..Default::default() };
    for number in 0..2 {
        let request = Request {
            prompt: Prompt { ids: (0..9 + 5 * number).collect(), images: Vec::new() },
            num_completions: 3,
            key: DrawKey { seed: 1, step: 0, prompt: number.into(), completion: 0 },
        };
        engine.add(request, &params.clone().into()).unwrap();
    }
    for _ in 0..8 {
        engine.step().unwrap();
    }
    let before = now();
    for _ in 0..10 {
        assert_eq!(engine.step().unwrap().len(), 6);
    }
    now() - before
}

/// A constant may say a little more than was counted, never less.
fn holds(what: &str, constant: u64, counted: i64) -> bool {
    println!("{what}: {counted} counted, {constant} in predictions");
    (counted..=counted + 2 + counted / 10).contains(&(constant as i64))
}

#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn predictions_count_the_launches_that_there_are() {
    let [few, many] = [2, 6].map(decoding);
    let of_layer = (many - few) / 40;
    let [few_layers, more_layers, more_blocks] =
        [(2, 2), (6, 2), (2, 6)].map(|(layers, blocks)| training(layers, blocks));
    let [layer, block] =
        [more_layers, more_blocks].map(|many| [0, 1].map(|i| (many[i] - few_layers[i]) / 4));
    let held = [
        holds("decoding, a layer", launches::PER_LAYER_DECODING, of_layer),
        holds("decoding, besides", launches::PER_TOKEN_DECODING, few / 10 - 2 * of_layer),
        holds("a layer forward", launches::PER_LAYER_TRAINING_FORWARD, layer[0]),
        holds("a layer backward", launches::PER_LAYER_TRAINING_BACKWARD, layer[1]),
        holds("a block forward", launches::PER_BLOCK_TRAINING_FORWARD, block[0]),
        holds("a block backward", launches::PER_BLOCK_TRAINING_BACKWARD, block[1]),
    ];
    assert_eq!(held, [true; 6]);
}
