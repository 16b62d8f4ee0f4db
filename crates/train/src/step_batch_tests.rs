//! Micro-batches of updates, and every variant of the algorithm held to TRL's own trainer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::world::{Local, Threads, World};
use base::{
    Completion, Example, FinishReason, ImageLayout, PreparedImage, Prompt, RolloutGroup, SourceLine,
};
use config::GrpoConfig;
use data::{Processor, ProcessorOptions};
use models::{LoadOptions, TrainedParts, load_model};

use super::*;
use crate::algorithm::updates_per_rollout;

fn model(trained: TrainedParts) -> Box<dyn VisionLanguageModel> {
    let options = LoadOptions { kind: Kind::Float, device: torch::device_of_tests(), trained };
    load_model(&testing::checkpoint("nested"), options).unwrap()
}

fn scored(prompt: Prompt, completions: Vec<Completion>, advantages: Vec<f64>) -> ScoredGroup {
    ScoredGroup {
        index: 0,
        first: 0,
        example: Example {
            source: SourceLine::new("rows.jsonl", 1),
            images: vec![PathBuf::from("image.png")],
            problem: String::new(),
            solution: String::new(),
            answer: String::new(),
            accu_reward_method: None,
            columns: Map::new(),
        },
        texts: vec![String::new(); completions.len()],
        per_reward: Vec::new(),
        group: RolloutGroup {
            example_index: 0,
            prompt,
            rewards: advantages.clone(),
            completions,
            advantages,
        },
    }
}

/// These groups as the whole of a step.
fn whole(own: Vec<ScoredGroup>) -> Groups {
    let mut groups = Groups { own, all: Vec::new() };
    for (index, scored) in groups.own.iter_mut().enumerate() {
        scored.index = index;
        let completions = &scored.group.completions;
        groups.all.push(GroupScores {
            rewards: scored.group.rewards.clone(),
            per_reward: scored.per_reward.clone(),
            lens: completions.iter().map(|completion| completion.ids.len()).collect(),
            cut_off: completions.iter().map(is_cut_off).collect(),
            advantages: scored.group.advantages.clone(),
        });
    }
    groups
}

/// An image of one merged patch and three tokens around it; completions of 2, 3 and 1 tokens.
fn group(model: &dyn VisionLanguageModel) -> ScoredGroup {
    let image = PreparedImage::new(
        vec![0.5; 4 * model.patch_dim()],
        ImageLayout::merged([1, 2, 2], 2),
        [28, 28],
        [28, 28],
    );
    let completion = |ids: &[u32]| Completion {
        ids: ids.to_vec(),
        sampled_logprobs: vec![-1.0; ids.len()],
        finish_reason: FinishReason::Length,
    };
    let prompt =
        Prompt { ids: vec![5, model.image_token_id(), 6, 7], images: vec![Arc::new(image)] };
    let completions = [&[8, 9][..], &[10, 11, 12], &[13]].map(completion).to_vec();
    scored(prompt, completions, vec![0.1, 0.2, 0.3])
}

fn split(groups: &Groups, tokens: Option<usize>, share_prompt: bool) -> Vec<GrpoMicroBatch<'_>> {
    let inputs = UpdateInputs {
        groups,
        known: &KnownLogprobs::default(),
        algorithm: &Algorithm::new(&GrpoConfig::default(), vec![1.0]),
        limits: Limits { completions: 8, tokens, share_prompt },
        device: torch::device_of_tests(),
    };
    update_batches(&inputs, 1).remove(0)
}

