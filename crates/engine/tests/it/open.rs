//! The engine's open interface: requests that come late, leave early, end by texts, and have settings of their own.

use std::collections::BTreeMap;
use std::error::Error;

use base::{Completion, DrawKey, FinishReason};
use engine::{
    Decoding, Engine, EngineError, Event, Request, RequestId, RequestSettings, SamplingParams,
};
use models::VisionLanguageModel;
use tch::{Kind, no_grad};

use crate::support::{generate, key, mixed_prompts, prompt, requests, tiny};

const DECODINGS: [Decoding; 2] = [Decoding::Eager, Decoding::StaticShapes];

/// Every twelfth token ends a completion, so that lengths differ and slots are refilled.
fn uneven(max_new_tokens: usize) -> SamplingParams {
    SamplingParams { max_new_tokens, eos_ids: (0..500).step_by(12).collect(), ..Default::default() }
}

/// Settings that have nothing in common.
fn various() -> Vec<SamplingParams> {
    vec![
        uneven(14),
        SamplingParams { temperature: 0.0, ..uneven(9) },
        SamplingParams {
            temperature: 1.3,
            top_k: Some(40),
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.2,
            min_new_tokens: 3,
            forbidden_ids: vec![468, 29],
            ..uneven(10)
        },
        SamplingParams { temperature: 0.0, repetition_penalty: 1.5, ..uneven(40) },
        SamplingParams { temperature: 0.7, min_new_tokens: 6, ..uneven(12) },
    ]
}

fn spell(ids: &[u32]) -> Result<String, Box<dyn Error + Send + Sync>> {
    Ok(ids.iter().map(|id| format!("{id};")).collect())
}

fn open(model: &dyn VisionLanguageModel, max_concurrent: usize, decoding: Decoding) -> Engine<'_> {
    Engine::new(model, max_concurrent).unwrap().with_decoding(decoding).unwrap().with_text(spell)
}

/// Completions by request and index.
type Completions = BTreeMap<(RequestId, usize), Completion>;

/// Takes the events of a step; holds every completion to the tokens that were reported of it.
#[derive(Default)]
struct Listener {
    streamed: BTreeMap<(RequestId, usize), (Vec<u32>, Vec<f32>)>,
    finished: Completions,
}

impl Listener {
    fn listen(&mut self, events: Vec<Event>) {
        let is_end = |event: &Event| matches!(event, Event::Finished { .. });
        assert!(events.is_sorted_by_key(is_end), "tokens come first: {events:?}");
        for event in events {
            match event {
                Event::Token { request, completion, id, logprob } => {
                    let name = (request, completion);
                    assert!(!self.finished.contains_key(&name), "a token after the end");
                    let (ids, logprobs) = self.streamed.entry(name).or_default();
                    ids.push(id);
                    logprobs.push(logprob);
                }
                Event::Finished { request, completion, result, .. } => {
                    let name = (request, completion);
                    let (ids, logprobs) = &self.streamed[&name];
                    assert_eq!((ids, logprobs), (&result.ids, &result.sampled_logprobs));
                    assert!(self.finished.insert(name, result).is_none(), "finished twice");
                }
            }
        }
    }

    fn run(&mut self, engine: &mut Engine<'_>) {
        while !engine.is_idle() {
            self.listen(engine.step().unwrap());
        }
    }

    fn of(&self, request: RequestId) -> Vec<&Completion> {
        self.finished.range((request, 0)..=(request, usize::MAX)).map(|(_, c)| c).collect()
    }
}

fn assert_same<'c>(
    got: impl IntoIterator<Item = &'c Completion>,
    expected: impl IntoIterator<Item = &'c Completion>,
    case: &str,
) {
    let (got, expected): (Vec<_>, Vec<_>) =
        (got.into_iter().collect(), expected.into_iter().collect());
    assert_eq!(got.len(), expected.len(), "{case}");
    for (a, b) in got.iter().zip(&expected) {
        assert_eq!((&a.ids, a.finish_reason), (&b.ids, b.finish_reason), "{case}");
        let pairs = a.sampled_logprobs.iter().zip(&b.sampled_logprobs);
        let worst = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{case}: log-probabilities differ by {worst}");
    }
}

