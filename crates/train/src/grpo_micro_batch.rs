//! A GRPO micro-batch: scored completions, their loss, and the statistics of a pass.

use base::{Prompt, RolloutGroup};
use models::VisionLanguageModel;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor, no_grad};

use crate::TrainError;
use crate::bad_step::TokenRecord;
use crate::batch::{MicroBatch, PromptWithCompletions};
use crate::grpo::{ClipRange, is_clipped, kl_k3, policy_loss, repeat_over_tokens, token_weights};
use crate::micro_batches::{GroupLens, Limits, Part, micro_batches};
use crate::rollout::unshared;

/// A completion of the step: its group and its index within it.
pub(crate) type CompletionId = (usize, usize);

/// Completions with all inputs of the loss, one value per completion token: all `[N]`, f32. Tokens are packed anew for each pass, so that
/// the images and index tables of only one micro-batch exist at a time.
pub(crate) struct GrpoMicroBatch<'g> {
    items: Vec<PromptWithCompletions<'g>>,
    /// Otherwise each item's prompt goes through the model with images of its own.
    share_prompt: bool,
    completion_ids: Vec<CompletionId>,
    /// Tokens of each completion.
    lens: Vec<usize>,
    advantages: Tensor,
    /// Weight of each token, so that a weighted sum is the step's mean of means.
    weights: Tensor,
    sampled_logprobs: Tensor,
    ref_logprobs: Option<Tensor>,
    /// Those of the first pass; `None` before it.
    old_logprobs: Option<Tensor>,
}

