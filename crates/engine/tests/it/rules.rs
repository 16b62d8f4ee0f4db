//! What may be sampled, when completions end, and what is refused.

use std::cell::Cell;

use base::{DrawKey, FinishReason, Prompt};
use engine::{EngineError, Generator, Request, SamplingParams};
use tch::Kind;

use crate::support::{generate, image, key, mixed_prompts, prompt, requests, tiny};

/// Everything but `allowed` is forbidden; hot enough that these are about equally probable.
fn only(allowed: &[u32], vocab_size: i64) -> SamplingParams {
    SamplingParams {
        temperature: 100.0,
        forbidden_ids: (0..vocab_size as u32).filter(|id| !allowed.contains(id)).collect(),
        ..Default::default()
    }
}

#[test]
fn the_placeholder_is_never_sampled() {
    let model = tiny("nested", Kind::Float);
    let image_token = model.image_token_id();
    // Were it possible, every fourth token would be the placeholder.
    let params = SamplingParams {
        max_new_tokens: 50,
        ..only(&[5, 6, 7, image_token], model.text_shape().vocab_size)
    };
    let prompts = mixed_prompts(&*model);
    let got = generate(model.as_ref(), &params, 32, &requests(&prompts, 8)).unwrap();
    let mut counts = [0; 3];
    for &id in got.completions.iter().flatten().flat_map(|c| &c.ids) {
        assert!((5..8).contains(&id), "sampled {id}");
        counts[id as usize - 5] += 1;
    }
    assert_eq!(counts.iter().sum::<i32>(), 5 * 8 * 50);
    assert!(counts.iter().all(|&n| n > 400), "{counts:?}");
}

#[test]
fn an_end_token_ends_a_completion_and_belongs_to_it() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams {
        max_new_tokens: 6,
        eos_ids: vec![8, 9],
        ..only(&[5, 8, 9], model.text_shape().vocab_size)
    };
    let prompts = mixed_prompts(&*model);
    let got = generate(model.as_ref(), &params, 5, &requests(&prompts, 20)).unwrap();
    let (mut stopped, mut cut, mut last) = (0, 0, [false; 10]);
    for completion in got.completions.iter().flatten() {
        let (end, body) = completion.ids.split_last().unwrap();
        assert!(body.iter().all(|&id| id == 5));
        assert_eq!(completion.ids.len(), completion.sampled_logprobs.len());
        last[*end as usize] = true;
        if *end == 5 {
            assert_eq!((completion.finish_reason, completion.ids.len()), (FinishReason::Length, 6));
            cut += 1;
        } else {
            assert_eq!(completion.finish_reason, FinishReason::Stop);
            stopped += 1;
        }
    }
    assert_eq!(stopped + cut, 100);
    assert!(last[8] && last[9] && stopped > 80, "{stopped} stopped, ends {last:?}");
}

#[test]
fn no_end_before_min_new_tokens() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams {
        max_new_tokens: 12,
        min_new_tokens: 4,
        eos_ids: vec![8],
        ..only(&[5, 8], model.text_shape().vocab_size)
    };
    let prompts = mixed_prompts(&*model);
    let got = generate(model.as_ref(), &params, 7, &requests(&prompts, 8)).unwrap();
    let lens: Vec<usize> = got.completions.iter().flatten().map(|c| c.ids.len()).collect();
    // The end is the fifth token at the earliest, and half of the completions take it at once.
    assert_eq!(lens.iter().min(), Some(&5));
    assert!(lens.iter().filter(|&&len| len == 5).count() > 10, "{lens:?}");
}

#[test]
fn every_completion_is_reported_once() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams {
        max_new_tokens: 5,
        eos_ids: (0..500).step_by(5).collect(),
        ..Default::default()
    };
    let mut requests = requests(&mixed_prompts(&*model), 4);
    requests[1].num_completions = 0;
    requests[2].num_completions = 9;
    let generator = Generator::new(model.as_ref(), params, 6).unwrap();
    let mut reported = Vec::new();
    let got = generator
        .generate(
            &requests,
            &mut |request, index, completion| {
                reported.push((request, index, completion.ids.clone()))
            },
            &|| false,
        )
        .unwrap();
    reported.sort();
    let listed: Vec<_> = got
        .completions
        .iter()
        .enumerate()
        .flat_map(|(r, group)| {
            group.iter().enumerate().map(move |(i, completion)| (r, i, completion.ids.clone()))
        })
        .collect();
    assert_eq!(reported, listed);
    let lens: Vec<usize> = got.completions.iter().map(Vec::len).collect();
    assert_eq!(lens, [4, 0, 9, 4, 4]);
    assert_eq!(got.stats.prompts, 4, "a request for nothing computes nothing");
    assert!(generator.generate(&[], &mut |_, _, _| {}, &|| false).unwrap().completions.is_empty());
}