/// Of each request by a generator of its own.
fn apart(
    model: &dyn VisionLanguageModel,
    requests: &[Request],
    settings: &[SamplingParams],
) -> Vec<Vec<Completion>> {
    let pairs = requests.iter().zip(settings.iter().cycle());
    pairs
        .map(|(request, params)| {
            let request = std::slice::from_ref(request);
            generate(model, params, 64, request).unwrap().completions.remove(0)
        })
        .collect()
}

#[test]
fn events_tell_every_token_and_then_the_completion() {
    let model = tiny("nested", Kind::Float);
    let requests = requests(&mixed_prompts(&*model), 3);
    let expected = generate(model.as_ref(), &uneven(14), 4, &requests).unwrap();
    for decoding in DECODINGS {
        let mut engine = open(model.as_ref(), 4, decoding);
        assert!(engine.is_idle() && engine.step().unwrap().is_empty());
        let ids: Vec<RequestId> = requests
            .iter()
            .map(|request| engine.add(request.clone(), &uneven(14).into()).unwrap())
            .collect();
        assert_eq!(ids.iter().map(|id| id.number()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(engine.num_unfinished(), 15);
        let mut listener = Listener::default();
        listener.run(&mut engine);
        assert_eq!(engine.num_unfinished(), 0);
        for (id, expected) in ids.iter().zip(&expected.completions) {
            assert_same(listener.of(*id), expected, &format!("{decoding:?}"));
        }
        assert_eq!(engine.stats().tokens, expected.stats.tokens);
    }
}

#[test]
fn requests_of_different_settings_go_together() {
    let model = tiny("nested", Kind::Float);
    let requests = requests(&mixed_prompts(&*model), 3);
    let expected = apart(model.as_ref(), &requests, &various());
    for decoding in DECODINGS {
        for max_concurrent in [1, 4, 64] {
            let mut engine = open(model.as_ref(), max_concurrent, decoding);
            let mut listener = Listener::default();
            let ids: Vec<RequestId> = requests
                .iter()
                .zip(various())
                .map(|(request, params)| engine.add(request.clone(), &params.into()).unwrap())
                .collect();
            listener.run(&mut engine);
            for (id, expected) in ids.iter().zip(&expected) {
                let case = format!("request {id}, {decoding:?}, {max_concurrent} at once");
                assert_same(listener.of(*id), expected, &case);
            }
        }
    }
}

/// Room for completions, tokens and penalties grows under those that run.
#[test]
fn requests_may_come_while_others_are_decoded() {
    let model = tiny("flat", Kind::Float);
    let mut requests = requests(&mixed_prompts(&*model), 3);
    for (request, count) in requests.iter_mut().zip([1, 2, 9, 3, 5]) {
        request.num_completions = count;
    }
    let longer = |n| SamplingParams { max_new_tokens: n, ..Default::default() };
    let settings = [
        SamplingParams { temperature: 0.0, ..longer(20) },
        longer(50),
        SamplingParams { repetition_penalty: 1.3, ..longer(30) },
        uneven(14),
        SamplingParams { top_p: 0.8, ..longer(70) },
    ];
    let expected = apart(model.as_ref(), &requests, &settings);
    for decoding in DECODINGS {
        for steps in [1, 7] {
            let mut engine = open(model.as_ref(), 16, decoding);
            let mut listener = Listener::default();
            let mut ids = Vec::new();
            for (request, params) in requests.iter().zip(&settings) {
                ids.push(engine.add(request.clone(), &params.clone().into()).unwrap());
                for _ in 0..steps {
                    listener.listen(engine.step().unwrap());
                }
            }
            listener.run(&mut engine);
            for (id, expected) in ids.iter().zip(&expected) {
                let case = format!("request {id}, {decoding:?}, after {steps} steps each");
                assert_same(listener.of(*id), expected, &case);
            }
        }
    }
}

#[test]
fn an_aborted_request_leaves_at_once_and_changes_no_other() {
    let model = tiny("nested", Kind::Float);
    let requests = requests(&mixed_prompts(&*model), 3);
    let params = SamplingParams { max_new_tokens: 12, ..Default::default() };
    let expected = apart(model.as_ref(), &requests, std::slice::from_ref(&params));
    for decoding in DECODINGS {
        for steps in 0..9 {
            // 7 slots: of requests 0 and 1 all completions run, of 2 one, of 3 and 4 none.
            let mut engine = open(model.as_ref(), 7, decoding);
            let ids: Vec<RequestId> = requests
                .iter()
                .map(|request| engine.add(request.clone(), &params.clone().into()).unwrap())
                .collect();
            let mut listener = Listener::default();
            (0..steps).for_each(|_| listener.listen(engine.step().unwrap()));
            for gone in [0, 2, 3] {
                assert!(engine.abort(ids[gone]) && !engine.abort(ids[gone]));
            }
            assert_eq!(engine.num_unfinished(), 6);
            let before = listener.streamed.len();
            listener.run(&mut engine);
            let case = format!("{decoding:?}, after {steps} steps");
            for i in [1, 4] {
                assert_same(listener.of(ids[i]), &expected[i], &case);
            }
            let gone = |name: &&(RequestId, usize)| [ids[0], ids[2], ids[3]].contains(&name.0);
            assert_eq!(listener.finished.keys().filter(gone).count(), 0, "{case}");
            let started = listener.streamed.keys().filter(gone).count();
            assert!(started <= before, "{case}: no completion of theirs started later");
            assert!(!engine.abort(ids[1]) && engine.step().unwrap().is_empty(), "{case}");
        }
    }
}

#[test]
fn slots_of_an_aborted_request_go_to_the_next() {
    let model = tiny("nested", Kind::Float);
    let requests = requests(&mixed_prompts(&*model), 2);
    let settings = RequestSettings::from(SamplingParams { max_new_tokens: 300, ..uneven(300) });
    let mut engine = open(model.as_ref(), 2, Decoding::Eager);
    let long = SamplingParams { max_new_tokens: 300, ..Default::default() };
    let first = engine.add(requests[0].clone(), &long.into()).unwrap();
    let second = engine.add(requests[1].clone(), &settings).unwrap();
    for _ in 0..5 {
        let events = engine.step().unwrap();
        assert!(
            events.iter().all(|e| matches!(e, Event::Token { request, .. } if *request == first))
        );
    }
    assert!(engine.abort(first));
    let events = engine.step().unwrap();
    let tokens =
        events.iter().filter(|e| matches!(e, Event::Token { request, .. } if *request == second));
    assert_eq!(tokens.count(), 2, "{events:?}");
}

/// The first tokens of `ids` whose text holds one of `stops`; all of them where none does.
fn cut<'i>(ids: &'i [u32], stops: &[&str], min_new_tokens: usize) -> &'i [u32] {
    // A stop string counts where its last token comes late enough.
    let ends_by = |len: usize| {
        let (before, text) = (spell(&ids[..len - 1]).unwrap(), spell(&ids[..len]).unwrap());
        stops.iter().any(|stop| {
            text.match_indices(stop).any(|(start, _)| start + stop.len() > before.len())
        })
    };
    let end = (min_new_tokens + 1..=ids.len()).find(|&len| ends_by(len));
    &ids[..end.unwrap_or(ids.len())]
}

