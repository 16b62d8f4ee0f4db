//! Answers over a shared prompt equal the same rows computed one by one, gradients included, and the
//! way a step is cut into micro-batches changes nothing.

use std::sync::Arc;

use base::Prompt;
use models::VisionLanguageModel;
use tch::{Kind, Tensor};
use train::batch::{MicroBatch, Pass, PromptWithCompletions};

use crate::golden;

fn prompts(checkpoint: &str) -> Vec<Prompt> {
    let processor = golden::processor(checkpoint);
    let image = |name: &str| {
        Arc::new(processor.load_image(&golden::folder("parity/images").join(name)).unwrap())
    };
    let (scene, small) = (image("scene.png"), image("small.png"));
    vec![
        processor.prompt("Where is the circle?", std::slice::from_ref(&scene)).unwrap(),
        processor.prompt("How many?", &[]).unwrap(),
        processor.prompt("Compare them.", &[small, scene]).unwrap(),
    ]
}

const COMPLETIONS: [&[&[u32]]; 3] =
    [&[&[5, 6, 7, 8, 538], &[9, 538], &[30]], &[&[11, 12, 13]], &[&[7, 7, 8, 538], &[40, 41]]];

/// Sum over tokens of each log-probability times a weight of its own.
fn gradients(
    model: &dyn VisionLanguageModel,
    batches: &[(Vec<PromptWithCompletions<'_>>, Vec<f32>)],
    recompute: bool,
) -> (Vec<f32>, Vec<Tensor>) {
    let mut logprobs = Vec::new();
    for (items, weights) in batches {
        let batch = MicroBatch::pack(model, items).unwrap();
        let got = batch.backward(model, Pass::new(0.9, recompute), |scores| {
            let loss = (&scores.logprobs * torch::on_test_device(weights)).sum(Kind::Float);
            (loss, Vec::<f32>::try_from(scores.logprobs.detach()).unwrap())
        });
        logprobs.extend(got);
    }
    let gradients = model.parameters().list.iter().map(|p| p.value.grad().copy()).collect();
    (logprobs, gradients)
}

#[test]
fn shared_equals_one_by_one() {
    for checkpoint in testing::nested_checkpoints() {
        check_shared(checkpoint);
    }
}

fn check_shared(checkpoint: &str) {
    let prompts = prompts(checkpoint);
    let weight =
        |g: usize, a: usize, t: usize| 0.3 + 0.1 * g as f32 - 0.25 * a as f32 + 0.05 * t as f32;
    let weights = |g: usize, a: usize| -> Vec<f32> {
        (0..COMPLETIONS[g][a].len()).map(|t| weight(g, a, t)).collect()
    };

    let together: Vec<PromptWithCompletions<'_>> =
        prompts.iter().zip(COMPLETIONS).map(|(p, a)| (p, a.to_vec())).collect();
    let all: Vec<f32> =
        (0..3).flat_map(|g| (0..COMPLETIONS[g].len()).flat_map(move |a| weights(g, a))).collect();
    let mut alone = Vec::new();
    for (g, prompt) in prompts.iter().enumerate() {
        for (a, completion) in COMPLETIONS[g].iter().enumerate() {
            alone.push((vec![(prompt, vec![*completion])], weights(g, a)));
        }
    }
    let expected = {
        let model = golden::model(checkpoint, true);
        gradients(model.as_ref(), &alone, false)
    };
    for recompute in [false, true] {
        let model = golden::model(checkpoint, true);
        let got = gradients(model.as_ref(), &[(together.clone(), all.clone())], recompute);
        for (a, b) in got.0.iter().zip(&expected.0) {
            assert!((a - b).abs() < 1e-4, "{checkpoint}: {a} {b}");
        }
        for ((a, b), parameter) in got.1.iter().zip(&expected.1).zip(&model.parameters().list) {
            let norm = |t: &Tensor| f64::try_from(t.norm()).unwrap();
            let relative = norm(&(a - b)) / norm(b).max(1e-4);
            assert!(relative < 1e-4, "{checkpoint} {}: {relative}", parameter.name);
        }
    }
}

#[test]
fn an_empty_completion_is_refused() {
    let model = golden::model("nested", false);
    let prompts = prompts("nested");
    assert!(MicroBatch::pack(model.as_ref(), &[(&prompts[1], vec![&[]])]).is_err());
}