#[test]
fn completions_depend_on_their_keys() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams { max_new_tokens: 8, ..Default::default() };
    let prompt = prompt(0, 9, &[], model.image_token_id());
    let sample = |key: DrawKey, num_completions| {
        let request = Request { prompt: prompt.clone(), num_completions, key };
        let mut got = generate(model.as_ref(), &params, 8, &[request]).unwrap();
        got.completions.remove(0).into_iter().map(|c| c.ids).collect::<Vec<_>>()
    };
    let group = sample(key(0), 3);
    assert_eq!(sample(DrawKey { completion: 2, ..key(0) }, 1), group[2..]);
    assert_ne!(group[0], group[1]);
    assert_ne!(sample(DrawKey { step: 6, ..key(0) }, 3), group);
}

#[test]
fn cancelling_stops_before_the_next_pass() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams { max_new_tokens: 500, ..Default::default() };
    let asked = Cell::new(0);
    let cancel = || {
        asked.set(asked.get() + 1);
        asked.get() == 4
    };
    let generator = Generator::new(model.as_ref(), params, 8).unwrap();
    let requests = requests(&mixed_prompts(&*model), 2);
    let error = generator.generate(&requests, &mut |_, _, _| {}, &cancel).unwrap_err();
    assert!(matches!(error, EngineError::Cancelled { finished: 0, total: 10 }), "{error}");
    assert_eq!(asked.get(), 4);
    assert_eq!(error.to_string(), "sampling cancelled with 0 of 10 completions finished");
}

#[test]
fn bad_prompts_are_refused_by_number() {
    let model = tiny("nested", Kind::Float);
    let image_token = model.image_token_id();
    let good = prompt(0, 9, &[], image_token);
    let refuse = |bad: Prompt| {
        let requests = requests(&[good.clone(), bad], 1);
        generate(model.as_ref(), &SamplingParams::default(), 4, &requests).unwrap_err().to_string()
    };
    let empty = Prompt { ids: Vec::new(), images: Vec::new() };
    assert_eq!(refuse(empty), "request 1: empty prompt, expected at least one token");
    let unknown = Prompt { ids: vec![1, 2, 9999], images: Vec::new() };
    assert_eq!(refuse(unknown), "request 1: prompt token 2 is 9999, expected below 558");
    let mut no_images = prompt(1, 9, &[image(&*model, 0, 4, 6)], image_token);
    no_images.images.clear();
    assert!(refuse(no_images).starts_with("request 1: prompt has 6 image placeholder tokens"));
}

#[test]
fn parameters_out_of_range_are_refused() {
    let model = tiny("nested", Kind::Float);
    let refuse = |params: SamplingParams, max_concurrent| match Generator::new(
        model.as_ref(),
        params,
        max_concurrent,
    ) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted"),
    };
    let none = SamplingParams { max_new_tokens: 0, ..Default::default() };
    assert_eq!(refuse(none, 1), "sampling parameter `max_new_tokens`: got 0, expected 1 or more");
    assert_eq!(
        refuse(SamplingParams::default(), 0),
        "sampling parameter `max_concurrent`: got 0, expected 1 or more"
    );
}

#[test]
fn nan_weights_are_an_error() {
    let model = tiny("nested", Kind::Float);
    let norm = model
        .parameters()
        .list
        .iter()
        .find(|p| p.name.ends_with("language_model.norm.weight"))
        .unwrap();
    let _ = norm.value.shallow_clone().fill_(f64::NAN);
    let requests = requests(&[prompt(0, 9, &[], model.image_token_id())], 2);
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, ..Default::default() };
        let error = generate(model.as_ref(), &params, 4, &requests).unwrap_err();
        assert!(
            matches!(error, EngineError::NonFinite { request: 0, completion: 0, token: 0, .. }),
            "{error}"
        );
    }
}
