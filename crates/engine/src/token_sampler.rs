//! From logits to tokens, the whole batch at once: penalty, masks, temperature, filters, keyed random numbers.
//!
//! Order and meanings are those of transformers' `generate` (5.17, `generation/logits_process.py`):
//! repetition penalty, forbidden tokens, shortest completion, temperature, top-k, top-p, min-p. The log-probabilities reported are
//! taken before all of them, as training takes them.

use std::rc::Rc;

use models::VisionLanguageModel;
use tch::{Device, Tensor};
pub use torch::BOUNDARY;
use torch::{SamplingConstants, TokenFilters, TokenSampling, TokenTable, sample_tokens};

use crate::params::SamplingParams;

/// What was sampled for one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: u32,
    /// Log-softmax(logits / temperature) of it, before penalty, masks and filters.
    pub logprob: f32,
    /// Whether rounding alone could have changed it ([`BOUNDARY`]).
    pub near_boundary: bool,
}

impl SampledToken {
    /// The tokens of a table of [`TokenSampler::sample_on_device`] on the host; `greedy` says of each row how it was chosen.
    pub fn read_table(table: &Tensor, greedy: impl IntoIterator<Item = bool>) -> Vec<Self> {
        let columns = table.size()[1];
        let kind = TokenTable::of_columns(columns);
        let mut values = vec![0f64; table.numel()];
        table.copy_data(&mut values, table.numel());
        let rows = values.chunks_exact(columns as usize).zip(greedy);
        rows.map(|(row, greedy)| {
            let (id, logprob, near_boundary) = kind.read(row, greedy);
            SampledToken { id: id as u32, logprob: logprob as f32, near_boundary }
        })
        .collect()
    }
}

/// Rows to sample a token for.
#[derive(Clone, Copy, Debug)]
pub struct SamplerInputs<'a> {
    /// `[n, vocab_size]`.
    pub logits: &'a Tensor,
    /// `[n]` uniform numbers in f64.
    pub uniforms: &'a Tensor,
    /// `[n, 1]`: rows that may not end yet; `None` where all may.
    pub unfinished: Option<&'a Tensor>,
    /// `[n, vocab_size]`: tokens of prompt and completion; `None` without repetition penalty.
    pub seen: Option<&'a Tensor>,
}

/// Samples tokens with one set of parameters.
#[derive(Debug)]
pub struct TokenSampler {
    params: Rc<SamplingParams>,
    number: u64,
    /// `[vocab_size]`.
    forbidden: Tensor,
    /// `[vocab_size]`: either.
    forbidden_or_ends: Tensor,
    constants: SamplingConstants,
}

impl TokenSampler {
    /// For the head of `model`; `params` are valid, `number` is the sampler's own.
    pub fn new(model: &dyn VisionLanguageModel, params: Rc<SamplingParams>, number: u64) -> Self {
        let device = model.compute().1;
        let vocab_size = model.text_shape().vocab_size;
        let image_token = model.image_token_id();
        let sampler = TokenSampler::with_vocabulary(vocab_size, image_token, params, device);
        TokenSampler { number, ..sampler }
    }

    fn with_vocabulary(
        vocab_size: i64,
        image_token: u32,
        params: Rc<SamplingParams>,
        device: Device,
    ) -> Self {
        let marked = |ids: &[u32]| {
            let mut marks = vec![false; vocab_size as usize];
            for &id in ids {
                if let Some(mark) = marks.get_mut(id as usize) {
                    *mark = true;
                }
            }
            torch::upload(&marks, device)
        };
        let forbidden = marked(&[&params.forbidden_ids[..], &[image_token]].concat());
        let forbidden_or_ends = forbidden.logical_or(&marked(&params.eos_ids));
        let constants = SamplingConstants::new([&forbidden, &forbidden_or_ends]);
        TokenSampler { params, number: 0, forbidden, forbidden_or_ends, constants }
    }

    /// Its parameters.
    pub fn params(&self) -> &Rc<SamplingParams> {
        &self.params
    }

    /// Tells it from all other samplers of its engine, earlier ones included.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Tokens that a completion has at least before its end token; 0 where no token ends one.
    pub fn earliest_end(&self) -> usize {
        if self.params.eos_ids.is_empty() { 0 } else { self.params.min_new_tokens }
    }

