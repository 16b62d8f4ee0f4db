//! The micro-batches of a step's updates: completions with all inputs of their loss, and the statistics of a pass.

use std::collections::BTreeMap;

use base::SourceLine;
use models::VisionLanguageModel;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor, no_grad};

use crate::TrainError;
use crate::algorithm::Algorithm;
use crate::algorithm::aggregation::{Aggregation, Totals, per_token};
use crate::algorithm::completions::Completions;
use crate::algorithm::kl::LogprobDifference;
use crate::algorithm::objective::{Objective, Tokens};
use crate::algorithm::token_choice::TokenChoice;
use crate::bad_step::TokenRecord;
use crate::batch::Pass;
use crate::completion_batch::{CompletionBatch, CompletionId, GroupPart};
use crate::micro_batches::{GroupLens, Limits};
use crate::out_of_memory::Divisible;
use crate::rollout::{Groups, ScoredGroup};
use crate::step_scores::{GroupScores, is_cut_off};

/// Log-probabilities of completions, each `[tokens]`.
pub(crate) type Logprobs = BTreeMap<CompletionId, Tensor>;

/// Log-probabilities that are known before the first update of a step.
#[derive(Default)]
pub(crate) struct KnownLogprobs {
    /// By the policy that sampled. Those that are missing are taken from the first pass.
    pub old: Logprobs,
    pub reference: Logprobs,
}

impl KnownLogprobs {
    /// The divergence of the old policy from the reference over a completion: the sum over its tokens; 0 for one that does not count.
    pub fn divergence(&self, id: CompletionId, estimator: LogprobDifference) -> f64 {
        let both = self.old.get(&id).zip(self.reference.get(&id));
        both.map_or(0.0, |(old, reference)| {
            estimator.of(old, reference).sum(Kind::Double).double_value(&[])
        })
    }
}

/// The completions of an update with all inputs of the loss, one value per completion token: all `[N]`, f32.
pub(crate) struct GrpoMicroBatch<'g> {
    batch: CompletionBatch<'g>,
    completions: Completions,
    advantages: Tensor,
    /// Weight of each token in the loss.
    weights: Tensor,
    /// Weight of each token in the metrics: the mean over completions of the mean over their tokens.
    metric_weights: Tensor,
    /// Weight of each token in the mean entropy that is rewarded.
    entropy_weights: Tensor,
    /// 1 where a token counts; without it, all do.
    chosen: Option<Tensor>,
    sampled_logprobs: Tensor,
    ref_logprobs: Option<Tensor>,
    /// Where they are not known, those of the first pass; `None` before it.
    old_logprobs: Option<Tensor>,
}

/// What the updates of a step are made of.
pub(crate) struct UpdateInputs<'u, 'g> {
    /// With their advantages.
    pub groups: &'g Groups,
    pub known: &'u KnownLogprobs,
    pub algorithm: &'u Algorithm,
    pub limits: Limits,
    pub device: Device,
}

/// The completions of each group that count.
pub(crate) fn counting_parts(choice: TokenChoice, groups: &[ScoredGroup]) -> Vec<GroupPart<'_>> {
    let parts = groups.iter().enumerate().map(|(index, scored)| {
        let completions = scored.group.completions.iter().enumerate();
        GroupPart {
            group: index,
            source: &scored.example.source,
            prompt: &scored.group.prompt,
            completions: completions.filter(|(_, c)| choice.counts(is_cut_off(c))).collect(),
        }
    });
    parts.filter(|part| !part.completions.is_empty()).collect()
}

/// This rank's micro-batches of each update, of `per_update` groups of all ranks. A group without a gradient is left out, but counts in the
/// denominators.
pub(crate) fn update_batches<'g>(
    inputs: &UpdateInputs<'_, 'g>,
    per_update: usize,
) -> Vec<Vec<GrpoMicroBatch<'g>>> {
    let (own, all) = (&inputs.groups.own, &inputs.groups.all);
    let algorithm = inputs.algorithm;
    let has_gradient = |part: &GroupPart<'_>| {
        let advantages = &all[own[part.group].index].advantages;
        advantages.iter().any(|advantage| algorithm.has_gradient(*advantage))
    };
    let parts = counting_parts(algorithm.choice, own);
    // A step whose rows were all skipped has an update too: of nothing.
    let count = all.len().div_ceil(per_update).max(1);
    let updates = (0..count).map(|update| {
        let first = update * per_update;
        let range = first..all.len().min(first + per_update);
        let totals = totals(algorithm.choice, &all[range.clone()]);
        let of_update = |part: &&GroupPart<'_>| range.contains(&own[part.group].index);
        let parts = parts.iter().filter(of_update).filter(|part| has_gradient(part));
        let parts: Vec<_> = parts.cloned().collect();
        GrpoMicroBatch::split(&parts, inputs, totals)
    });
    updates.collect()
}