#[test]
fn stop_strings_end_completions_across_tokens() {
    let model = tiny("nested", Kind::Float);
    let requests = requests(&mixed_prompts(&*model), 6);
    let params = |min_new_tokens| SamplingParams {
        max_new_tokens: 60,
        min_new_tokens,
        ..Default::default()
    };
    let expected = apart(model.as_ref(), &requests, &[params(0)]);
    // The end of a token and the start of the next; a whole token; part of one; what never comes.
    let ids = &expected[1][2].ids;
    let border = format!("{};{}", ids[20] % 10, ids[21]);
    let whole = format!(";{};", expected[1][0].ids[30]);
    let stops = [border.as_str(), whole.as_str(), "77", "x"];
    for decoding in DECODINGS {
        for min_new_tokens in [0, 25] {
            let mut engine = open(model.as_ref(), 9, decoding);
            let mut listener = Listener::default();
            let add = |engine: &mut Engine<'_>, i: usize, stops: &[&str]| {
                let settings = RequestSettings {
                    params: params(min_new_tokens),
                    stop_strings: stops.iter().map(|s| (*s).to_owned()).collect(),
                };
                engine.add(requests[i].clone(), &settings).unwrap()
            };
            let (stopped, free) = (add(&mut engine, 1, &stops), add(&mut engine, 2, &[]));
            listener.run(&mut engine);
            assert_same(listener.of(free), &expected[2], "without stop strings");
            let mut reasons = Vec::new();
            for (got, whole) in listener.of(stopped).into_iter().zip(&expected[1]) {
                let cut = cut(&whole.ids, &stops, min_new_tokens);
                assert_eq!(got.ids, cut, "{decoding:?}, {min_new_tokens}: {stops:?}");
                assert_eq!(got.sampled_logprobs.len(), cut.len());
                let is_cut = got.finish_reason == FinishReason::StopString;
                assert!(is_cut || (cut.len() == 60 && got.finish_reason == FinishReason::Length));
                reasons.push(is_cut);
            }
            assert!(reasons[2] || min_new_tokens > 0, "the border of two tokens");
            assert!(reasons.contains(&true), "{reasons:?}");
        }
    }
}

