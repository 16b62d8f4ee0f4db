//! The sampler equals the naive one: tokens, log-probabilities, reasons, whatever is decoded at once.

use base::DrawKey;
use engine::{Request, SamplingParams, naive_completion};
use models::VisionLanguageModel;
use tch::Kind;

use crate::support::{generate, ids, mixed_prompts, prompt, requests, tiny};

/// Every twelfth token ends an answer, so that lengths differ and slots are refilled.
fn many_ends() -> Vec<u32> {
    (0..500).step_by(12).collect()
}

fn assert_equal(model: &dyn VisionLanguageModel, params: &SamplingParams) {
    let prompts = mixed_prompts(model.image_token_id());
    let naive: Vec<Vec<_>> = requests(&prompts, 8)
        .iter()
        .map(|Request { prompt, key, .. }| {
            (0..8)
                .map(|completion| {
                    naive_completion(model, params, prompt, DrawKey { completion, ..*key }).unwrap()
                })
                .collect()
        })
        .collect();
    for num_completions in [1, 3, 8] {
        for max_concurrent in [1, 4, 64] {
            let requests = requests(&prompts, num_completions);
            let got = generate(model, params, max_concurrent, &requests).unwrap();
            let case = format!("{num_completions} completions, {max_concurrent} at once");
            for (group, expected) in got.completions.iter().zip(&naive) {
                assert_eq!(ids(group), ids(&expected[..num_completions]), "{case}");
                for (a, b) in group.iter().zip(expected) {
                    assert_eq!(a.finish_reason, b.finish_reason, "{case}");
                    let pairs = a.sampled_logprobs.iter().zip(&b.sampled_logprobs);
                    let worst = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-4, "{case}: log-probabilities differ by {worst}");
                }
            }
            let tokens: usize = got.completions.iter().flatten().map(|c| c.ids.len()).sum();
            assert_eq!(got.stats.tokens, tokens);
            assert_eq!(
                got.stats.prompts,
                prompts.len(),
                "{case}: each prompt is computed once"
            );
        }
    }
}

#[test]
fn sampled() {
    let params = SamplingParams {
        max_new_tokens: 14,
        eos_ids: many_ends(),
        ..Default::default()
    };
    assert_equal(tiny("nested", Kind::Float).as_ref(), &params);
}

#[test]
fn sampled_through_every_filter() {
    let params = SamplingParams {
        temperature: 1.3,
        top_k: Some(40),
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.2,
        max_new_tokens: 10,
        min_new_tokens: 3,
        eos_ids: many_ends(),
        forbidden_ids: vec![468, 29],
    };
    assert_equal(tiny("flat", Kind::Float).as_ref(), &params);
}

#[test]
fn greedy() {
    let params = SamplingParams {
        temperature: 0.0,
        max_new_tokens: 9,
        eos_ids: many_ends(),
        ..Default::default()
    };
    assert_equal(tiny("nested", Kind::Float).as_ref(), &params);
}

#[test]
fn greedy_with_repetition_penalty() {
    let params = SamplingParams {
        temperature: 0.0,
        repetition_penalty: 1.5,
        max_new_tokens: 9,
        eos_ids: many_ends(),
        ..Default::default()
    };
    assert_equal(tiny("flat", Kind::Float).as_ref(), &params);
}

/// Answers longer than the first size of their cache, which must grow without a trace.
#[test]
fn long_answers() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams {
        max_new_tokens: 80,
        ..Default::default()
    };
    let prompt = prompt(7, 5, &[], model.image_token_id());
    let got = generate(
        model.as_ref(),
        &params,
        2,
        &requests(std::slice::from_ref(&prompt), 3),
    )
    .unwrap();
    let key = requests(std::slice::from_ref(&prompt), 3)[0].key;
    for (completion, answer) in got.completions[0].iter().enumerate() {
        let key = DrawKey {
            completion: completion as u64,
            ..key
        };
        let expected = naive_completion(model.as_ref(), &params, &prompt, key).unwrap();
        assert_eq!(answer.ids, expected.ids);
        assert_eq!(answer.ids.len(), 80);
    }
}

/// In bf16 the sampler's caches and the packed pass round differently; on the same tokens they stay close.
#[test]
fn bf16_stays_close() {
    let model = tiny("nested", Kind::BFloat16);
    let params = SamplingParams {
        max_new_tokens: 12,
        ..Default::default()
    };
    let prompts = mixed_prompts(model.image_token_id());
    let got = generate(model.as_ref(), &params, 64, &requests(&prompts, 4)).unwrap();
    let (mut pairs, mut total) = (0, 0.0);
    for (Request { prompt, key, .. }, group) in requests(&prompts, 4).iter().zip(&got.completions) {
        for (completion, answer) in group.iter().enumerate() {
            let key = DrawKey {
                completion: completion as u64,
                ..*key
            };
            let expected = naive_completion(model.as_ref(), &params, prompt, key).unwrap();
            let same = answer
                .ids
                .iter()
                .zip(&expected.ids)
                .take_while(|(a, b)| a == b)
                .count();
            for (a, b) in answer
                .sampled_logprobs
                .iter()
                .zip(&expected.sampled_logprobs)
                .take(same)
            {
                total += f64::from((a - b).abs());
                pairs += 1;
            }
        }
    }
    let mean = total / f64::from(pairs);
    println!(
        "bf16: {pairs} equal tokens of {}, mean difference of log-probabilities {mean:.4}",
        got.stats.tokens
    );
    assert!(pairs > 40, "only {pairs} tokens agree");
    assert!(mean < 0.05, "mean difference {mean}");
}