impl<'g> GrpoMicroBatch<'g> {
    /// Micro-batches of groups, each with its index in the step. `completions` counts all of the step.
    pub fn split(
        groups: &[(usize, &'g RolloutGroup)],
        completions: usize,
        limits: Limits,
        device: Device,
    ) -> Vec<Self> {
        let lens: Vec<GroupLens> = groups.iter().map(|(_, group)| group_lens(group)).collect();
        micro_batches(&lens, limits)
            .iter()
            .map(|parts| GrpoMicroBatch {
                share_prompt: limits.share_prompt,
                ..Self::new(parts, groups, completions, device)
            })
            .collect()
    }

    fn new(
        parts: &[Part],
        groups: &[(usize, &'g RolloutGroup)],
        completions: usize,
        device: Device,
    ) -> Self {
        let all: Vec<(usize, &'g RolloutGroup, usize)> = parts
            .iter()
            .flat_map(|part| {
                let (index, group) = groups[part.group];
                part.completions.clone().map(move |i| (index, group, i))
            })
            .collect();
        let lens: Vec<usize> = all.iter().map(|(_, g, i)| g.completions[*i].ids.len()).collect();
        let advantages: Vec<f64> = all.iter().map(|(_, g, i)| g.advantages[*i]).collect();
        let sampled: Vec<f32> = all
            .iter()
            .flat_map(|(_, g, i)| g.completions[*i].sampled_logprobs.iter().copied())
            .collect();
        let item = |part: &Part| -> PromptWithCompletions<'g> {
            let group = groups[part.group].1;
            let completions = &group.completions[part.completions.clone()];
            (&group.prompt, completions.iter().map(|c| c.ids.as_slice()).collect())
        };
        let vector = |values: &[f32]| Tensor::from_slice(values).to_device(device);
        GrpoMicroBatch {
            items: parts.iter().map(item).collect(),
            share_prompt: true,
            completion_ids: all.iter().map(|(index, _, i)| (*index, *i)).collect(),
            advantages: vector(&repeat_over_tokens(&advantages, &lens)),
            weights: vector(&token_weights(&lens, completions)),
            sampled_logprobs: vector(&sampled),
            ref_logprobs: None,
            old_logprobs: None,
            lens,
        }
    }

    /// Tokens of its prompts and completions.
    pub fn group_lens(&self) -> Vec<GroupLens> {
        let lens = |(prompt, completions): &PromptWithCompletions<'_>| GroupLens {
            prompt: prompt.ids.len(),
            completions: completions.iter().map(|ids| ids.len()).collect(),
        };
        self.items.iter().map(lens).collect()
    }

    /// The same completions in micro-batches within `limits`, with all their log-probabilities.
    pub fn cut(self, limits: Limits) -> Vec<Self> {
        let parts = micro_batches(&self.group_lens(), limits);
        if parts.len() == 1 {
            return vec![self];
        }
        let (mut first, mut token) = (0, 0);
        parts
            .iter()
            .map(|parts| {
                let last = first + parts.iter().map(|p| p.completions.len()).sum::<usize>();
                let lens = self.lens[first..last].to_vec();
                let tokens = lens.iter().sum::<usize>() as i64;
                // A copy, so that the original is freed.
                let of = |all: &Tensor| all.narrow(0, token, tokens).copy();
                let item = |part: &Part| -> PromptWithCompletions<'g> {
                    let (prompt, completions) = &self.items[part.group];
                    (prompt, completions[part.completions.clone()].to_vec())
                };
                let batch = GrpoMicroBatch {
                    items: parts.iter().map(item).collect(),
                    share_prompt: self.share_prompt,
                    completion_ids: self.completion_ids[first..last].to_vec(),
                    advantages: of(&self.advantages),
                    weights: of(&self.weights),
                    sampled_logprobs: of(&self.sampled_logprobs),
                    ref_logprobs: self.ref_logprobs.as_ref().map(of),
                    old_logprobs: self.old_logprobs.as_ref().map(of),
                    lens,
                };
                (first, token) = (last, token + tokens);
                batch
            })
            .collect()
    }

    fn pack(&self, model: &dyn VisionLanguageModel) -> Result<MicroBatch, TrainError> {
        if self.share_prompt {
            return MicroBatch::pack(model, &self.items);
        }
        let prompts: Vec<Prompt> = self.items.iter().map(|item| unshared(item.0)).collect();
        let completions = self.items.iter().map(|item| item.1.clone());
        let items: Vec<PromptWithCompletions<'_>> = prompts.iter().zip(completions).collect();
        MicroBatch::pack(model, &items)
    }

    /// The log-probabilities so far of each completion; `index` is this micro-batch's.
    pub fn token_records(
        &self,
        index: usize,
    ) -> Result<Vec<(CompletionId, TokenRecord)>, TrainError> {
        let list = |values: &Option<Tensor>| -> Result<Option<Vec<f32>>, TrainError> {
            let cpu = values.as_ref().map(|v| v.to_device(Device::Cpu));
            Ok(cpu.map(Vec::try_from).transpose()?)
        };
        let (old, reference) = (list(&self.old_logprobs)?, list(&self.ref_logprobs)?);
        let mut start = 0;
        let mut records = Vec::with_capacity(self.completion_ids.len());
        for (&place, len) in self.completion_ids.iter().zip(&self.lens) {
            let cut = |all: &Option<Vec<f32>>| Some(all.as_ref()?[start..start + len].to_vec());
            let each = TokenRecord {
                micro_batch: Some(index),
                old_logprobs: cut(&old),
                ref_logprobs: cut(&reference),
            };
            records.push((place, each));
            start += len;
        }
        Ok(records)
    }

    /// Fills in the log-probabilities of the reference model.
    pub fn score_by_reference(
        &mut self,
        reference: &dyn VisionLanguageModel,
        temperature: f64,
    ) -> Result<(), TrainError> {
        let micro = self.pack(reference)?;
        self.ref_logprobs = Some(micro.scores(reference, temperature).logprobs);
        Ok(())
    }

    /// Adds this batch's part of the loss to the gradients.
    /// Its log-probabilities are kept only if the pass succeeds.
    pub fn accumulate(
        &mut self,
        model: &dyn VisionLanguageModel,
        temperature: f64,
        clip: ClipRange,
        beta: f64,
        recompute: bool,
    ) -> Result<PolicyStats, TrainError> {
        let (old, stats) = self.pack(model)?.backward(model, temperature, recompute, |scores| {
            let current = &scores.logprobs;
            let stored = self.old_logprobs.as_ref().map(Tensor::shallow_clone);
            let old = stored.unwrap_or_else(|| current.detach());
            let mut loss = policy_loss(current, &old, &self.advantages, clip);
            let kl = self.ref_logprobs.as_ref().map(|reference| kl_k3(current, reference));
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
                        mean(&is_clipped(current, &old, &self.advantages, clip)),
                        mean(&scores.entropies),
                        mean(&(difference.exp() - &difference - 1.0)),
                        difference.abs().max(),
                    ],
                    0,
                )
            });
            (loss, (old, stats))
        });
        self.old_logprobs = Some(old);
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

