//! GRPO in one file: rollout, reward, advantage, loss, update, on a tiny Qwen2.5-VL with random weights.
//!
//! The model sees drawn scenes and learns to answer in numbers: the reward is the share of characters that a list of
//! numbers may have. It rises within a minute on two cores. `vlm-r1 grpo` does the same with everything that a real run
//! needs: `crates/train/src/trainer.rs`.
//!
//!     cargo run --release -p cli-engine --example minimal_grpo

use std::sync::Arc;

use anyhow::{Context, Result};
use base::{Completion, DrawKey, Prompt};
use config::GrpoConfig;
use data::image::{ResizeBackend, RgbImage};
use data::{Processor, ProcessorOptions};
use engine::{Generator, Request, SamplingParams};
use models::{LoadOptions, TrainedParts, VisionLanguageModel, load_model};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tch::{Device, Kind, Tensor};
use tiny::model::ModelShape;
use tiny::scenes::{Scene, all_expressions};
use tiny::tokenizer::Words;
use train::algorithm::Algorithm;
use train::algorithm::advantage::{GroupRewards, mean_and_std};
use train::algorithm::aggregation::{Totals, per_token};
use train::algorithm::completions::Completions;
use train::algorithm::objective::Tokens;
use train::batch::{MicroBatch, Pass, PromptWithCompletions};
use train::optimizer::{Optimizer, OptimizerOptions};

const STEPS: u64 = 40;
/// Questions of a step.
const PROMPTS: usize = 8;
/// Completions of a question.
const GROUP: usize = 8;
const LEARNING_RATE: f64 = 1e-3;
const QUESTION: &str = "Where is it? ";

/// Completions of a question, with what they earned.
struct Group {
    prompt: Prompt,
    completions: Vec<Completion>,
    rewards: Vec<f64>,
}

struct Trainer {
    model: Box<dyn VisionLanguageModel>,
    processor: Processor,
    optimizer: Optimizer,
    /// What GRPO is: by the settings of `vlm-r1 grpo`, here without a reference model.
    algorithm: Algorithm,
    scenes: ChaCha8Rng,
}