#[test]
fn a_bad_request_is_refused_and_others_go_on() {
    let model = tiny("nested", Kind::Float);
    let good = requests(&mixed_prompts(&*model), 2);
    let expected = apart(model.as_ref(), &good[..1], &[uneven(14)]);
    let mut engine = open(model.as_ref(), 4, Decoding::Eager);
    let id = engine.add(good[0].clone(), &uneven(14).into()).unwrap();
    let mut listener = Listener::default();
    listener.listen(engine.step().unwrap());
    let mut refuse = |request: &Request, settings: RequestSettings| {
        engine.add(request.clone(), &settings).unwrap_err().to_string()
    };
    let hot = SamplingParams { temperature: -1.0, ..Default::default() };
    assert_eq!(
        refuse(&good[1], hot.into()),
        "sampling parameter `temperature`: got -1, expected a finite number, 0 or more"
    );
    let unknown = SamplingParams { eos_ids: vec![9999], ..Default::default() };
    assert!(refuse(&good[1], unknown.into()).contains("`eos_ids`: token id 9999"));
    let empty =
        RequestSettings { stop_strings: vec!["a".into(), String::new()], ..Default::default() };
    assert_eq!(
        refuse(&good[1], empty),
        "sampling parameter `stop_strings`: got [\"a\", \"\"], expected strings of one byte or more"
    );
    let mut nothing = good[1].clone();
    nothing.prompt.ids.clear();
    let message = refuse(&nothing, RequestSettings::default());
    assert_eq!(message, "request 1: empty prompt, expected at least one token");
    listener.run(&mut engine);
    assert_same(listener.of(id), &expected[0], "the good one");

    let mut mute = Engine::new(model.as_ref(), 4).unwrap();
    let stop = RequestSettings { stop_strings: vec!["a".into()], ..Default::default() };
    let message = mute.add(good[1].clone(), &stop).unwrap_err().to_string();
    assert!(message.ends_with("expected none, since the engine was given no way from ids to text"));
    let none = Request { num_completions: 0, ..good[1].clone() };
    mute.add(none, &RequestSettings::default()).unwrap();
    assert!(mute.is_idle());
    assert!(Engine::new(model.as_ref(), 0).is_err());
}

#[test]
fn a_text_that_cannot_be_decoded_is_an_error() {
    let model = tiny("nested", Kind::Float);
    let mut engine =
        Engine::new(model.as_ref(), 4).unwrap().with_text(|_| Err("no such id".into()));
    let stop = RequestSettings { stop_strings: vec!["a".into()], ..Default::default() };
    let request = &requests(&mixed_prompts(&*model), 1)[0];
    engine.add(request.clone(), &stop).unwrap();
    let error = engine.step().unwrap_err();
    assert_eq!(error.to_string(), "request 0: its text: no such id");
    assert!(engine.is_idle());
}