fn group_lens(group: &RolloutGroup) -> GroupLens {
    GroupLens {
        prompt: group.prompt.ids.len(),
        completions: group.completions.iter().map(|c| c.ids.len()).collect(),
    }
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
            self.sampled_vs_trained_max =
                self.sampled_vs_trained_max.max(other.sampled_vs_trained_max);
        }
    }

    /// Records an update's gradient norm and learning rate.
    pub fn updated(&mut self, (grad_norm, learning_rate): (f64, f64)) {
        self.grad_norm += grad_norm;
        self.learning_rate = learning_rate;
        self.updates += 1;
    }

    /// Updates so far.
    pub fn updates(&self) -> usize {
        self.updates
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
        metrics.insert("sampled_vs_trained_kl".into(), json!(self.sampled_vs_trained_kl));
        metrics.insert("sampled_vs_trained_max".into(), json!(self.sampled_vs_trained_max));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::{Completion, FinishReason, PreparedImage};
    use models::{LoadOptions, TrainedParts, load_model};

    use super::*;

    fn model() -> Box<dyn VisionLanguageModel> {
        let options =
            LoadOptions { kind: Kind::Float, device: Device::Cpu, trained: TrainedParts::NONE };
        load_model(&testing::checkpoint("nested"), options).unwrap()
    }

    /// An image of one merged patch and three tokens around it; completions of 2, 3 and 1 tokens.
    fn group(model: &dyn VisionLanguageModel) -> RolloutGroup {
        let side = model.spatial_merge_size();
        let image = PreparedImage::new(
            vec![0.5; side * side * model.patch_dim()],
            [1, side, side],
            [28, 28],
            [28, 28],
        );
        let completion = |ids: &[u32]| Completion {
            ids: ids.to_vec(),
            sampled_logprobs: vec![-1.0; ids.len()],
            finish_reason: FinishReason::Length,
        };
        RolloutGroup {
            example_index: 0,
            prompt: Prompt {
                ids: vec![5, model.image_token_id(), 6, 7],
                images: vec![Arc::new(image)],
            },
            completions: [&[8, 9][..], &[10, 11, 12], &[13]].map(completion).to_vec(),
            rewards: vec![0.0; 3],
            advantages: vec![0.1, 0.2, 0.3],
        }
    }

    fn split(
        model: &dyn VisionLanguageModel,
        tokens: Option<usize>,
        share_prompt: bool,
    ) -> (Vec<usize>, Vec<Vec<CompletionId>>) {
        let group = group(model);
        let limits = Limits { completions: 8, tokens, share_prompt };
        let batches = GrpoMicroBatch::split(&[(4, &group)], 3, limits, Device::Cpu);
        let num_tokens = |batch: &GrpoMicroBatch<'_>| batch.pack(model).unwrap().num_tokens;
        let completion_ids = batches.iter().map(|batch| batch.completion_ids.clone()).collect();
        (batches.iter().map(num_tokens).collect(), completion_ids)
    }

    #[test]
    fn a_prompt_is_computed_as_often_as_is_asked_for() {
        let model = model();
        let all = vec![(4, 0), (4, 1), (4, 2)];
        // 4 tokens of prompt, 6 of completions.
        let shared = split(model.as_ref(), None, true);
        assert_eq!(shared, (vec![4 + 6], vec![all.clone()]));
        let unshared = split(model.as_ref(), None, false);
        assert_eq!(unshared, (vec![3 * 4 + 6], vec![all]));
        let cut = split(model.as_ref(), Some(9), true);
        let parts = vec![vec![(4, 0), (4, 1)], vec![(4, 2)]];
        assert_eq!(cut, (vec![4 + 5, 4 + 1], parts));
    }

    #[test]
    fn a_cut_micro_batch_is_as_if_made_so() {
        let model = model();
        let group = group(model.as_ref());
        let limits = |tokens| Limits { completions: 8, tokens, share_prompt: true };
        let split = |tokens| GrpoMicroBatch::split(&[(4, &group)], 3, limits(tokens), Device::Cpu);
        let mut whole = split(None).remove(0);
        let reference: Vec<f32> = (0..6).map(|i| -(i as f32)).collect();
        whole.ref_logprobs = Some(Tensor::from_slice(&reference));
        let cut = whole.cut(limits(Some(9)));
        let made = split(Some(9));
        assert_eq!((cut.len(), made.len()), (2, 2));
        for (cut, made) in cut.iter().zip(&made) {
            assert_eq!((&cut.completion_ids, &cut.lens), (&made.completion_ids, &made.lens));
            assert_eq!(cut.weights, made.weights);
            assert_eq!(cut.advantages, made.advantages);
            assert_eq!(cut.sampled_logprobs, made.sampled_logprobs);
            let tokens = |b: &GrpoMicroBatch<'_>| b.pack(model.as_ref()).unwrap().num_tokens;
            assert_eq!(tokens(cut), tokens(made));
        }
        assert_eq!(cut[1].token_records(2).unwrap()[0].1.ref_logprobs, Some(vec![-5.0]));
        let again = cut.into_iter().flat_map(|b| b.cut(limits(Some(9))));
        assert_eq!(again.count(), 2);
    }

    #[test]
    fn what_is_known_goes_to_its_completion() {
        let model = model();
        let group = group(model.as_ref());
        let limits = Limits { completions: 8, tokens: Some(9), share_prompt: true };
        let mut batches = GrpoMicroBatch::split(&[(4, &group)], 3, limits, Device::Cpu);
        batches[0].old_logprobs = Some(Tensor::from_slice(&[-1.0f32, -2.0, -3.0, -4.0, -5.0]));
        let records = batches[0].token_records(1).unwrap();
        assert_eq!(records[1].0, (4, 1));
        assert_eq!(records[1].1.old_logprobs, Some(vec![-3.0, -4.0, -5.0]));
        assert_eq!(records[1].1.ref_logprobs, None);
        let (place, rest) = &batches[1].token_records(2).unwrap()[0];
        assert_eq!((*place, rest.micro_batch), ((4, 2), Some(2)));
        assert_eq!(rest.old_logprobs, None);
    }
}