#[test]
fn a_prompt_is_computed_as_often_as_is_asked_for() {
    let model = model(TrainedParts::NONE);
    let groups = whole(vec![group(model.as_ref())]);
    let shape = |tokens, share_prompt| {
        let batches = split(&groups, tokens, share_prompt);
        let num_tokens =
            |batch: &GrpoMicroBatch<'_>| batch.batch.pack(model.as_ref()).unwrap().num_tokens;
        let ids: Vec<_> = batches.iter().map(|batch| batch.batch.ids.clone()).collect();
        (batches.iter().map(num_tokens).collect::<Vec<_>>(), ids)
    };
    let all = vec![(0, 0), (0, 1), (0, 2)];
    // 4 tokens of prompt, 6 of completions.
    assert_eq!(shape(None, true), (vec![4 + 6], vec![all.clone()]));
    assert_eq!(shape(None, false), (vec![3 * 4 + 6], vec![all]));
    let parts = vec![vec![(0, 0), (0, 1)], vec![(0, 2)]];
    assert_eq!(shape(Some(9), true), (vec![4 + 5, 4 + 1], parts));
}

#[test]
fn a_cut_micro_batch_is_as_if_made_so() {
    let model = model(TrainedParts::NONE);
    let groups = whole(vec![group(model.as_ref())]);
    let limits = Limits { completions: 8, tokens: Some(9), share_prompt: true };
    let mut whole = split(&groups, None, true).remove(0);
    let reference: Vec<f32> = (0..6).map(|i| -(i as f32)).collect();
    whole.ref_logprobs = Some(torch::on_test_device(&reference));
    let cut = whole.cut(limits);
    let made = split(&groups, Some(9), true);
    assert_eq!((cut.len(), made.len()), (2, 2));
    for (cut, made) in cut.iter().zip(&made) {
        assert_eq!((&cut.batch.ids, &cut.batch.lens), (&made.batch.ids, &made.batch.lens));
        assert_eq!(cut.weights, made.weights);
        assert_eq!(cut.metric_weights, made.metric_weights);
        assert_eq!(cut.entropy_weights, made.entropy_weights);
        assert_eq!(cut.advantages, made.advantages);
        assert_eq!(cut.sampled_logprobs, made.sampled_logprobs);
        let tokens = |b: &GrpoMicroBatch<'_>| b.batch.pack(model.as_ref()).unwrap().num_tokens;
        assert_eq!(tokens(cut), tokens(made));
    }
    assert_eq!(cut[1].token_records(2).unwrap()[0].1.ref_logprobs, Some(vec![-5.0]));
    assert_eq!(GrpoMicroBatch::divide(cut, limits).len(), 2);
}

#[test]
fn what_is_known_goes_to_its_completion() {
    let model = model(TrainedParts::NONE);
    let groups = whole(vec![group(model.as_ref())]);
    let mut batches = split(&groups, Some(9), true);
    batches[0].old_logprobs = Some(torch::on_test_device(&[-1.0f32, -2.0, -3.0, -4.0, -5.0]));
    let records = batches[0].token_records(1).unwrap();
    assert_eq!(records[1].0, (0, 1));
    assert_eq!(records[1].1.old_logprobs, Some(vec![-3.0, -4.0, -5.0]));
    assert_eq!(records[1].1.ref_logprobs, None);
    let (place, rest) = &batches[1].token_records(2).unwrap()[0];
    assert_eq!((*place, rest.micro_batch), ((0, 2), Some(2)));
    assert_eq!(rest.old_logprobs, None);
}