/// What an update of these groups counts.
fn totals(choice: TokenChoice, groups: &[GroupScores]) -> Totals {
    let counting = groups.iter().flat_map(|group| {
        let lens = group.lens.iter().zip(&group.cut_off);
        lens.filter(|(_, is_cut_off)| choice.counts(**is_cut_off)).map(|(len, _)| *len)
    });
    let completions: usize = groups.iter().map(|group| group.lens.len()).sum();
    Totals { completions: completions as f64, tokens: counting.sum::<usize>() as f64 }
}

/// Lets only the tokens of the highest entropy in the update count; `entropies` are those of each of this rank's micro-batches, and `all`
/// those of all ranks.
pub(crate) fn choose_tokens(
    choice: TokenChoice,
    batches: &mut [GrpoMicroBatch<'_>],
    entropies: &[Tensor],
    all: Vec<f32>,
) {
    let threshold = choice.entropy_threshold(&all);
    let chosen = all.iter().filter(|entropy| f64::from(**entropy) >= threshold).count();
    for (batch, of) in batches.iter_mut().zip(entropies) {
        let mask = of.ge(threshold).to_kind(Kind::Float);
        batch.entropy_weights = &mask / chosen as f64;
        batch.chosen = Some(mask);
    }
}

impl<'g> GrpoMicroBatch<'g> {
    /// The micro-batches of an update over `parts`.
    pub fn split(
        parts: &[GroupPart<'g>],
        inputs: &UpdateInputs<'_, 'g>,
        totals: Totals,
    ) -> Vec<Self> {
        let batches = CompletionBatch::split(parts, inputs.limits);
        batches.into_iter().map(|batch| Self::new(batch, inputs, totals)).collect()
    }

    fn new(batch: CompletionBatch<'g>, inputs: &UpdateInputs<'_, 'g>, totals: Totals) -> Self {
        let (ids, lens) = (&batch.ids, &batch.lens);
        let vector = |values: &[f32]| torch::upload(values, inputs.device);
        let each = |value: &dyn Fn(usize) -> f64| vector(&per_token(lens, value));
        let weights =
            |aggregation: Aggregation| each(&|index| aggregation.weight(lens[index], totals));
        let known = |logprobs: &Logprobs| {
            let found: Option<Vec<&Tensor>> = ids.iter().map(|id| logprobs.get(id)).collect();
            found.map(|found| Tensor::cat(&found, 0))
        };
        let group = |id: &CompletionId| &inputs.groups.own[id.0].group;
        let sampled = ids.iter().flat_map(|id| &group(id).completions[id.1].sampled_logprobs);
        GrpoMicroBatch {
            completions: Completions::new(lens, inputs.device),
            advantages: each(&|index| group(&ids[index]).advantages[ids[index].1]),
            weights: weights(inputs.algorithm.objective.aggregation),
            metric_weights: weights(Aggregation::MeanOfMeans),
            entropy_weights: weights(Aggregation::TokenMean),
            chosen: None,
            sampled_logprobs: vector(&sampled.copied().collect::<Vec<f32>>()),
            ref_logprobs: known(&inputs.known.reference),
            old_logprobs: known(&inputs.known.old),
            batch,
        }
    }

    /// The same completions in micro-batches within `limits`, with all that is known of their tokens.
    pub fn cut(self, limits: Limits) -> Vec<Self> {
        let parts = self.batch.parts(limits);
        if parts.len() == 1 {
            return vec![self];
        }
        let mut token = 0;
        let part = |batch: CompletionBatch<'g>| {
            let tokens = batch.lens.iter().sum::<usize>() as i64;
            // A copy, so that the original is freed.
            let of = |all: &Tensor| all.narrow(0, token, tokens).copy();
            let part = GrpoMicroBatch {
                completions: Completions::new(&batch.lens, self.weights.device()),
                advantages: of(&self.advantages),
                weights: of(&self.weights),
                metric_weights: of(&self.metric_weights),
                entropy_weights: of(&self.entropy_weights),
                chosen: self.chosen.as_ref().map(of),
                sampled_logprobs: of(&self.sampled_logprobs),
                ref_logprobs: self.ref_logprobs.as_ref().map(of),
                old_logprobs: self.old_logprobs.as_ref().map(of),
                batch,
            };
            token += tokens;
            part
        };
        parts.into_iter().map(part).collect()
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
        let mut records = Vec::with_capacity(self.batch.ids.len());
        for (&id, len) in self.batch.ids.iter().zip(&self.batch.lens) {
            let cut = |all: &Option<Vec<f32>>| Some(all.as_ref()?[start..start + len].to_vec());
            let each = TokenRecord {
                micro_batch: Some(index),
                old_logprobs: cut(&old),
                ref_logprobs: cut(&reference),
            };
            records.push((id, each));
            start += len;
        }
        Ok(records)
    }

    /// Entropies of its tokens by the policy as it is.
    pub fn entropies(
        &self,
        model: &dyn VisionLanguageModel,
        temperature: f64,
    ) -> Result<Tensor, TrainError> {
        Ok(self.batch.scores(model, temperature)?.entropies)
    }

    /// Adds this batch's part of the loss to the gradients.
    /// Its log-probabilities are kept only if the pass succeeds.
    pub fn backward(
        &mut self,
        model: &dyn VisionLanguageModel,
        temperature: f64,
        objective: &Objective,
        recompute: bool,
    ) -> Result<PolicyStats, TrainError> {
        let micro = self.batch.pack(model)?;
        let entropy_gradient = objective.entropy_coef > 0.0;
        let pass = Pass { temperature, recompute, entropy_gradient };
        let (old, stats) = micro.backward(model, pass, |scores| {
            let current = &scores.logprobs;
            let stored = self.old_logprobs.as_ref().map(Tensor::shallow_clone);
            let old = stored.unwrap_or_else(|| current.detach());
            let loss = objective.loss(&Tokens {
                logprobs: current,
                entropies: &scores.entropies,
                old_logprobs: &old,
                sampled_logprobs: &self.sampled_logprobs,
                ref_logprobs: self.ref_logprobs.as_ref(),
                advantages: &self.advantages,
                weights: &self.weights,
                entropy_weights: &self.entropy_weights,
                chosen: self.chosen.as_ref(),
                completions: &self.completions,
            });
            let stats = no_grad(|| {
                let total = loss.total.detach();
                let mean = |values: &Tensor| (values * &self.metric_weights).sum(Kind::Float);
                let optional = |values: Option<Tensor>| {
                    values.map_or_else(|| total.zeros_like(), |values| mean(&values))
                };
                let difference = current.detach() - &self.sampled_logprobs;
                let clipped = loss.clipped.as_ref();
                Tensor::stack(
                    &[
                        total.shallow_clone(),
                        optional(loss.kl),
                        optional(clipped.map(|clipped| &clipped.low + &clipped.high)),
                        optional(clipped.map(|clipped| clipped.low.shallow_clone())),
                        mean(&scores.entropies.detach()),
                        mean(&(difference.exp() - &difference - 1.0)),
                        difference.abs().max(),
                        optional(loss.sampler_weights),
                    ],
                    0,
                )
            });
            (loss.total, (old, stats))
        });
        self.old_logprobs = Some(old);
        let numbers = Vec::<f32>::try_from(stats.to_device(Device::Cpu))?;
        Ok(PolicyStats {
            loss: f64::from(numbers[0]),
            kl: f64::from(numbers[1]),
            clip_ratio: f64::from(numbers[2]),
            clip_ratio_low: f64::from(numbers[3]),
            entropy: f64::from(numbers[4]),
            sampled_vs_trained_kl: f64::from(numbers[5]),
            sampled_vs_trained_max: f64::from(numbers[6]),
            sampler_weight: f64::from(numbers[7]),
            ..PolicyStats::default()
        })
    }
}

impl Divisible for GrpoMicroBatch<'_> {
    fn group_lens(&self) -> Vec<GroupLens> {
        self.batch.group_lens()
    }

    fn source(&self) -> Option<&SourceLine> {
        self.batch.source()
    }

    fn divide(batches: Vec<Self>, limits: Limits) -> Vec<Self> {
        batches.into_iter().flat_map(|batch| batch.cut(limits)).collect()
    }
}

