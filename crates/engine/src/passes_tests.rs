//! Steps of static shape read and write the same addresses, which a CUDA graph needs.

use std::collections::HashMap;

use base::{DrawKey, Prompt};
use models::{LoadOptions, TrainedParts, load_model};

use super::*;
use crate::params::SamplingParams;
use crate::static_shapes::Decoding;

#[test]
fn addresses_stay_while_no_relocation_is_counted() {
    let folder = testing::checkpoint("nested");
    let options = LoadOptions {
        kind: Kind::Float,
        device: torch::device_of_tests(),
        trained: TrainedParts::NONE,
    };
    let model = load_model(&folder, options).unwrap();
    let params = SamplingParams {
        max_new_tokens: 150,
        eos_ids: (0..500).step_by(60).collect(),
        ..Default::default()
    };
    let mut engine =
        Engine::new(model.as_ref(), 8).unwrap().with_decoding(Decoding::StaticShapes).unwrap();
    for i in 0..10u32 {
        let request = Request {
            prompt: Prompt { ids: (0..5 + 7 * i).collect(), images: Vec::new() },
            num_completions: 1 + i as usize % 4,
            key: DrawKey { seed: 1, step: 0, prompt: u64::from(i), completion: 0 },
        };
        engine.add(request, &params.clone().into()).unwrap();
    }
    let mut addresses: HashMap<u64, Vec<usize>> = HashMap::new();
    let (mut calls, mut shapes) = (0, Vec::new());
    while !engine.is_idle() {
        engine.step().unwrap();
        let step = engine.buffers.static_step.as_ref().unwrap();
        let now = [engine.buffers.cache.addresses(), step.addresses()].concat();
        let relocations = step.relocations(&engine.buffers.cache);
        let before = addresses.entry(relocations).or_insert_with(|| now.clone());
        assert_eq!(*before, now);
        calls += 1;
        shapes.push(step.shape());
    }
    // Completions ended and started, outgrew shapes, and buffers moved a few times only.
    shapes.sort();
    shapes.dedup();
    assert!(calls > 20, "{calls}");
    assert!(shapes.len() > 4 && shapes.len() < calls, "{shapes:?}");
    assert!((2..8).contains(&addresses.len()), "{}", addresses.len());
    let tokens = engine.stats().tokens;
    assert!(tokens > 500, "{tokens}");
}