#[test]
fn a_group_without_a_gradient_counts_in_the_denominators_alone() {
    let model = model(TrainedParts::NONE);
    let mut silent = group(model.as_ref());
    silent.group.advantages = vec![0.0; 3];
    let groups = whole(vec![group(model.as_ref()), silent]);
    let algorithm = |set: &dyn Fn(&mut GrpoConfig)| {
        let mut config = GrpoConfig::default().with(|c| c.algorithm.beta = 0.0);
        set(&mut config);
        Algorithm::new(&config, vec![1.0])
    };
    let completions = |algorithm: &Algorithm, per_update| {
        let inputs = UpdateInputs {
            groups: &groups,
            known: &KnownLogprobs::default(),
            algorithm,
            limits: Limits { completions: 64, tokens: None, share_prompt: true },
            device: torch::device_of_tests(),
        };
        let updates = update_batches(&inputs, per_update);
        let of_update = |update: &Vec<GrpoMicroBatch<'_>>| {
            update.iter().map(|batch| batch.batch.ids.len()).sum::<usize>()
        };
        let first = updates[0][0].weights.double_value(&[0]);
        (updates.iter().map(of_update).collect::<Vec<_>>(), first)
    };
    // The first completion has 2 tokens: 1 / (2 * 6), and 1 / (2 * 3) where an update is a group.
    assert_eq!(completions(&algorithm(&|_| {}), 2), (vec![3], f64::from(1.0f32 / 12.0)));
    assert_eq!(completions(&algorithm(&|_| {}), 1), (vec![3, 0], f64::from(1.0f32 / 6.0)));
    let with_kl = algorithm(&|c| c.algorithm.beta = 0.1);
    assert_eq!(completions(&with_kl, 2).0, [6]);
    let with_entropy = algorithm(&|c| c.algorithm.entropy_coef = 0.1);
    assert_eq!(completions(&with_entropy, 2).0, [6]);
}

/// The groups of `golden/grpo/variants.json`, and the log-probabilities that are given.
struct Golden {
    json: Value,
    groups: Vec<(Prompt, Vec<Vec<u32>>, Vec<bool>)>,
}

impl Golden {
    fn read() -> Self {
        let json: Value = testing::read_json(testing::golden("grpo/variants.json"));
        let options = ProcessorOptions {
            resize_backend: data::image::ResizeBackend::Torchvision,
            min_pixels: None,
            max_pixels: None,
            apply_exif: false,
            max_prompt_length: None,
        };
        let processor = Processor::from_dir(&testing::checkpoint("nested"), &options).unwrap();
        let read = |group: &Value| {
            let images: Vec<_> = group["images"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| testing::golden("parity/images").join(name.as_str().unwrap()))
                .map(|path| Arc::new(processor.load_image(&path).unwrap()))
                .collect();
            let prompt = processor.prompt(group["prompt"].as_str().unwrap(), &images).unwrap();
            let ids = |value: &Value| -> Vec<u32> {
                value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
            };
            assert_eq!(prompt.ids, ids(&group["prompt_ids"]));
            let completions = group["completion_ids"].as_array().unwrap().iter().map(ids);
            let truncated = group["is_truncated"].as_array().unwrap().iter();
            (prompt, completions.collect(), truncated.map(|t| t.as_bool().unwrap()).collect())
        };
        let groups = json["groups"].as_array().unwrap().iter().map(read).collect();
        Golden { json, groups }
    }