/// Sums over the micro-batches and updates of a step; each already weighted by its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PolicyStats {
    pub loss: f64,
    kl: f64,
    clip_ratio: f64,
    clip_ratio_low: f64,
    entropy: f64,
    sampler_weight: f64,
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
        self.clip_ratio_low += other.clip_ratio_low;
        self.entropy += other.entropy;
        self.sampler_weight += other.sampler_weight;
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

    /// Writes means over the step's updates.
    pub fn write(&self, metrics: &mut Map<String, Value>, objective: &Objective) {
        let mean = |sum: f64| json!(sum / self.updates as f64);
        metrics.insert("kl".into(), mean(self.kl));
        metrics.insert("clip_ratio".into(), mean(self.clip_ratio));
        metrics.insert("clip_ratio_low".into(), mean(self.clip_ratio_low));
        metrics.insert("clip_ratio_high".into(), mean(self.clip_ratio - self.clip_ratio_low));
        metrics.insert("entropy".into(), mean(self.entropy));
        metrics.insert("loss".into(), mean(self.loss));
        metrics.insert("grad_norm".into(), mean(self.grad_norm));
        metrics.insert("learning_rate".into(), json!(self.learning_rate));
        metrics.insert("sampled_vs_trained_kl".into(), json!(self.sampled_vs_trained_kl));
        metrics.insert("sampled_vs_trained_max".into(), json!(self.sampled_vs_trained_max));
        if objective.sampler.is_some() {
            metrics.insert("sampler_weight".into(), mean(self.sampler_weight));
        }
    }
}

#[cfg(test)]
#[path = "step_batch_tests.rs"]
mod tests;
