//! GRPO's loss and gradients equal those of an independent script that computes every completion as a
//! sequence of its own: it holds sharing to unshared as well as our formula to the published one.

use std::sync::Arc;

use base::Prompt;
use serde_json::Value;
use tch::{Kind, Tensor};
use train::batch::{MicroBatch, PromptWithCompletions};
use train::grpo::{
    ClipRange, advantages, is_clipped, kl_k3, policy_loss, repeat_over_tokens, token_weights,
};

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
        let advantages = advantages(&golden::floats(&group["rewards"]));
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
    Tensor::from_slice(&flat(&found[name]))
}

#[test]
fn loss_and_gradients() {
    let groups = groups();
    let expected = golden::json("grpo/expected.json");
    for (name, expected) in expected.as_object().unwrap() {
        let number = |key: &str| expected[key].as_f64().unwrap();
        let (beta, temperature) = (number("beta"), number("temperature"));
        let clip = ClipRange { low: number("epsilon"), high: number("epsilon_high") };
        let model = golden::model("nested", true);
        let items: Vec<PromptWithCompletions<'_>> = groups
            .iter()
            .map(|g| (&g.prompt, g.completions.iter().map(Vec::as_slice).collect()))
            .collect();
        let batch = MicroBatch::pack(model.as_ref(), &items).unwrap();
        let per_completion: Vec<f64> = groups.iter().flat_map(|g| g.advantages.clone()).collect();
        let adv = Tensor::from_slice(&repeat_over_tokens(&per_completion, &batch.lens));
        let weights = Tensor::from_slice(&token_weights(&batch.lens, per_completion.len()));
        let old = fixed(temperature, "old_logprobs");
        let reference = fixed(temperature, "ref_logprobs");
        let on_policy = expected["on_policy"].as_bool().unwrap();
        let (loss, logprobs) = batch.backward(model.as_ref(), temperature, false, |scores| {
            let old = if on_policy { scores.logprobs.detach() } else { old.shallow_clone() };
            let mut loss = policy_loss(&scores.logprobs, &old, &adv, clip);
            if beta > 0.0 {
                loss += kl_k3(&scores.logprobs, &reference) * beta;
            }
            let token_loss = Tensor::from_slice(&flat(&expected["token_loss"]));
            assert!(golden::max_difference(&loss.detach(), &token_loss) < 1e-4, "{name}");
            let clipped = is_clipped(&scores.logprobs.detach(), &old, &adv, clip);
            let share = f64::try_from(clipped.mean(Kind::Float)).unwrap();
            assert!((share - number("clip_ratio_token_mean")).abs() < 1e-6, "{name}: {share}");
            let loss = (loss * &weights).sum(Kind::Float);
            (
                loss.shallow_clone(),
                (f64::try_from(loss.detach()).unwrap(), scores.logprobs.detach()),
            )
        });
        assert!((loss - number("loss")).abs() < 1e-5, "{name}: loss {loss}");
        let golden_logprobs = Tensor::from_slice(&flat(&expected["logprobs"]));
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
            golden::compare_gradients(model.as_ref(), "grpo/grads_cool.safetensors", 1e-4);
        }
    }
}
