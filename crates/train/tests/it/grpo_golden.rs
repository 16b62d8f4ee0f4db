//! GRPO's loss and gradients equal those of an independent script that computes every completion as a
//! sequence of its own: it holds sharing to unshared as well as our formula to the published one.

use std::sync::Arc;

use base::Prompt;
use config::GrpoConfig;
use serde_json::Value;
use tch::{Kind, Tensor};
use train::algorithm::Algorithm;
use train::algorithm::advantage::GroupRewards;
use train::algorithm::aggregation::{Totals, per_token};
use train::algorithm::completions::Completions;
use train::algorithm::objective::Tokens;
use train::batch::{MicroBatch, Pass, PromptWithCompletions};

use crate::golden;

struct Group {
    prompt: Prompt,
    completions: Vec<Vec<u32>>,
    advantages: Vec<f64>,
}

fn groups() -> Vec<Group> {
    let processor = golden::processor("nested");
    let batch = golden::json("grpo/batch.json");
    let read = |group: &Value| {
        let images: Vec<_> = group["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| golden::folder("parity/images").join(name.as_str().unwrap()))
            .map(|path| Arc::new(processor.load_image(&path).unwrap()))
            .collect();
        let prompt = processor.prompt(group["prompt"].as_str().unwrap(), &images).unwrap();
        assert_eq!(prompt.ids, golden::ids(&group["prompt_ids"]));
        let rewards = golden::floats(&group["rewards"]);
        let rewards = GroupRewards { total: &rewards, per_reward: &[] };
        let rule = Algorithm::new(&GrpoConfig::default(), vec![1.0]).advantages;
        let advantages = rule.advantages(&[rewards], None).remove(0);
        for (got, expected) in advantages.iter().zip(golden::floats(&group["advantages"])) {
            assert!((got - expected).abs() < 1e-6);
        }
        let completions =
            group["completion_ids"].as_array().unwrap().iter().map(golden::ids).collect();
        Group { prompt, completions, advantages }
    };
    batch["groups"].as_array().unwrap().iter().map(read).collect()
}

fn flat(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().flat_map(golden::floats).map(|x| x as f32).collect()
}

fn fixed(temperature: f64, name: &str) -> Tensor {
    let batch = golden::json("grpo/batch.json");
    let at = batch["fixed_logprobs"].as_array().unwrap().iter();
    let found = at.clone().find(|f| f["temperature"].as_f64() == Some(temperature)).unwrap();
    torch::on_test_device(&flat(&found[name]))
}

#[test]
fn loss_and_gradients() {
    let groups = groups();
    let expected = golden::json("grpo/expected.json");
    for (name, expected) in expected.as_object().unwrap() {
        let number = |key: &str| expected[key].as_f64().unwrap();
        let (beta, temperature) = (number("beta"), number("temperature"));
        let config = GrpoConfig::default().with(|c| {
            c.algorithm.beta = beta;
            c.algorithm.epsilon = number("epsilon");
            c.algorithm.epsilon_high = Some(number("epsilon_high"));
        });
        let objective = Algorithm::new(&config, vec![1.0]).objective;
        let model = golden::model("nested", true);
        let items: Vec<PromptWithCompletions<'_>> = groups
            .iter()
            .map(|g| (&g.prompt, g.completions.iter().map(Vec::as_slice).collect()))
            .collect();
        let batch = MicroBatch::pack(model.as_ref(), &items).unwrap();
        let per_completion: Vec<f64> = groups.iter().flat_map(|g| g.advantages.clone()).collect();
        let adv = torch::on_test_device(&per_token(&batch.lens, |index| per_completion[index]));
        let completions = Completions::new(&batch.lens, torch::device_of_tests());
        let tokens = batch.lens.iter().sum::<usize>() as f64;
        let totals = Totals { completions: per_completion.len() as f64, tokens };
        let weights =
            per_token(&batch.lens, |index| objective.aggregation.weight(batch.lens[index], totals));
        let weights = torch::on_test_device(&weights);
        let old = fixed(temperature, "old_logprobs");
        let reference = fixed(temperature, "ref_logprobs");
        let on_policy = expected["on_policy"].as_bool().unwrap();
        let (loss, logprobs) =
            batch.backward(model.as_ref(), Pass::new(temperature, false), |scores| {
                let old = if on_policy { scores.logprobs.detach() } else { old.shallow_clone() };
                let loss = objective.loss(&Tokens {
                    logprobs: &scores.logprobs,
                    entropies: &scores.entropies,
                    old_logprobs: &old,
                    sampled_logprobs: &old,
                    ref_logprobs: Some(&reference),
                    advantages: &adv,
                    weights: &weights,
                    entropy_weights: &weights,
                    chosen: None,
                    completions: &completions,
                });
                let clipped = loss.clipped.unwrap();
                let share = f64::try_from((clipped.low + clipped.high).mean(Kind::Float)).unwrap();
                assert!((share - number("clip_ratio_token_mean")).abs() < 1e-6, "{name}: {share}");
                let total = f64::try_from(loss.total.detach()).unwrap();
                (loss.total, (total, scores.logprobs.detach()))
            });
        assert!((loss - number("loss")).abs() < 1e-5, "{name}: loss {loss}");
        let golden_logprobs = torch::on_test_device(&flat(&expected["logprobs"]));
        assert!(golden::max_difference(&logprobs, &golden_logprobs) < 1e-4, "{name}");
        let norms = expected["grad_norms"].as_object().unwrap();
        for parameter in &model.parameters().list {
            let norm = f64::try_from(parameter.value.grad().norm()).unwrap();
            let expected = norms[&parameter.name].as_f64().unwrap();
            assert!(
                (norm - expected).abs() < 1e-4 * expected.max(1e-3),
                "{name} {}: {norm} {expected}",
                parameter.name
            );
        }
        if name == "cool" {
            golden::compare_gradients(
                model.as_ref(),
                &golden::folder("grpo/grads_cool.safetensors"),
                1e-4,
            );
        }
    }
}
