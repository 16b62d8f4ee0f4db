//! What decoding asks of a GPU, counted by the stand-in for CUDA (`tools/stand_in`), which must be the CUDA library of this process.

use std::sync::{Mutex, MutexGuard, PoisonError};

use base::{Completion, DrawKey, Prompt};
use engine::{Decoding, Engine, Request, SamplingParams};
use models::qwen2_5_vl::Config;
use models::{FamilyConfig, LoadOptions, TrainedParts, VisionLanguageModel, load_model};
use tch::{Device, Kind};
use torch::{DeviceCounts, FastPath, set_enabled};

use super::support::{generate_by, mixed_prompts, requests};

/// Counts and switches are those of the process.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    counts();
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counts() -> DeviceCounts {
    assert!(torch::load_cuda(), "no CUDA library");
    torch::device_counts().expect("the stand-in for CUDA")
}

/// A model of so many text layers, of heads that flash attention takes.
fn model(layers: usize, kind: Kind) -> Box<dyn VisionLanguageModel> {
    let mut config = Config::read(&testing::checkpoint("nested")).unwrap();
    config.text.num_hidden_layers = layers;
    let options = LoadOptions { kind, device: Device::Cuda(0), trained: TrainedParts::NONE };
    (&config as &dyn FamilyConfig).blank(options, None).unwrap()
}

/// What further tokens of six completions of two prompts ask, once four were decoded.
fn decode(layers: usize, kind: Kind, decoding: Decoding, tokens: usize) -> DeviceCounts {
    let model = model(layers, kind);
    let mut engine = Engine::new(&*model, 8).unwrap().with_decoding(decoding).unwrap();
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
    let _alone = alone();
    for decoding in [Decoding::Eager, Decoding::StaticShapes] {
        let [of_layer, besides] = launches(Kind::BFloat16, decoding);
        println!("bf16 {decoding:?}: {of_layer} a layer, {besides} besides");
        assert!(of_layer <= 20 && besides <= 45, "{decoding:?}: {of_layer}, {besides}");
        let [of_layer, besides] = launches(Kind::Float, decoding);
        println!("f32 {decoding:?}: {of_layer} a layer, {besides} besides");
        assert!(of_layer <= 50 && besides <= 45, "{decoding:?}: {of_layer}, {besides}");
    }
}

#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn decoding_waits_once_a_token() {
    let _alone = alone();
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

/// Completions of five prompts of different lengths, images among them, of which some end early.
fn completions(kind: Kind, device: Device, decoding: Decoding) -> Vec<Completion> {
    let options = LoadOptions { kind, device, trained: TrainedParts::NONE };
    let model = load_model(&testing::checkpoint("nested"), options).unwrap();
    let params = SamplingParams {
        max_new_tokens: 40,
        eos_ids: (0..500).step_by(50).collect(),
        ..Default::default()
    };
    let requests = requests(&mixed_prompts(&*model), 5);
    let generation = generate_by(decoding, model.as_ref(), &params, 9, &requests).unwrap();
    generation.completions.into_iter().flatten().collect()
}

#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn a_device_samples_what_the_cpu_does() {
    let _alone = alone();
    let expected = completions(Kind::Float, Device::Cpu, Decoding::Eager);
    for decoding in [Decoding::Eager, Decoding::StaticShapes, Decoding::CudaGraphs] {
        let got = completions(Kind::Float, Device::Cuda(0), decoding);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.ids, expected.ids, "{decoding:?}, completion {i}");
            for (a, b) in got.sampled_logprobs.iter().zip(&expected.sampled_logprobs) {
                assert!((a - b).abs() < 1e-4, "{decoding:?}, completion {i}: {a}, expected {b}");
            }
        }
    }
}

/// Rounding moves a token now and then, and all after it; up to there log-probabilities stay close.
#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn in_bf16_decoding_by_sequences_is_that_by_products() {
    let _alone = alone();
    let by = |decoding| completions(Kind::BFloat16, Device::Cuda(0), decoding);
    set_enabled(FastPath::DecodeAttention, false);
    let expected = by(Decoding::Eager);
    set_enabled(FastPath::DecodeAttention, true);
    for decoding in [Decoding::Eager, Decoding::StaticShapes, Decoding::CudaGraphs] {
        let (mut same, mut all) = (0, 0);
        for (got, expected) in by(decoding).iter().zip(&expected) {
            let common = got.ids.iter().zip(&expected.ids).take_while(|(a, b)| a == b).count();
            (same, all) = (same + common, all + got.ids.len());
            for i in 0..common {
                let [a, b] = [got.sampled_logprobs[i], expected.sampled_logprobs[i]];
                assert!((a - b).abs() < 0.05, "{decoding:?}, token {i}: {a}, expected {b}");
            }
        }
        println!("{decoding:?}: {same} of {all} tokens are the same");
        // Of 558 tokens that are nearly equally probable: 25 completions, whose first token is that of the prompt's pass.
        assert!(same > 75, "{decoding:?}: {same} of {all} tokens are the same");
    }
}
