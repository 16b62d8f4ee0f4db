//! What decoding asks of a GPU, counted by the stand-in for CUDA (`tools/stand_in`), which must be the CUDA library of this process.

use base::{DrawKey, Prompt};
use engine::{Decoding, Engine, Request, SamplingParams};
use models::qwen2_5_vl::{Config, Model};
use models::{LoadOptions, TrainedParts};
use tch::{Device, Kind};
use torch::DeviceCounts;

fn counts() -> DeviceCounts {
    assert!(torch::load_cuda(), "no CUDA library");
    torch::device_counts().expect("the stand-in for CUDA")
}

/// A model of so many text layers, of heads that flash attention takes.
fn model(layers: usize, kind: Kind) -> Model {
    let mut config = Config::read(&testing::checkpoint("nested")).unwrap();
    config.text.num_hidden_layers = layers;
    let options = LoadOptions { kind, device: Device::Cuda(0), trained: TrainedParts::NONE };
    Model::blank(config, options, None).unwrap()
}

/// What further tokens of six completions of two prompts ask, once four were decoded.
fn decode(layers: usize, kind: Kind, decoding: Decoding, tokens: usize) -> DeviceCounts {
    counts();
    let model = model(layers, kind);
    let mut engine = Engine::new(&model, 8).unwrap().with_decoding(decoding).unwrap();
    let params = SamplingParams { max_new_tokens: 60, ..Default::default() };
    for prompt in 0..2u32 {
        let request = Request {
            prompt: Prompt { ids: (0..9 + 5 * prompt).collect(), images: Vec::new() },
            num_completions: 3,
            key: DrawKey { seed: 1, step: 0, prompt: prompt.into(), completion: 0 },
        };
        engine.add(request, &params.clone().into()).unwrap();
    }
    for _ in 0..8 {
        engine.step().unwrap();
    }
    let before = counts();
    for _ in 0..tokens {
        assert_eq!(engine.step().unwrap().len(), 6);
    }
    let after = counts();
    DeviceCounts {
        launches: after.launches - before.launches,
        waits: after.waits - before.waits,
        captures: after.captures - before.captures,
        replays: after.replays - before.replays,
        pageable_uploads: after.pageable_uploads - before.pageable_uploads,
    }
}

/// Launches of a layer and a token, and of a token besides its layers.
fn launches(kind: Kind, decoding: Decoding) -> [i64; 2] {
    let [few, many] = [2, 6].map(|layers| decode(layers as usize, kind, decoding, 10).launches);
    assert_eq!((many - few) % 40, 0, "the same of each layer and token");
    let of_layer = (many - few) / 40;
    [of_layer, few / 10 - 2 * of_layer]
}

#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn decoding_launches_few_kernels() {
    for decoding in [Decoding::Eager, Decoding::StaticShapes] {
        let [of_layer, besides] = launches(Kind::BFloat16, decoding);
        println!("bf16 {decoding:?}: {of_layer} a layer, {besides} besides");
        assert!(of_layer <= 20 && besides <= 60, "{decoding:?}: {of_layer}, {besides}");
        let [of_layer, besides] = launches(Kind::Float, decoding);
        println!("f32 {decoding:?}: {of_layer} a layer, {besides} besides");
        assert!(of_layer <= 45 && besides <= 60, "{decoding:?}: {of_layer}, {besides}");
    }
}

#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn decoding_waits_once_a_token() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let eager = decode(2, kind, Decoding::Eager, 10);
        assert_eq!((eager.waits, eager.pageable_uploads), (10, 0), "{kind:?}");
        let graphs = decode(2, kind, Decoding::CudaGraphs, 10);
        println!("{kind:?}: {graphs:?}");
        assert_eq!((graphs.waits, graphs.pageable_uploads), (10, 0), "{kind:?}");
        assert_eq!((graphs.captures, graphs.replays), (0, 10), "{kind:?}");
        // A replay is one launch.
        assert!(graphs.launches <= 10, "{kind:?}: {}", graphs.launches);
    }
}
