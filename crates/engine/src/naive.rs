//! Generation in its simplest form: one sequence, a whole forward pass for every token, sampling in scalar Rust.
//! [`crate::Generator`] is tested against it. Read this file first.

use base::{Completion, DrawKey, FinishReason, Prompt};
use models::{Checkpointing, InputsBuilder, PackedAttention, VisionLanguageModel, model};
use tch::{Kind, Tensor};

use crate::EngineError;
use crate::params::SamplingParams;

/// Samples one completion of `prompt` with the random numbers of `key`.
///
/// # Errors
/// Parameters out of range, an empty prompt, or one that does not fit its images.
pub fn naive_completion(
    model: &dyn VisionLanguageModel,
    params: &SamplingParams,
    prompt: &Prompt,
    key: DrawKey,
) -> Result<Completion, EngineError> {
    params.validate(model.text_shape().vocab_size, model.image_token_id())?;
    if prompt.ids.is_empty() {
        return Err(EngineError::EmptyPrompt { request: 0 });
    }
    let mut ids: Vec<u32> = Vec::new();
    let mut sampled_logprobs = Vec::new();
    loop {
        let logits = tch::no_grad(|| next_logits(model, prompt, &ids))?;
        let logprobs = log_softmax(&logits, params);
        let held: Vec<u32> = prompt.ids.iter().chain(&ids).copied().collect();
        let scores = scores(&logits, params, &held, ids.len(), model.image_token_id());
        let id = if params.greedy() {
            argmax(&scores)
        } else {
            draw(&filtered(scores, params), key.uniform(ids.len()))
        };
        ids.push(id as u32);
        sampled_logprobs.push(logprobs[id] as f32);
        let finish_reason = if params.eos_ids.contains(&(id as u32)) {
            FinishReason::Stop
        } else if ids.len() == params.max_new_tokens {
            FinishReason::Length
        } else {
            continue;
        };
        return Ok(Completion { ids, sampled_logprobs, finish_reason });
    }
}

/// Logits after `prompt` and `ids`, by a pass over all of them.
fn next_logits(
    model: &dyn VisionLanguageModel,
    prompt: &Prompt,
    ids: &[u32],
) -> Result<Vec<f32>, EngineError> {
    let (kind, device) = model.compute();
    let mut builder = InputsBuilder::new(model);
    let segment =
        builder.push_prompt(prompt).map_err(|source| EngineError::Prompt { request: 0, source })?;
    if !ids.is_empty() {
        builder.push_completion(segment, ids);
    }
    let batch = builder.build();
    let attention = PackedAttention::new(&batch.layout, true, kind, device);
    let pass = batch.pass_inputs(model);
    let hidden = model::forward(model, &mut Checkpointing::new(false), &batch, &pass, &attention);
    let last = hidden.narrow(0, batch.layout.num_tokens() as i64 - 1, 1);
    let logits: Tensor = model.logits(&last, None).view([-1]).to_kind(Kind::Float);
    Ok(Vec::try_from(&logits)?)
}

fn log_softmax(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let temperature = if params.greedy() { 1.0 } else { params.temperature };
    let scaled: Vec<f64> = logits.iter().map(|&x| f64::from(x) / temperature).collect();
    let log_sum = log_sum_exp(&scaled);
    scaled.iter().map(|x| x - log_sum).collect()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let log_sum = log_sum_exp(x);
    x.iter().map(|x| (x - log_sum).exp()).collect()
}

/// Penalty, masks and temperature; `num_generated` tokens came before.
pub(crate) fn scores(
    logits: &[f32],
    params: &SamplingParams,
    held: &[u32],
    num_generated: usize,
    image_token: u32,
) -> Vec<f64> {
    let mut scores: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let mut held = held.to_vec();
    held.sort_unstable();
    held.dedup();
    for id in held {
        let score = &mut scores[id as usize];
        *score = if *score < 0.0 {
            *score * params.repetition_penalty
        } else {
            *score / params.repetition_penalty
        };
    }
    let early = num_generated < params.min_new_tokens;
    let ends = params.eos_ids.iter().filter(|_| early);
    for &id in params.forbidden_ids.iter().chain([&image_token]).chain(ends) {
        scores[id as usize] = f64::NEG_INFINITY;
    }
    if !params.greedy() {
        scores.iter_mut().for_each(|x| *x /= params.temperature);
    }
    scores
}

/// Top-k, then top-p, then min-p.
pub(crate) fn filtered(mut scores: Vec<f64>, params: &SamplingParams) -> Vec<f64> {
    if let Some(k) = params.effective_top_k().filter(|&k| k < scores.len()) {
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        scores.iter_mut().filter(|x| **x < sorted[k - 1]).for_each(|x| *x = f64::NEG_INFINITY);
    }
    if params.top_p < 1.0 {
        let probabilities = softmax(&scores);
        let mut ascending: Vec<usize> = (0..scores.len()).collect();
        ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut sum = 0.0;
        for &id in &ascending[..ascending.len() - 1] {
            sum += probabilities[id];
            if sum <= 1.0 - params.top_p {
                scores[id] = f64::NEG_INFINITY;
            }
        }
    }
    if params.min_p > 0.0 {
        let probabilities = softmax(&scores);
        let cut = params.min_p * probabilities.iter().copied().fold(0.0, f64::max);
        scores
            .iter_mut()
            .zip(&probabilities)
            .filter(|(_, p)| **p < cut)
            .for_each(|(x, _)| *x = f64::NEG_INFINITY);
    }
    scores
}

/// The lowest id of the largest score.
fn argmax(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |best, id| if scores[id] > scores[best] { id } else { best })
}

/// The first id whose cumulative probability exceeds `uniform`.
pub(crate) fn draw(scores: &[f64], uniform: f64) -> usize {
    let probabilities = softmax(scores);
    let mut sum = 0.0;
    let mut last = 0;
    for (id, &probability) in probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        sum += probability;
        last = id;
        if sum > uniform {
            break;
        }
    }
    last
}