/// Packed copies, caches and graphs are of one version of the weights.
#[test]
fn new_weights_leave_nothing_of_the_old() {
    let model = tiny("nested", Kind::Float);
    let prompt = prompt(0, 9, &[], model.image_token_id());
    let request = Request { prompt, num_completions: 3, key: key(0) };
    let params = SamplingParams { max_new_tokens: 12, ..Default::default() };
    let alone = || {
        apart(model.as_ref(), std::slice::from_ref(&request), std::slice::from_ref(&params))
            .remove(0)
    };
    for decoding in DECODINGS {
        let old = alone();
        let mut engine = open(model.as_ref(), 4, decoding).at_weights_version(7);
        let mut listener = Listener::default();
        let first = engine.add(request.clone(), &params.clone().into()).unwrap();
        listener.listen(engine.step().unwrap());
        let error = engine.set_weights_version(8).unwrap_err();
        assert!(matches!(error, EngineError::WeightsInUse { running: 3 }), "{error}");
        listener.run(&mut engine);
        assert_same(listener.of(first), &old, "the old weights");

        // A request that waits is computed by the new weights.
        let second = engine.add(request.clone(), &params.clone().into()).unwrap();
        no_grad(|| {
            for parameter in &model.parameters().list {
                if parameter.name.contains("language_model.layers") && parameter.value.dim() == 2 {
                    let _ = parameter.value.shallow_clone().g_mul_scalar_(1.2);
                }
            }
        });
        engine.set_weights_version(8).unwrap();
        assert_eq!(engine.weights_version(), 8);
        while !engine.is_idle() {
            let events = engine.step().unwrap();
            let versions = events.iter().filter_map(|event| match event {
                Event::Finished { weights_version, .. } => Some(*weights_version),
                Event::Token { .. } => None,
            });
            assert!(versions.into_iter().all(|version| version == 8));
            listener.listen(events);
        }
        let new = alone();
        assert_ne!(old[0].sampled_logprobs, new[0].sampled_logprobs);
        assert_same(listener.of(second), &new, "the new weights");
    }
}

#[test]
fn an_engine_is_idle_after_an_error_and_takes_new_requests() {
    let model = tiny("nested", Kind::Float);
    let mut norms = model.parameters().list.iter();
    let norm = norms.find(|p| p.name.ends_with("language_model.norm.weight")).unwrap();
    let kept = norm.value.copy();
    let requests = requests(&mixed_prompts(&*model), 2);
    let expected = apart(model.as_ref(), &requests, &[uneven(14)]);
    for decoding in DECODINGS {
        let mut engine = open(model.as_ref(), 4, decoding);
        for request in &requests {
            engine.add(request.clone(), &uneven(14).into()).unwrap();
        }
        (0..3).for_each(|_| drop(engine.step().unwrap()));
        let _ = norm.value.shallow_clone().fill_(f64::NAN);
        let error = (0..9).find_map(|_| engine.step().err());
        assert!(matches!(error, Some(EngineError::NonFinite { .. })), "{error:?}");
        assert!(engine.is_idle() && engine.step().unwrap().is_empty());
        norm.value.shallow_clone().copy_(&kept);
        let mut listener = Listener::default();
        let id = engine.add(requests[2].clone(), &uneven(14).into()).unwrap();
        listener.run(&mut engine);
        assert_same(listener.of(id), &expected[2], &format!("{decoding:?}"));
    }
}

#[test]
fn seeds_are_of_the_request() {
    let model = tiny("nested", Kind::Float);
    let params = SamplingParams { max_new_tokens: 10, ..Default::default() };
    let prompt = prompt(0, 9, &[], model.image_token_id());
    let request = |key| Request { prompt: prompt.clone(), num_completions: 2, key };
    let seeds = [key(0), DrawKey { seed: 99, ..key(0) }, key(0)];
    let mut engine = open(model.as_ref(), 6, Decoding::Eager);
    let ids = seeds.map(|key| engine.add(request(key), &params.clone().into()).unwrap());
    let mut listener = Listener::default();
    listener.run(&mut engine);
    let [first, other, again] = ids.map(|id| listener.of(id));
    assert_same(first.iter().copied(), again, "equal keys");
    assert_ne!(first[0].ids, other[0].ids);
}