impl Trainer {
    /// A model folder with random weights, as `vlm-r1 demo` begins with.
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let texts = vec![QUESTION.to_owned(), "[1, 2, 3, 4]".to_owned()];
        let texts = texts.into_iter().chain(all_expressions()).collect();
        let words = Words { sentences: vec![QUESTION.to_owned()], texts };
        tiny::model::write(folder.path(), &ModelShape::DEMO, &words, 0)?;
        let options =
            LoadOptions { kind: Kind::Float, device: Device::Cpu, trained: TrainedParts::ALL };
        let mut model = load_model(folder.path(), options)?;
        let options = ProcessorOptions {
            resize_backend: ResizeBackend::Torchvision,
            min_pixels: None,
            max_pixels: None,
            apply_exif: false,
            max_prompt_length: None,
        };
        let processor = Processor::from_dir(folder.path(), &options)?;
        let adamw = OptimizerOptions {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            in_8bit: false,
        };
        let optimizer = Optimizer::alone(model.parameters_mut(), adamw)?;
        let config = GrpoConfig::default().with(|c| c.algorithm.beta = 0.0);
        let algorithm = Algorithm::new(&config, vec![1.0]);
        let scenes = ChaCha8Rng::seed_from_u64(0);
        Ok(Trainer { model, processor, optimizer, algorithm, scenes })
    }

    /// A scene and a question about it.
    fn prompt(&mut self) -> Result<Prompt> {
        let scene = Scene::draw(&mut self.scenes);
        let image = scene.render();
        let image = RgbImage::new(image.width(), image.height(), image.into_raw());
        let image = self.processor.image_processor().prepare(&image)?;
        let expression = scene.expressions().swap_remove(0).text;
        let question = format!("{QUESTION}{expression}");
        Ok(self.processor.prompt(&question, &[Arc::new(image)])?)
    }

    /// Returns the mean reward.
    fn step(&mut self, step: u64) -> Result<f64> {
        let prompts = (0..PROMPTS).map(|_| self.prompt()).collect::<Result<Vec<_>>>()?;
        let groups = self.rollout(&prompts, step)?;
        let advantages = self.advantages(&groups);
        self.backward(&groups, &advantages)?;
        self.optimizer.step(self.model.parameters(), LEARNING_RATE)?;
        let rewards: Vec<f64> = groups.iter().flat_map(|group| group.rewards.clone()).collect();
        Ok(mean_and_std(&rewards).0)
    }

    /// Samples a group of completions for each prompt, and scores them.
    fn rollout(&self, prompts: &[Prompt], step: u64) -> Result<Vec<Group>> {
        let tokenizer = self.processor.tokenizer();
        let params = SamplingParams {
            max_new_tokens: 12,
            eos_ids: tokenizer.eos_ids().to_vec(),
            forbidden_ids: tokenizer.placeholder_ids().to_vec(),
            ..SamplingParams::default()
        };
        let generator = Generator::new(self.model.as_ref(), params, PROMPTS * GROUP)?;
        let requests: Vec<Request> = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| Request {
                prompt: prompt.clone(),
                num_completions: GROUP,
                // Random numbers are keyed by what they are for.
                key: DrawKey { seed: 0, step, prompt: index as u64, completion: 0 },
            })
            .collect();
        let generation = generator.generate(&requests, &mut |_, _, _| {}, &|| false)?;
        let groups = prompts.iter().cloned().zip(generation.completions);
        groups
            .map(|(prompt, completions)| {
                let rewards = completions.iter().map(|completion| self.reward(completion));
                let rewards = rewards.collect::<Result<Vec<_>>>()?;
                Ok(Group { prompt, completions, rewards })
            })
            .collect()
    }

    /// The share of characters that a list of numbers may have.
    fn reward(&self, completion: &Completion) -> Result<f64> {
        let text = self.processor.tokenizer().decode(&completion.ids, true)?;
        let fits = |c: &char| c.is_ascii_digit() || ", []".contains(*c);
        let count = text.chars().count().max(1);
        Ok(text.chars().filter(fits).count() as f64 / count as f64)
    }

    /// How much better each completion is than the mean of its group: `[groups][GROUP]`.
    fn advantages(&self, groups: &[Group]) -> Vec<Vec<f64>> {
        let rewards: Vec<GroupRewards<'_>> = groups
            .iter()
            .map(|group| GroupRewards { total: &group.rewards, per_reward: &[] })
            .collect();
        self.algorithm.advantages.advantages(&rewards, None)
    }

    /// The gradients of the loss, in one pass over all groups: each prompt once, its completions behind it.
    fn backward(&self, groups: &[Group], advantages: &[Vec<f64>]) -> Result<()> {
        let items: Vec<PromptWithCompletions<'_>> = groups
            .iter()
            .map(|group| {
                let ids = group.completions.iter().map(|c| c.ids.as_slice());
                (&group.prompt, ids.collect())
            })
            .collect();
        let batch = MicroBatch::pack(self.model.as_ref(), &items)?;
        let objective = &self.algorithm.objective;
        let lens = &batch.lens;
        let tokens = lens.iter().sum::<usize>() as f64;
        let totals = Totals { completions: lens.len() as f64, tokens };
        // One value a token.
        let vector = |value: &dyn Fn(usize) -> f64| Tensor::from_slice(&per_token(lens, value));
        let advantages = advantages.concat();
        let advantages = vector(&|completion| advantages[completion]);
        let weights = vector(&|completion| objective.aggregation.weight(lens[completion], totals));
        let completions = Completions::new(lens, Device::Cpu);
        batch.backward(self.model.as_ref(), Pass::new(1.0, false), |scores| {
            // The first update after a rollout: the policy is the one that sampled.
            let old = scores.logprobs.detach();
            let loss = objective.loss(&Tokens {
                logprobs: &scores.logprobs,
                entropies: &scores.entropies,
                old_logprobs: &old,
                sampled_logprobs: &old,
                ref_logprobs: None,
                advantages: &advantages,
                weights: &weights,
                entropy_weights: &weights,
                chosen: None,
                completions: &completions,
            });
            (loss.total, ())
        });
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut trainer = Trainer::new()?;
    for step in 0..STEPS {
        let reward = trainer.step(step).with_context(|| format!("step {step}"))?;
        base::print_data!("step {:2}  reward {reward:.3}", step + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reward_rises() -> Result<()> {
        let mut trainer = Trainer::new()?;
        let rewards: Vec<f64> = (0..STEPS).map(|step| trainer.step(step)).collect::<Result<_>>()?;
        let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
        let (start, end) = (mean(&rewards[..4]), mean(&rewards[rewards.len() - 4..]));
        assert!(end > start + 0.2, "reward went from {start} to {end}");
        Ok(())
    }
}
