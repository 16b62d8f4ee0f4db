//! A micro-batch of scored completions, and what one pass over it tells.

use base::RolloutGroup;
use models::VisionLanguageModel;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor, no_grad};

use crate::TrainError;
use crate::batch::{MicroBatch, PromptWithAnswers};
use crate::grpo::{ClipRange, is_clipped, kl_k3, policy_loss, repeat_over_tokens, token_weights};

/// Whole groups with everything the loss reads, a value per answer token: all `[N]`, f32. They are
/// packed anew for each pass, so that one micro-batch's pictures and tables exist at a time.
pub(crate) struct PolicyBatch<'g> {
    items: Vec<PromptWithAnswers<'g>>,
    advantages: Tensor,
    /// Weight of each token, so that a weighted sum is the step's mean of means.
    weights: Tensor,
    sampled_logprobs: Tensor,
    ref_logprobs: Option<Tensor>,
    /// Of the first pass over this batch; `None` before it.
    old_logprobs: Option<Tensor>,
}

impl<'g> PolicyBatch<'g> {
    /// Groups for batches of at most `max_completions` completions and `max_tokens` tokens; a single
    /// group may be larger. `completions` counts all of the step.
    pub fn split(
        groups: &[&'g RolloutGroup],
        completions: usize,
        max_completions: usize,
        max_tokens: Option<usize>,
        device: Device,
    ) -> Vec<Self> {
        let mut batches = Vec::new();
        let mut from = 0;
        while from < groups.len() {
            let (mut held, mut tokens, mut to) = (0, 0, from);
            while to < groups.len() {
                held += groups[to].completions.len();
                tokens += num_tokens(groups[to]);
                if to > from
                    && (held > max_completions || max_tokens.is_some_and(|max| tokens > max))
                {
                    break;
                }
                to += 1;
            }
            batches.push(Self::new(&groups[from..to], completions, device));
            from = to;
        }
        batches
    }

    fn new(groups: &[&'g RolloutGroup], completions: usize, device: Device) -> Self {
        let all = || groups.iter().flat_map(|g| &g.completions);
        let lens: Vec<usize> = all().map(|c| c.ids.len()).collect();
        let advantages: Vec<f64> = groups
            .iter()
            .flat_map(|g| g.advantages.iter().copied())
            .collect();
        let sampled: Vec<f32> = all()
            .flat_map(|c| c.sampled_logprobs.iter().copied())
            .collect();
        let vector = |values: &[f32]| Tensor::from_slice(values).to_device(device);
        PolicyBatch {
            items: groups
                .iter()
                .map(|g| {
                    (
                        &g.prompt,
                        g.completions.iter().map(|c| c.ids.as_slice()).collect(),
                    )
                })
                .collect(),
            advantages: vector(&repeat_over_tokens(&advantages, &lens)),
            weights: vector(&token_weights(&lens, completions)),
            sampled_logprobs: vector(&sampled),
            ref_logprobs: None,
            old_logprobs: None,
        }
    }

    /// Fills in the log-probabilities of the reference model.
    pub fn score_by_reference(
        &mut self,
        reference: &dyn VisionLanguageModel,
        temperature: f64,
    ) -> Result<(), TrainError> {
        let micro = MicroBatch::pack(reference, &self.items)?;
        self.ref_logprobs = Some(micro.scores(reference, temperature).logprobs);
        Ok(())
    }

    /// Adds this batch's part of the loss to the gradients.
    pub fn accumulate(
        &mut self,
        model: &dyn VisionLanguageModel,
        temperature: f64,
        clip: ClipRange,
        beta: f64,
        recompute: bool,
    ) -> Result<PolicyStats, TrainError> {
        let stats = MicroBatch::pack(model, &self.items)?.backward(
            model,
            temperature,
            recompute,
            |scores| {
                let current = &scores.logprobs;
                let old = self.old_logprobs.get_or_insert_with(|| current.detach());
                let mut loss = policy_loss(current, old, &self.advantages, clip);
                let kl = self
                    .ref_logprobs
                    .as_ref()
                    .map(|reference| kl_k3(current, reference));
                if let Some(kl) = &kl {
                    loss += kl * beta;
                }
                let mean = |values: &Tensor| (values * &self.weights).sum(Kind::Float);
                let loss = mean(&loss);
                let stats = no_grad(|| {
                    let difference = current - &self.sampled_logprobs;
                    Tensor::stack(
                        &[
                            loss.detach(),
                            kl.as_ref().map_or_else(|| loss.zeros_like(), mean),
                            mean(&is_clipped(current, old, &self.advantages, clip)),
                            mean(&scores.entropies),
                            mean(&(difference.exp() - &difference - 1.0)),
                            difference.abs().max(),
                        ],
                        0,
                    )
                });
                (loss, stats)
            },
        );
        let numbers = Vec::<f32>::try_from(stats.to_device(Device::Cpu))?;
        Ok(PolicyStats {
            loss: f64::from(numbers[0]),
            kl: f64::from(numbers[1]),
            clip_ratio: f64::from(numbers[2]),
            entropy: f64::from(numbers[3]),
            sampled_vs_trained_kl: f64::from(numbers[4]),
            sampled_vs_trained_max: f64::from(numbers[5]),
            ..PolicyStats::default()
        })
    }
}

fn num_tokens(group: &RolloutGroup) -> usize {
    group.prompt.ids.len() + group.completions.iter().map(|c| c.ids.len()).sum::<usize>()
}

/// Sums over the micro-batches (and iterations) of a step; each already weighted by its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PolicyStats {
    pub loss: f64,
    kl: f64,
    clip_ratio: f64,
    entropy: f64,
    sampled_vs_trained_kl: f64,
    /// Largest difference of a sampled and a trained log-probability.
    sampled_vs_trained_max: f64,
    grad_norm: f64,
    learning_rate: f64,
    updates: usize,
}

impl PolicyStats {
    /// Adds a micro-batch. Sampled and trained probabilities are compared before the first update:
    /// afterwards they differ on purpose.
    pub fn add(&mut self, other: PolicyStats) {
        self.loss += other.loss;
        self.kl += other.kl;
        self.clip_ratio += other.clip_ratio;
        self.entropy += other.entropy;
        if self.updates == 0 {
            self.sampled_vs_trained_kl += other.sampled_vs_trained_kl;
            self.sampled_vs_trained_max = self
                .sampled_vs_trained_max
                .max(other.sampled_vs_trained_max);
        }
    }

    /// Notes an update's gradient norm and learning rate.
    pub fn updated(&mut self, (grad_norm, learning_rate): (f64, f64)) {
        self.grad_norm += grad_norm;
        self.learning_rate = learning_rate;
        self.updates += 1;
    }

    /// Writes means over the step's iterations.
    pub fn write(&self, metrics: &mut Map<String, Value>, iterations: usize) {
        let mean = |sum: f64| json!(sum / iterations as f64);
        metrics.insert("kl".into(), mean(self.kl));
        metrics.insert("clip_ratio".into(), mean(self.clip_ratio));
        metrics.insert("entropy".into(), mean(self.entropy));
        metrics.insert("loss".into(), mean(self.loss));
        metrics.insert("grad_norm".into(), mean(self.grad_norm));
        metrics.insert("learning_rate".into(), json!(self.learning_rate));
        metrics.insert(
            "sampled_vs_trained_kl".into(),
            json!(self.sampled_vs_trained_kl),
        );
        metrics.insert(
            "sampled_vs_trained_max".into(),
            json!(self.sampled_vs_trained_max),
        );
    }
}
