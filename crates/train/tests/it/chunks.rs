//! Logits of many completion tokens are computed in chunks, and recomputed for the gradient: what comes out is
//! what one graph over all of them gives.

use models::VisionLanguageModel;
use tch::{Kind, Tensor};
use train::logprobs::Predictions;

use crate::golden;

const ROWS: i64 = 11;

/// Log-probabilities, entropies, gradient of the hidden states, gradient of the head.
fn pass(model: &dyn VisionLanguageModel, chunk_rows: i64) -> [Tensor; 4] {
    let shape = model.text_shape();
    let numbers = Tensor::arange(ROWS * shape.hidden_size, (Kind::Float, model.compute().1));
    let leaf = (numbers * 0.37).sin().view([ROWS, shape.hidden_size]);
    let leaf = leaf.set_requires_grad(true);
    let targets = Tensor::arange(ROWS, (Kind::Int64, model.compute().1)) * 5;
    for parameter in &model.parameters().list {
        let mut grad = parameter.value.grad();
        if grad.defined() {
            let _ = grad.zero_();
        }
    }
    let hidden = &leaf * 2.0;
    let predictions = Predictions { chunk_rows, ..Predictions::new(model, &hidden, &targets, 0.7) };
    let (scalar, [logprobs, entropies]) = predictions.differentiate(|scores| {
        let weights = Tensor::arange(ROWS, (Kind::Float, scores.logprobs.device())) - 4.5;
        let loss = (scores.logprobs.exp() * weights).sum(Kind::Float);
        let told = [scores.logprobs.detach(), scores.entropies.copy()];
        (loss, told)
    });
    scalar.backward();
    let head = model.parameters().list.iter();
    let head = head
        .filter(|p| p.name.ends_with("lm_head.weight") || p.name.ends_with("embed_tokens.weight"))
        .map(|p| p.value.grad())
        .find(Tensor::defined);
    [logprobs, entropies, leaf.grad(), head.unwrap().copy()]
}

#[test]
fn chunks_of_logits_give_the_gradients_of_one_graph() {
    // An untied head, and one tied to the embedding.
    for checkpoint in ["nested", "flat"] {
        let model = golden::model(checkpoint, true);
        let whole = pass(model.as_ref(), ROWS);
        assert!(f64::try_from(whole[2].abs().max()).unwrap() > 1e-3);
        for chunk_rows in [1, 4, 10] {
            let chunked = pass(model.as_ref(), chunk_rows);
            for (index, (a, b)) in whole.iter().zip(&chunked).enumerate() {
                let scale = f64::try_from(a.abs().max()).unwrap();
                let difference = golden::max_difference(a, b) / scale;
                assert!(
                    difference < 1e-5,
                    "{checkpoint}, {chunk_rows} rows, part {index}: {difference}"
                );
            }
        }
    }
}