    /// One list a completion, of those at the temperature.
    fn fixed(&self, temperature: f64, name: &str) -> Vec<Vec<f32>> {
        let mut all = self.json["fixed_logprobs"].as_array().unwrap().iter();
        let found = all.find(|fixed| fixed["temperature"].as_f64() == Some(temperature)).unwrap();
        let list = |of: &Value| {
            // A token that the sampler says nothing of counts as one of the old policy.
            of.as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().map_or(f32::NAN, |v| v as f32))
                .collect()
        };
        found[name].as_array().unwrap().iter().map(list).collect()
    }

    /// The configuration that TRL's settings mean here.
    fn config(&self, changes: &Value) -> GrpoConfig {
        let value = |key: &str| match &changes[key] {
            Value::Null => self.json["defaults"][key].clone(),
            value => value.clone(),
        };
        let number = |key: &str| value(key).as_f64();
        let word = |key: &str| value(key);
        let corrects = word("use_vllm") == json!(true)
            && word("vllm_importance_sampling_correction") == json!(true);
        GrpoConfig::default().with(|c| {
            let a = &mut c.algorithm;
            let parse = |key: &str| word(key);
            a.loss_type = serde_json::from_value(parse("loss_type")).unwrap();
            a.importance_sampling_level =
                serde_json::from_value(parse("importance_sampling_level")).unwrap();
            a.scale_rewards = serde_json::from_value(parse("scale_rewards")).unwrap();
            a.epsilon = number("epsilon").unwrap();
            a.epsilon_high = number("epsilon_high");
            a.delta = number("delta");
            a.beta = number("beta").unwrap();
            a.use_bias_correction_kl = word("use_bias_correction_kl") == json!(true);
            a.entropy_coef = number("entropy_coef").unwrap();
            a.top_entropy_quantile = number("top_entropy_quantile").unwrap();
            a.mask_truncated_completions = word("mask_truncated_completions") == json!(true);
            a.off_policy_mask_threshold = number("off_policy_mask_threshold");
            a.sapo_temperature_neg = number("sapo_temperature_neg").unwrap();
            a.sapo_temperature_pos = number("sapo_temperature_pos").unwrap();
            a.vespo_k_pos = number("vespo_k_pos").unwrap();
            a.vespo_k_neg = number("vespo_k_neg").unwrap();
            a.vespo_lambda_pos = number("vespo_lambda_pos").unwrap();
            a.vespo_lambda_neg = number("vespo_lambda_neg").unwrap();
            if corrects {
                a.sampler_correction =
                    serde_json::from_value(parse("vllm_importance_sampling_mode")).unwrap();
                // `null` is a bound that is taken away.
                let bound = |key: &str| match changes.get(key) {
                    Some(bound) => bound.as_f64(),
                    None => number(key),
                };
                a.sampler_correction_max = bound("vllm_importance_sampling_clip_max");
                a.sampler_correction_min = bound("vllm_importance_sampling_clip_min");
            }
            c.sampling.max_completion_length = number("max_completion_length").unwrap() as usize;
            c.sampling.temperature = number("temperature").unwrap();
        })
    }

    fn rewards(value: &Value) -> (Vec<f64>, Vec<Vec<Option<f64>>>) {
        let rows = value.as_array().unwrap();
        let count = rows[0].as_array().unwrap().len();
        let per_reward = |index: usize| rows.iter().map(|row| row[index].as_f64()).collect();
        let per_reward: Vec<Vec<Option<f64>>> = (0..count).map(per_reward).collect();
        let total = |row: usize| per_reward.iter().filter_map(|rewards| rewards[row]).sum();
        ((0..rows.len()).map(total).collect(), per_reward)
    }

    fn scored(&self, temperature: f64, advantages: &[f64]) -> Vec<ScoredGroup> {
        let mut sampled = self.fixed(temperature, "sampled_logprobs").into_iter();
        let mut advantages = advantages.iter().copied();
        let groups = self.groups.iter();
        groups
            .map(|(prompt, completions, truncated)| {
                let both = completions.iter().zip(truncated);
                let completions: Vec<Completion> = both
                    .map(|(ids, is_truncated)| Completion {
                        ids: ids.clone(),
                        sampled_logprobs: sampled.next().unwrap(),
                        finish_reason: match is_truncated {
                            true => FinishReason::Length,
                            false => FinishReason::Stop,
                        },
                    })
                    .collect();
                let own = advantages.by_ref().take(completions.len()).collect();
                scored(prompt.clone(), completions, own)
            })
            .collect()
    }

    fn known(&self, temperature: f64, is_on_policy: bool) -> KnownLogprobs {
        let list = |name: &str| -> Logprobs {
            let mut fixed = self.fixed(temperature, name).into_iter();
            let groups = self.groups.iter().enumerate();
            let ids = groups.flat_map(|(g, (_, c, _))| (0..c.len()).map(move |i| (g, i)));
            ids.map(|id| (id, torch::on_test_device(&fixed.next().unwrap()))).collect()
        };
        let old = if is_on_policy { Logprobs::new() } else { list("old_logprobs") };
        KnownLogprobs { old, reference: list("ref_logprobs") }
    }
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// One update as the trainer makes it: its loss and metrics; gradients are those of the model afterwards.
fn update(
    model: &dyn VisionLanguageModel,
    config: &GrpoConfig,
    (groups, known): (&Groups, &KnownLogprobs),
    (limits, is_reversed): (Limits, bool),
    world: &dyn World,
) -> PolicyStats {
    let algorithm = Algorithm::new(config, vec![1.0]);
    let inputs = UpdateInputs {
        groups,
        known,
        algorithm: &algorithm,
        limits,
        device: torch::device_of_tests(),
    };
    assert_eq!(updates_per_rollout(config), 1);
    let mut batches = update_batches(&inputs, groups.all.len()).remove(0);
    if is_reversed {
        batches.reverse();
    }
    let temperature = config.sampling.temperature;
    if algorithm.choice.needs_entropies() {
        let entropies: Vec<Tensor> =
            batches.iter().map(|b| b.entropies(model, temperature).unwrap()).collect();
        let own = entropies.iter().flat_map(|of| Vec::<f32>::try_from(of).unwrap());
        let own: Vec<f64> = own.map(f64::from).collect();
        let all = world.gather_numbers("entropies", &own).unwrap().concat();
        let all = all.into_iter().map(|entropy| entropy as f32).collect();
        choose_tokens(algorithm.choice, &mut batches, &entropies, all);
    }
    let mut stats = PolicyStats::default();
    for batch in &mut batches {
        let part = batch.backward(model, temperature, &algorithm.objective, false).unwrap();
        stats.add(part);
    }
    stats
}

