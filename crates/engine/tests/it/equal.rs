//! The generator equals the naive one: tokens, log-probabilities, reasons, whatever is decoded at once and however.

use base::{Completion, DrawKey};
use engine::{Decoding, EngineError, Generation, Request, SamplingParams, naive_completion};
use models::VisionLanguageModel;
use tch::Kind;

use crate::support::{generate, generate_by, ids, mixed_prompts, prompt, requests, tiny};

/// The tiny checkpoints with a tied head.
const TIED: [&str; 3] = ["flat", "qwen2_vl/hub", "qwen3_vl/hub"];

/// Every twelfth token ends a completion, so that lengths differ and slots are refilled.
fn many_ends() -> Vec<u32> {
    (0..500).step_by(12).collect()
}

/// How many completions a prompt has, and how many are decoded at once.
type Numbers = (&'static [usize], &'static [usize]);

const ALL: Numbers = (&[1, 3, 8], &[1, 4, 6, 64]);
/// With slots that are refilled, and without. What is decoded when is the same for every family.
const FEW: Numbers = (&[3], &[4, 64]);

/// All numbers for the first family, few for the others.
fn numbers_of(index: usize) -> Numbers {
    if index == 0 { ALL } else { FEW }
}

fn assert_equal(
    model: &dyn VisionLanguageModel,
    params: &SamplingParams,
    (numbers, at_once): Numbers,
) {
    let prompts = mixed_prompts(model);
    let most = numbers.iter().copied().max().unwrap();
    let naive: Vec<Vec<_>> = requests(&prompts, most)
        .iter()
        .map(|Request { prompt, key, .. }| {
            (0..most as u64)
                .map(|completion| {
                    naive_completion(model, params, prompt, DrawKey { completion, ..*key }).unwrap()
                })
                .collect()
        })
        .collect();
    for decoding in [Decoding::Eager, Decoding::StaticShapes] {
        for &num_completions in numbers {
            for &max_concurrent in at_once {
                let requests = requests(&prompts, num_completions);
                let got = generate_by(decoding, model, params, max_concurrent, &requests).unwrap();
                let case = format!(
                    "{decoding:?}, {num_completions} completions, {max_concurrent} at once"
                );
                for (group, expected) in got.completions.iter().zip(&naive) {
                    assert_same(group, &expected[..num_completions], &case);
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
}

fn assert_same(got: &[Completion], expected: &[Completion], case: &str) {
    assert_eq!(ids(got), ids(expected), "{case}");
    for (a, b) in got.iter().zip(expected) {
        assert_eq!(a.finish_reason, b.finish_reason, "{case}");
        let pairs = a.sampled_logprobs.iter().zip(&b.sampled_logprobs);
        let worst = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{case}: log-probabilities differ by {worst}");
    }
}

fn plain() -> SamplingParams {
    SamplingParams { max_new_tokens: 14, eos_ids: many_ends(), ..Default::default() }
}

fn every_filter() -> SamplingParams {
    SamplingParams {
        temperature: 1.3,
        top_k: Some(40),
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.2,
        max_new_tokens: 10,
        min_new_tokens: 3,
        eos_ids: many_ends(),
        forbidden_ids: vec![468, 29],
    }
}

#[test]
fn sampled() {
    for (index, checkpoint) in testing::nested_checkpoints().into_iter().enumerate() {
        assert_equal(tiny(checkpoint, Kind::Float).as_ref(), &plain(), numbers_of(index));
    }
}

#[test]
fn sampled_through_every_filter() {
    for (index, checkpoint) in TIED.into_iter().enumerate() {
        assert_equal(tiny(checkpoint, Kind::Float).as_ref(), &every_filter(), numbers_of(index));
    }
}

#[test]
fn greedy() {
    let params = SamplingParams {
        temperature: 0.0,
        max_new_tokens: 9,
        eos_ids: many_ends(),
        ..Default::default()
    };
    assert_equal(tiny("nested", Kind::Float).as_ref(), &params, ALL);
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
    assert_equal(tiny("flat", Kind::Float).as_ref(), &params, ALL);
}

/// Completions longer than the first size of their cache, which must grow without a trace.
#[test]
fn long_completions() {
    for checkpoint in testing::nested_checkpoints() {
        check_long_completions(tiny(checkpoint, Kind::Float));
    }
}

fn check_long_completions(model: Box<dyn VisionLanguageModel>) {
    let params = SamplingParams { max_new_tokens: 80, ..Default::default() };
    let prompt = prompt(7, 5, &[], model.image_token_id());
    let requests = requests(std::slice::from_ref(&prompt), 3);
    let naive: Vec<Completion> = (0..3)
        .map(|completion| {
            let key = DrawKey { completion, ..requests[0].key };
            naive_completion(model.as_ref(), &params, &prompt, key).unwrap()
        })
        .collect();
    for decoding in [Decoding::Eager, Decoding::StaticShapes] {
        let got = generate_by(decoding, model.as_ref(), &params, 2, &requests).unwrap();
        assert_same(&got.completions[0], &naive, &format!("{decoding:?}"));
        assert!(got.completions[0].iter().all(|c| c.ids.len() == 80));
    }
}

/// Many completions of uneven lengths over many prompts, in static shapes and eager.
#[test]
fn static_shapes_equal_eager() {
    for (index, checkpoint) in TIED.into_iter().enumerate() {
        let at_once: &[usize] = if index == 0 { &[3, 16] } else { &[16] };
        check_static_shapes(tiny(checkpoint, Kind::Float), at_once);
    }
}

fn check_static_shapes(model: Box<dyn VisionLanguageModel>, at_once: &[usize]) {
    // Few allowed tokens: rounding then rarely moves a sample to another token.
    let params = SamplingParams {
        max_new_tokens: 200,
        min_new_tokens: 2,
        eos_ids: vec![0],
        forbidden_ids: (0..model.text_shape().vocab_size as u32)
            .filter(|id| id % 12 != 0)
            .collect(),
        ..Default::default()
    };
    let mut requests = requests(&mixed_prompts(&*model), 9);
    for (i, request) in requests.iter_mut().enumerate() {
        request.num_completions = [9, 1, 0, 4, 2][i];
    }
    for &max_concurrent in at_once {
        let by = |decoding| -> Generation {
            generate_by(decoding, model.as_ref(), &params, max_concurrent, &requests).unwrap()
        };
        let (static_shapes, eager) = (by(Decoding::StaticShapes), by(Decoding::Eager));
        for (got, expected) in static_shapes.completions.iter().zip(&eager.completions) {
            assert_same(got, expected, &format!("{max_concurrent} at once"));
        }
        assert_eq!(static_shapes.stats.tokens, eager.stats.tokens);
        assert_eq!(static_shapes.stats.boundary_draws, eager.stats.boundary_draws);
        let lens: Vec<usize> =
            static_shapes.completions.iter().flatten().map(|c| c.ids.len()).collect();
        assert!(lens.iter().max() > Some(&64) && lens.iter().min() < Some(&20), "{lens:?}");
        // A step launched before a completion was seen to end counts once more.
        let passes = [static_shapes.stats.decode_passes, eager.stats.decode_passes];
        assert!(passes[0] <= passes[1] + lens.len(), "{passes:?}");
    }
}

#[test]
fn graphs_are_refused_without_a_gpu() {
    if torch::device_of_tests().is_cuda() {
        println!("skipped: this device captures");
        return;
    }
    let model = tiny("nested", Kind::Float);
    let requests = requests(&mixed_prompts(&*model), 1);
    let refused =
        generate_by(Decoding::CudaGraphs, model.as_ref(), &SamplingParams::default(), 1, &requests);
    match refused {
        Err(error @ EngineError::Torch(_)) => {
            let text = error.to_string();
            assert!(text.starts_with("CUDA graphs: expected a GPU, got cpu\nhint: "), "{text}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Graphs replay the operations of static shapes: equal bit for bit. Eager sums in other sizes, so a draw at the boundary of two tokens may
/// fall otherwise; until then it is the same within rounding.
#[test]
fn graphs_equal_static_shapes() {
    if !torch::device_of_tests().is_cuda() {
        println!("skipped: `make test-device` has a device that captures");
        return;
    }
    for (index, checkpoint) in TIED.into_iter().enumerate() {
        let samplings = if index == 0 { &SAMPLINGS[..] } else { &SAMPLINGS[2..] };
        check_graphs(tiny(checkpoint, Kind::Float), samplings);
    }
}

/// Temperature and `top_p`.
const SAMPLINGS: [(f64, f64); 3] = [(0.0, 1.0), (1.0, 1.0), (1.2, 0.9)];

fn check_graphs(model: Box<dyn VisionLanguageModel>, samplings: &[(f64, f64)]) {
    for &(temperature, top_p) in samplings {
        let params = SamplingParams {
            temperature,
            top_p,
            max_new_tokens: 200,
            eos_ids: (0..500).step_by(50).collect(),
            ..Default::default()
        };
        let requests = requests(&mixed_prompts(&*model), 8);
        let by = |decoding| -> Generation {
            generate_by(decoding, model.as_ref(), &params, 16, &requests).unwrap()
        };
        let graphs = by(Decoding::CudaGraphs).completions.concat();
        let static_shapes = by(Decoding::StaticShapes).completions.concat();
        let eager = by(Decoding::Eager).completions.concat();
        let mut tokens = 0;
        for ((got, expected), eager) in graphs.iter().zip(&static_shapes).zip(&eager) {
            assert_eq!(
                (&got.ids, &got.sampled_logprobs),
                (&expected.ids, &expected.sampled_logprobs)
            );
            let pairs = got.ids.iter().zip(&eager.ids);
            let same = pairs.take_while(|(a, b)| a == b).count();
            tokens += same;
            let logprobs = got.sampled_logprobs.iter().zip(&eager.sampled_logprobs).take(same);
            for (a, b) in logprobs {
                assert!((a - b).abs() < 1e-5, "{a}, eager {b}");
            }
        }
        let all: usize = eager.iter().map(|completion| completion.ids.len()).sum();
        assert!(10 * tokens > 9 * all, "{tokens} tokens of {all} as eager");
    }
}

/// In bf16 the KV cache and the packed pass round differently; on the same tokens they stay close.
#[test]
fn bf16_stays_close() {
    for checkpoint in testing::nested_checkpoints() {
        check_bf16(tiny(checkpoint, Kind::BFloat16));
    }
}

fn check_bf16(model: Box<dyn VisionLanguageModel>) {
    let params = SamplingParams { max_new_tokens: 12, ..Default::default() };
    let prompts = mixed_prompts(&*model);
    let got = generate(model.as_ref(), &params, 64, &requests(&prompts, 4)).unwrap();
    let (mut pairs, mut total) = (0, 0.0);
    for (Request { prompt, key, .. }, group) in requests(&prompts, 4).iter().zip(&got.completions) {
        for (index, completion) in group.iter().enumerate() {
            let key = DrawKey { completion: index as u64, ..*key };
            let expected = naive_completion(model.as_ref(), &params, prompt, key).unwrap();
            let same = completion.ids.iter().zip(&expected.ids).take_while(|(a, b)| a == b).count();
            for (a, b) in
                completion.sampled_logprobs.iter().zip(&expected.sampled_logprobs).take(same)
            {
                total += f64::from((a - b).abs());
                pairs += 1;
            }
        }
    }
    let mean = total / f64::from(pairs);
    assert!(pairs > 40, "only {pairs} tokens agree");
    assert!(mean < 0.05, "mean difference {mean}");
}

mod long {
    use super::*;

    #[test]
    #[ignore = "`make test-long` runs it"]
    fn every_family_by_all_numbers() {
        for checkpoint in testing::nested_checkpoints() {
            assert_equal(tiny(checkpoint, Kind::Float).as_ref(), &plain(), ALL);
        }
        for checkpoint in TIED {
            assert_equal(tiny(checkpoint, Kind::Float).as_ref(), &every_filter(), ALL);
            check_static_shapes(tiny(checkpoint, Kind::Float), &[3, 16]);
            if torch::device_of_tests().is_cuda() {
                check_graphs(tiny(checkpoint, Kind::Float), &SAMPLINGS);
            }
        }
    }
}