    /// The table that [`SampledToken::read_table`] reads, left on the device, the ids first. No transfer and no synchronization.
    ///
    /// # Panics
    /// Where shapes disagree.
    pub fn sample_on_device(&self, inputs: &SamplerInputs<'_>) -> Tensor {
        sample_tokens(&self.sampling(inputs))
    }

    /// The same, always of [`TokenTable::Distances`]: for a table that several samplers make together.
    ///
    /// # Panics
    /// Where shapes disagree.
    pub fn sample_distances(&self, inputs: &SamplerInputs<'_>) -> Tensor {
        sample_tokens(&TokenSampling { constants: None, ..self.sampling(inputs) })
    }

    fn sampling<'a>(&'a self, inputs: &SamplerInputs<'a>) -> TokenSampling<'a> {
        let params = &self.params;
        TokenSampling {
            logits: inputs.logits,
            temperature: if params.greedy() { 1.0 } else { params.temperature },
            penalty: inputs.seen.map(|seen| (seen, params.repetition_penalty)),
            banned: [&self.forbidden, &self.forbidden_or_ends],
            constants: Some(&self.constants),
            unfinished: inputs.unfinished,
            uniforms: (!params.greedy()).then_some(inputs.uniforms),
            filters: TokenFilters {
                top_k: params.effective_top_k(),
                top_p: params.top_p,
                min_p: params.min_p,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use base::DrawKey;
    use tch::Kind;
    use torch::{sample_in_few_launches, sample_tokens_reference};

    use super::*;
    use crate::naive;

    const IMAGE_TOKEN: u32 = 4;
    const LAST: f64 = 1.0 - 1.0 / (1u64 << 53) as f64;

    fn token_sampler(params: &SamplingParams, vocab_size: i64) -> TokenSampler {
        TokenSampler::with_vocabulary(
            vocab_size,
            IMAGE_TOKEN,
            Rc::new(params.clone()),
            torch::device_of_tests(),
        )
    }

    impl TokenSampler {
        fn sample(&self, inputs: &SamplerInputs<'_>) -> Vec<SampledToken> {
            let greedy = std::iter::repeat(self.params.greedy());
            SampledToken::read_table(&self.sample_on_device(inputs), greedy)
        }
    }

    fn sample(params: &SamplingParams, logits: &[f32], uniform: f64) -> SampledToken {
        let inputs = SamplerInputs {
            logits: &torch::on_test_device(logits).unsqueeze(0),
            uniforms: &torch::on_test_device(&[uniform]),
            unfinished: None,
            seen: None,
        };
        token_sampler(params, logits.len() as i64).sample(&inputs)[0]
    }

    /// Probabilities 0.4, 0.3, 0.2, 0.1 and a placeholder of none.
    fn tenths() -> [f32; 5] {
        [0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln(), 0.1f32.ln(), -1000.0]
    }

    fn sampled_id(params: &SamplingParams, uniform: f64) -> u32 {
        sample(params, &tenths(), uniform).id
    }

    #[test]
    fn samples_invert_the_distribution_in_order_of_ids() {
        let params = SamplingParams::default();
        let ids =
            [0.0, 0.399, 0.401, 0.699, 0.701, 0.899, 0.901, LAST].map(|u| sampled_id(&params, u));
        assert_eq!(ids, [0, 0, 1, 1, 2, 2, 3, 3]);
        let logprob = sample(&params, &tenths(), 0.8).logprob;
        assert!((logprob - 0.2f32.ln()).abs() < 1e-6, "{logprob}");
    }

    #[test]
    fn temperature_divides_logits_and_shows_in_logprobs() {
        // logits 2, 0 at temperature 2: probabilities e / (e + 1) = 0.7311 and 0.2689.
        let params = SamplingParams { temperature: 2.0, ..Default::default() };
        let logits = [2.0, 0.0, -1e4, -1e4, -1e4];
        assert_eq!(sample(&params, &logits, 0.731).id, 0);
        let second = sample(&params, &logits, 0.7312);
        assert_eq!(second.id, 1);
        assert!((second.logprob - 0.268_941_4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn top_k_keeps_the_largest_and_leaves_logprobs() {
        // 0.4 and 0.3 remain: 4/7 = 0.5714.
        let params = SamplingParams { top_k: Some(2), ..Default::default() };
        assert_eq!([0.571, 0.572, LAST].map(|u| sampled_id(&params, u)), [0, 1, 1]);
        assert!((sample(&params, &tenths(), 0.9).logprob - 0.3f32.ln()).abs() < 1e-6);
        let off = SamplingParams { top_k: Some(0), ..Default::default() };
        assert_eq!(sampled_id(&off, LAST), 3);
    }

    #[test]
    fn top_k_keeps_ties() {
        let params = SamplingParams { top_k: Some(1), ..Default::default() };
        let logits = [1.0, 1.0, 0.0, 0.0, -1000.0];
        assert_eq!([0.4, 0.6].map(|u| sample(&params, &logits, u).id), [0, 1]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // 0.4 + 0.3 reaches 0.6; 0.4 alone reaches 0.35.
        let params = SamplingParams { top_p: 0.6, ..Default::default() };
        assert_eq!([0.571, 0.572, LAST].map(|u| sampled_id(&params, u)), [0, 1, 1]);
        let params = SamplingParams { top_p: 0.35, ..Default::default() };
        assert_eq!(sampled_id(&params, LAST), 0);
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable() {
        // Cut at 0.6 * 0.4 = 0.24.
        let params = SamplingParams { min_p: 0.6, ..Default::default() };
        assert_eq!([0.571, 0.572, LAST].map(|u| sampled_id(&params, u)), [0, 1, 1]);
        let params = SamplingParams { min_p: 1.0, ..Default::default() };
        assert_eq!(sampled_id(&params, LAST), 0);
    }

    #[test]
    fn top_p_counts_what_top_k_left() {
        // After top-k 3: 0.444, 0.333, 0.222; dropping at most 0.25 drops the third. Without top-k the
        // third stays, for 0.1 + 0.2 is more than 0.25.
        let both = SamplingParams { top_k: Some(3), top_p: 0.75, ..Default::default() };
        let alone = SamplingParams { top_p: 0.75, ..Default::default() };
        assert_eq!([sampled_id(&both, LAST), sampled_id(&alone, LAST)], [1, 2]);
    }

    #[test]
    fn repetition_penalty_divides_positive_and_multiplies_negative_logits() {
        let params = |penalty| SamplingParams {
            repetition_penalty: penalty,
            temperature: 0.0,
            ..Default::default()
        };
        let greedy = |penalty: f64, logits: [f32; 5]| {
            let inputs = SamplerInputs {
                logits: &torch::on_test_device(&logits).unsqueeze(0),
                uniforms: &torch::on_test_device(&[0.0]),
                unfinished: None,
                seen: Some(&torch::on_test_device(&[true, true, false, false, false]).unsqueeze(0)),
            };
            token_sampler(&params(penalty), 5).sample(&inputs)[0]
        };
        // 2 / 1.9 = 1.05 stays above 1, 2 / 2.1 = 0.95 does not.
        assert_eq!(greedy(1.9, [2.0, -1.0, 1.0, -9.0, -9.0]).id, 0);
        let other = greedy(2.1, [2.0, -1.0, 1.0, -9.0, -9.0]);
        assert_eq!(other.id, 2);
        // -1 * 1.5 falls below -1.4, -1 * 1.3 does not.
        assert_eq!(greedy(1.5, [-8.0, -1.0, -1.4, -9.0, -9.0]).id, 2);
        assert_eq!(greedy(1.3, [-8.0, -1.0, -1.4, -9.0, -9.0]).id, 1);
        // 1 - ln(e^2 + e^-1 + e + 2 e^-9): the penalty does not show.
        assert!((other.logprob - -1.348_995).abs() < 1e-4, "{}", other.logprob);
    }

    #[test]
    fn a_loved_placeholder_is_never_sampled_and_nothing_of_probability_zero() {
        let params = SamplingParams { forbidden_ids: vec![0, 3], ..Default::default() };
        let logits = [5.0, 1.0, 1.0, 5.0, 100.0];
        assert_eq!([0.0, 0.49, 0.51, LAST].map(|u| sample(&params, &logits, u).id), [1, 1, 2, 2]);
        let greedy = SamplingParams { temperature: 0.0, ..params };
        assert_eq!(sample(&greedy, &logits, 0.0).id, 1);
    }

    #[test]
    fn no_end_before_min_new_tokens() {
        let params = SamplingParams { eos_ids: vec![0], ..Default::default() };
        let inputs = SamplerInputs {
            logits: &torch::on_test_device(&[9.0f32, 1.0, 0.0, 0.0, 0.0]).expand([2, 5], false),
            uniforms: &torch::on_test_device(&[0.0, 0.0]),
            unfinished: Some(&torch::on_test_device(&[true, false]).unsqueeze(1)),
            seen: None,
        };
        let ids: Vec<u32> =
            token_sampler(&params, 5).sample(&inputs).iter().map(|c| c.id).collect();
        assert_eq!(ids, [1, 0]);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_says_so() {
        let params = SamplingParams { temperature: 0.0, ..Default::default() };
        let tied = sample(&params, &[0.0, 3.0, 3.0, 1.0, 9.0], 0.0);
        assert_eq!((tied.id, tied.near_boundary), (1, true));
        let clear = sample(&params, &[0.0, 3.0, 2.9, 1.0, 9.0], 0.0);
        assert_eq!((clear.id, clear.near_boundary), (1, false));
    }

    #[test]
    fn samples_near_a_boundary_are_marked_but_the_outer_ends_are_not() {
        let params = SamplingParams::default();
        let near = [0.0, 0.39995, 0.40005, 0.402, LAST]
            .map(|u| sample(&params, &tenths(), u).near_boundary);
        assert_eq!(near, [false, true, true, false, false]);
        // Two tokens of 0.3 at the edge of the set: rounding decides which of them stays.
        let filtered = SamplingParams { top_k: Some(2), ..Default::default() };
        let logits = [0.4f32.ln(), 0.3f32.ln(), 0.3f32.ln() - 1e-5, -1000.0, -1000.0];
        assert!(sample(&filtered, &logits, 0.2).near_boundary);
        assert!(!sample(&filtered, &tenths(), 0.2).near_boundary);
    }

    /// The CPU kernel against libtorch's operations, which serve GPUs and filters.
    #[test]
    fn cpu_kernel_equals_libtorch() {
        const VOCAB: i64 = 300;
        for (case, temperature) in [(0, 0.0), (1, 1.0), (2, 0.7), (3, 1.5)] {
            let params = SamplingParams {
                temperature,
                min_new_tokens: 1,
                eos_ids: vec![7, 9],
                forbidden_ids: vec![2],
                ..Default::default()
            };
            let number = |row: i64, i: i64| {
                let key = DrawKey { seed: 5, step: case, prompt: row as u64, completion: 0 };
                key.uniform(i as usize)
            };
            let logits: Vec<f32> = (0..40 * VOCAB)
                .map(|i| (40.0 * number(i / VOCAB, i % VOCAB) - 20.0) as f32)
                .collect();
            let uniforms: Vec<f64> = (0..40).map(|row| number(row, VOCAB)).collect();
            let early: Vec<bool> = (0..40).map(|row| row % 3 == 0).collect();
            for kind in [Kind::Float, Kind::BFloat16] {
                let logits = torch::on_test_device(&logits).view([40, VOCAB]).to_kind(kind);
                let inputs = SamplerInputs {
                    logits: &logits,
                    uniforms: &torch::on_test_device(&uniforms),
                    unfinished: Some(&torch::on_test_device(&early).unsqueeze(1)),
                    seen: None,
                };
                let token_sampler = token_sampler(&params, VOCAB);
                let by_kernel = token_sampler.sample(&inputs);
                let reference = sample_tokens_reference(&token_sampler.sampling(&inputs));
                let mut near = 0;
                let greedy = std::iter::repeat(params.greedy());
                let reference = SampledToken::read_table(&reference, greedy);
                if !params.greedy() {
                    in_few_launches_equals(&token_sampler, &inputs, &reference);
                }
                for (got, expected) in by_kernel.iter().zip(reference) {
                    assert!((got.logprob - expected.logprob).abs() < 2e-6 || got.id != expected.id);
                    assert_eq!(got.near_boundary, expected.near_boundary);
                    assert!(got.id == expected.id || got.near_boundary, "{got:?} {expected:?}");
                    near += usize::from(got.near_boundary);
                }
                assert!(near < 20, "most samples are far from a boundary: {near}");
            }
        }
    }

    /// The choice in few launches against the reference.
    fn in_few_launches_equals(
        sampler: &TokenSampler,
        inputs: &SamplerInputs<'_>,
        reference: &[SampledToken],
    ) {
        let sampling = sampler.sampling(inputs);
        let table = sample_in_few_launches(&sampling, &sampler.constants, inputs.uniforms);
        let table = SampledToken::read_table(&table, std::iter::repeat(false));
        assert_eq!(table, reference);
    }

    #[test]
    fn intervals_end_where_no_token_lies_beyond() {
        let params = SamplingParams { forbidden_ids: vec![0, 2], ..Default::default() };
        let sampler = token_sampler(&params, 6);
        // 1 and 3 remain, 0.6 and 0.4, and 5, which has none; the placeholder outweighs all by far.
        let logits = torch::on_test_device(&[9.0, 0.6f32.ln(), 9.0, 0.4f32.ln(), 100.0, -1e4]);
        let uniforms = [0.0, 5e-5, 0.59995, 0.60005, 0.8, 1.0 - 5e-5, LAST];
        let inputs = SamplerInputs {
            logits: &logits.expand([7, 6], false),
            uniforms: &torch::on_test_device(&uniforms),
            unfinished: None,
            seen: None,
        };
        let sampling = sampler.sampling(&inputs);
        let table = sample_in_few_launches(&sampling, &sampler.constants, inputs.uniforms);
        let got = SampledToken::read_table(&table, [false; 7]);
        let expected = SampledToken::read_table(&sample_tokens_reference(&sampling), [false; 7]);
        assert_eq!(got, expected);
        assert_eq!(got.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 1, 1, 3, 3, 3, 3]);
        let near = got.iter().map(|t| t.near_boundary).collect::<Vec<_>>();
        assert_eq!(near, [false, false, true, true, false, false, false]);
    }

    /// A row of NaN gives a token of the vocabulary and no log-probability, so that the caller can refuse it.
    #[test]
    fn a_row_of_nan_stays_within_the_vocabulary() {
        let sampler = token_sampler(&SamplingParams::default(), 6);
        let inputs = SamplerInputs {
            logits: &torch::on_test_device(&[f32::NAN; 6]).unsqueeze(0),
            uniforms: &torch::on_test_device(&[0.5]),
            unfinished: None,
            seen: None,
        };
        let table =
            sample_in_few_launches(&sampler.sampling(&inputs), &sampler.constants, inputs.uniforms);
        let [token] = SampledToken::read_table(&table, [false])[..] else { unreachable!() };
        assert!(token.id < 6 && token.logprob.is_nan());
    }

    /// Random logits and parameters against the scalar rules of the naive generator.
    #[test]
    fn equals_the_naive_rules() {
        const VOCAB: usize = 50;
        for case in 0..400u64 {
            let key = DrawKey { seed: 1, step: case, prompt: 0, completion: 0 };
            let number = |i: usize| key.uniform(i);
            let option = |i: usize, off: f64, on: f64| if number(i) < 0.5 { off } else { on };
            let params = SamplingParams {
                temperature: option(0, 1.0, 0.3 + 2.0 * number(1)),
                top_k: (number(2) < 0.5).then_some((number(3) * 60.0) as usize),
                top_p: option(4, 1.0, 0.2 + 0.8 * number(5)),
                min_p: option(6, 0.0, 0.5 * number(7)),
                repetition_penalty: option(8, 1.0, 0.5 + number(9)),
                min_new_tokens: 1,
                eos_ids: vec![7, 9],
                forbidden_ids: vec![2],
                ..Default::default()
            };
            let logits: Vec<f32> =
                (0..VOCAB).map(|i| (6.0 * number(100 + i) - 3.0) as f32).collect();
            let held: Vec<u32> =
                (0..VOCAB as u32).filter(|i| number(200 + *i as usize) < 0.4).collect();
            let marks: Vec<bool> = (0..VOCAB as u32).map(|i| held.contains(&i)).collect();
            let marks = torch::on_test_device(&marks).unsqueeze(0);
            let generated = usize::from(number(10) < 0.5);
            let inputs = SamplerInputs {
                logits: &torch::on_test_device(&logits).unsqueeze(0),
                uniforms: &torch::on_test_device(&[number(11)]),
                unfinished: Some(&torch::on_test_device(&[generated == 0]).unsqueeze(1)),
                seen: (params.repetition_penalty != 1.0).then_some(&marks),
            };
            let sampled = token_sampler(&params, VOCAB as i64).sample(&inputs)[0];
            let scores = naive::scores(&logits, &params, &held, generated, IMAGE_TOKEN);
            let expected = naive::draw(&naive::filtered(scores, &params), number(11));
            assert!(
                sampled.id == expected as u32 || sampled.near_boundary,
                "case {case}: {sampled:?}, expected {expected}"
            );
        }
    }
}