fn gradients(model: &dyn VisionLanguageModel) -> BTreeMap<String, Tensor> {
    let list = model.parameters().list.iter();
    let pairs = list.filter(|parameter| parameter.value.grad().defined()).map(|parameter| {
        let mut value = parameter.value.shallow_clone();
        let gradient = value.grad().to_kind(Kind::Double).copy();
        value.zero_grad();
        (parameter.name.clone(), gradient.view([-1]))
    });
    pairs.collect()
}

const WHOLE: Limits = Limits { completions: 64, tokens: None, share_prompt: true };

#[test]
fn every_variant_has_the_loss_and_the_gradients_of_trl() {
    let golden = Golden::read();
    let model = model(TrainedParts::ALL);
    let names: Vec<&str> =
        golden.json["parameters"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    let mut compared = 0;
    for (name, expected) in golden.json["settings"].as_object().unwrap() {
        // A sampler that says nothing of some tokens: ours says something of all.
        if expected["changes"].get("sampled_missing").is_some() || name == "sampler_uncorrected" {
            continue;
        }
        let config = golden.config(&expected["changes"]);
        let temperature = config.sampling.temperature;
        let groups = whole(golden.scored(temperature, &floats(&expected["advantages"])));
        let is_on_policy = expected["changes"]["num_iterations"] == json!(1);
        let known = golden.known(temperature, is_on_policy);
        let stats = update(model.as_ref(), &config, (&groups, &known), (WHOLE, false), &Local);
        let loss = expected["loss"].as_f64().unwrap();
        let difference = (stats.loss - loss).abs() / loss.abs().max(1.0);
        // The weights of vespo are exponentials of sums over a completion: f32 holds them less well.
        let tolerance = if name.starts_with("vespo") { 1e-4 } else { 1e-5 };
        assert!(difference < tolerance, "{name}: loss {} is not {loss}", stats.loss);
        let found = gradients(model.as_ref());
        let norms = floats(&expected["grad_norms"]).into_iter().zip(floats(&expected["grad_dots"]));
        for (parameter, (norm, dot)) in names.iter().zip(norms) {
            let Some(gradient) = found.get(*parameter) else {
                assert!(norm < 1e-9, "{name}: {parameter} has no gradient");
                continue;
            };
            let count = gradient.numel() as i64;
            let direction =
                Tensor::arange_start(1, count + 1, (Kind::Double, torch::device_of_tests())).cos();
            let got = gradient.norm().double_value(&[]);
            let scale = norm.max(1e-4);
            assert!(
                (got - norm).abs() < 1e-4 * scale,
                "{name}: {parameter}: norm {got} is not {norm}"
            );
            let got = (gradient * direction).sum(Kind::Double).double_value(&[]);
            let tolerance = 1e-4 * scale * (count as f64 / 2.0).sqrt();
            assert!((got - dot).abs() < tolerance, "{name}: {parameter}: dot {got} is not {dot}");
        }
        compared += 1;
    }
    assert!(compared >= 60, "{compared} settings");
}

#[test]
fn no_variant_depends_on_what_micro_batches_there_are() {
    let golden = Golden::read();
    let model = model(TrainedParts::ALL);
    for (name, expected) in golden.json["settings"].as_object().unwrap() {
        if expected["changes"].get("sampled_missing").is_some() {
            continue;
        }
        let config = golden.config(&expected["changes"]);
        let temperature = config.sampling.temperature;
        let groups = whole(golden.scored(temperature, &floats(&expected["advantages"])));
        let known = golden.known(temperature, false);
        let inputs = (&groups, &known);
        let whole = update(model.as_ref(), &config, inputs, (WHOLE, false), &Local);
        let expected = gradients(model.as_ref());
        let total =
            expected.values().map(|g| g.norm().double_value(&[]).powi(2)).sum::<f64>().sqrt();
        // Each completion alone, in the opposite order.
        let limits = Limits { tokens: Some(1), ..WHOLE };
        let cut = update(model.as_ref(), &config, inputs, (limits, true), &Local);
        let difference = (cut.loss - whole.loss).abs();
        // On a GPU f32 attention is padded to the longest of a micro-batch, and sums otherwise.
        let tolerance = if torch::device_of_tests().is_cuda() { 1e-5 } else { 1e-6 };
        assert!(difference < tolerance * whole.loss.abs().max(1.0), "{name}: {difference}");
        for (parameter, gradient) in gradients(model.as_ref()) {
            let difference = (gradient - &expected[&parameter]).abs().max().double_value(&[]);
            assert!(difference < tolerance * total.max(1.0), "{name}: {parameter}: {difference}");
        }
    }
}

/// Each of two ranks has one of the groups: denominators are those of both, so their gradients sum to those of one rank.
#[test]
fn two_ranks_have_the_denominators_of_one() {
    let golden = Golden::read();
    for name in ["grpo_changed", "dapo", "dr_grpo", "luspo", "grpo_truncated", "dapo_entropy"] {
        let expected = &golden.json["settings"][name];
        let config = golden.config(&expected["changes"]);
        let advantages = floats(&expected["advantages"]);
        let pass = |range: std::ops::Range<usize>, world: &dyn World| {
            let model = model(TrainedParts::ALL);
            let mut groups = whole(golden.scored(config.sampling.temperature, &advantages));
            // Their order among all is what their log-probabilities are known by.
            let known = golden.known(config.sampling.temperature, false);
            let shifted = |all: Logprobs| -> Logprobs {
                let own = all.into_iter().filter(|((group, _), _)| range.contains(group));
                own.map(|((group, i), logprobs)| ((group - range.start, i), logprobs)).collect()
            };
            let known =
                KnownLogprobs { old: shifted(known.old), reference: shifted(known.reference) };
            groups.own.retain(|scored| range.contains(&scored.index));
            let inputs = (&groups, &known);
            let stats = update(model.as_ref(), &config, inputs, (WHOLE, false), world);
            // Plain numbers: a tensor does not go from thread to thread.
            let norms: BTreeMap<String, Vec<f64>> = gradients(model.as_ref())
                .into_iter()
                .map(|(name, gradient)| (name, Vec::try_from(gradient).unwrap()))
                .collect();
            (stats.loss, norms)
        };
        let (loss, whole) = pass(0..2, &Local);
        let ranks = Threads::run(2, Duration::from_secs(120), |world| {
            pass(world.rank()..world.rank() + 1, &world)
        });
        let sum: f64 = ranks.iter().map(|(loss, _)| loss).sum();
        assert!((sum - loss).abs() < 1e-6 * loss.abs().max(1.0), "{name}: {sum} {loss}");
        for (parameter, expected) in &whole {
            let zeros = vec![0.0; expected.len()];
            let of = |rank: usize| ranks[rank].1.get(parameter).unwrap_or(&zeros);
            let scale = expected.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
            for (index, expected) in expected.iter().enumerate() {
                let got = of(0)[index] + of(1)[index];
                assert!((got - expected).abs() < 1e-5 * scale, "{name}: {parameter}");
            }
        }
    }
}

#[test]
fn advantages_are_those_of_trl() {
    let golden = Golden::read();
    for (name, case) in golden.json["advantages"].as_object().unwrap() {
        let changes = &case["changes"];
        let (_, per_reward) = Golden::rewards(&case["rewards"]);
        let weights = match &changes["reward_weights"] {
            Value::Null => vec![1.0; per_reward.len()],
            weights => floats(weights),
        };
        let config = GrpoConfig::default().with(|c| {
            let a = &mut c.algorithm;
            if let Some(word) = changes.get("scale_rewards") {
                a.scale_rewards = serde_json::from_value(word.clone()).unwrap();
            }
            if let Some(word) = changes.get("multi_objective_aggregation") {
                a.multi_objective_aggregation = serde_json::from_value(word.clone()).unwrap();
            }
        });
        let got = advantages(&config, &weights, &per_reward, None);
        close(name, &got, &floats(&case["advantages"]));
    }
}

#[test]
fn other_estimators_are_those_of_ms_swift() {
    let golden = Golden::read();
    let estimators = &golden.json["estimators"];
    let rewards = vec![floats(&estimators["rewards"]).into_iter().map(Some).collect()];
    let kl = floats(&estimators["kl"]);
    for case in estimators["cases"].as_array().unwrap() {
        let config = GrpoConfig::default().with(|c| {
            let a = &mut c.algorithm;
            a.advantage_estimator =
                serde_json::from_value(case["advantage_estimator"].clone()).unwrap();
            a.scale_rewards = serde_json::from_value(case["scale_rewards"].clone()).unwrap();
            a.beta = case["beta"].as_f64().unwrap();
            a.kl_in_reward = case["kl_in_reward"].as_bool();
        });
        let kl = config.algorithm.has_kl_in_reward().then_some(kl.as_slice());
        let got = advantages(&config, &[1.0], &rewards, kl);
        close(&case.to_string(), &got, &floats(&case["advantages"]));
    }
}

/// Of groups of four.
fn advantages(
    config: &GrpoConfig,
    weights: &[f64],
    per_reward: &[Vec<Option<f64>>],
    kl: Option<&[f64]>,
) -> Vec<f64> {
    let rows = per_reward[0].len();
    let total = |row: usize| -> f64 {
        let scores = per_reward.iter().zip(weights);
        scores.map(|(rewards, weight)| weight * rewards[row].unwrap_or_default()).sum()
    };
    let total: Vec<f64> = (0..rows).map(total).collect();
    let of_groups: Vec<Vec<Vec<Option<f64>>>> = (0..rows)
        .step_by(4)
        .map(|first| per_reward.iter().map(|rewards| rewards[first..first + 4].to_vec()).collect())
        .collect();
    let groups: Vec<_> = total
        .chunks(4)
        .zip(&of_groups)
        .map(|(total, per_reward)| crate::algorithm::advantage::GroupRewards { total, per_reward })
        .collect();
    let kl: Option<Vec<Vec<f64>>> = kl.map(|kl| kl.chunks(4).map(<[f64]>::to_vec).collect());
    let algorithm = Algorithm::new(config, weights.to_vec());
    algorithm.advantages.advantages(&groups, kl.as_deref()).concat()
}

fn close(name: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        // TRL computes in f32.
        assert!((got - expected).abs() < 2e-5, "{name}: {got} is not {expected}");
    }
}
