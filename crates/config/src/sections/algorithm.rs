//! Group relative policy optimisation and its variants.

use crate::ranges::{NOT_NEGATIVE, POSITIVE, demand};
use crate::{
    AdvantageEstimator, ConfigError, KlEstimator, LossType, MultiObjectiveAggregation, RatioLevel,
    SamplerCorrection, ScaleRewards, section,
};

section! {
    /// The algorithm: groups, advantages, loss.
    pub struct AlgorithmSection {
        "policy optimisation" {
            /// Completions of one prompt: the size of a group.
            num_generations: usize = 8,
            /// Optimiser steps on one batch of completions.
            num_iterations: usize = 1,
            /// Micro-batches that one rollout samples the completions of; without it,
            /// `gradient_accumulation_steps`: one update a rollout. A step is a rollout and its updates.
            steps_per_generation: Option<usize> = None,
            /// The loss, by the name that TRL has for it.
            loss_type: LossType = LossType::Grpo,
            /// Ratios to the old policy: of each `token`, or of a completion, the `sequence` (GSPO).
            importance_sampling_level: RatioLevel = RatioLevel::Token,
            /// How far the ratio to the old policy may fall before it is clipped.
            epsilon: f64 = 0.2,
            /// How far it may rise; without it, `epsilon`. The loss `cispo` holds the ratio itself below it.
            epsilon_high: Option<f64> = None,
            /// Most that the ratio counts where the advantage is negative (two-sided clipping); without it, no bound.
            delta: Option<f64> = None,
            /// How rewards become advantages.
            advantage_estimator: AdvantageEstimator = AdvantageEstimator::Grpo,
            /// Divide advantages by the deviation of rewards in the `group` (also `true`), in the `batch`, or not: `none`
            /// (also `false`); `auto` is `group`, for `rloo` `none`, for `reinforce_plus_plus` `batch`.
            scale_rewards: ScaleRewards = ScaleRewards::Auto,
            /// Sum the rewards and normalise the sum in its group, or normalise each reward in its group, then their
            /// sum over the batch (GDPO).
            multi_objective_aggregation: MultiObjectiveAggregation = MultiObjectiveAggregation::SumThenNormalize,
            /// Weight of the divergence from the reference model; 0 needs none.
            beta: f64 = 0.04,
            /// How the divergence is estimated; without it, `k3`, in the reward `k1`.
            kl_estimator: Option<KlEstimator> = None,
            /// Take the divergence off the reward instead of adding it to the loss; without it, for `rloo` and
            /// `reinforce_plus_plus`.
            kl_in_reward: Option<bool> = None,
            /// Multiply the divergence by the ratio to the old policy (TRL does by default).
            use_bias_correction_kl: bool = false,
            /// Weight of the tokens' entropy, which the loss then rewards.
            entropy_coef: f64 = 0.0,
            /// Share of the tokens that count, those of the highest entropy in the update's batch.
            top_entropy_quantile: f64 = 1.0,
            /// Leave completions that were cut off out of the loss.
            mask_truncated_completions: bool = false,
            /// Leave completions with a negative advantage out where the policy has moved further from the one that
            /// sampled them, nats a token; without it, none.
            off_policy_mask_threshold: Option<f64> = None,
            /// Weigh tokens or completions by the ratio of the policy to its sampler, cut off or left out beyond the bounds.
            sampler_correction: SamplerCorrection = SamplerCorrection::None,
            /// Upper bound of that ratio.
            sampler_correction_max: Option<f64> = Some(3.0),
            /// Lower bound of that ratio.
            sampler_correction_min: Option<f64> = None,
            /// Replace groups whose rewards are all equal by those of further prompts (DAPO).
            dynamic_sample: bool = false,
            /// Draws of further prompts in a step.
            max_resample_times: usize = 3,
            /// Move the reference model towards the policy during the run.
            sync_ref_model: bool = false,
            /// Part of the policy in the reference model that is moved.
            ref_model_mixup_alpha: f64 = 0.6,
            /// Updates between two moves.
            ref_model_sync_steps: usize = 512,
            /// Slope of the loss `sapo` where the advantage is negative.
            sapo_temperature_neg: f64 = 1.05,
            /// The same where it is positive.
            sapo_temperature_pos: f64 = 1.0,
            /// Power of the ratio in the weights of the loss `vespo`, for positive advantages.
            vespo_k_pos: f64 = 2.0,
            /// How fast these weights decay.
            vespo_lambda_pos: f64 = 3.0,
            /// The power for negative advantages.
            vespo_k_neg: f64 = 3.0,
            /// Their decay.
            vespo_lambda_neg: f64 = 2.0,
        }
    }
}

impl AlgorithmSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let group = self.num_generations;
        demand(group > 1, "num_generations", group, "at least 2")?;
        demand(self.num_iterations > 0, "num_iterations", 0, POSITIVE)?;
        let not_negative = |key, value: f64| demand(value >= 0.0, key, value, NOT_NEGATIVE);
        not_negative("epsilon", self.epsilon)?;
        not_negative("epsilon_high", self.epsilon_high.unwrap_or_default())?;
        not_negative("beta", self.beta)?;
        not_negative("entropy_coef", self.entropy_coef)?;
        not_negative("off_policy_mask_threshold", self.off_policy_mask_threshold.unwrap_or(0.0))?;
        let above_0 = |key, value: f64| demand(value > 0.0, key, value, "above 0");
        above_0("delta", self.delta.unwrap_or(1.0))?;
        above_0("sapo_temperature_neg", self.sapo_temperature_neg)?;
        above_0("sapo_temperature_pos", self.sapo_temperature_pos)?;
        let part = |key, value: f64| demand((0.0..=1.0).contains(&value), key, value, "0 to 1");
        part("top_entropy_quantile", self.top_entropy_quantile)?;
        part("ref_model_mixup_alpha", self.ref_model_mixup_alpha)?;
        demand(self.ref_model_sync_steps > 0, "ref_model_sync_steps", 0, POSITIVE)?;
        demand(self.steps_per_generation != Some(0), "steps_per_generation", 0, POSITIVE)?;
        self.validate_together()
    }

    /// Settings that contradict one another.
    fn validate_together(&self) -> Result<(), ConfigError> {
        let clips = self.loss_type.clips();
        demand(
            self.delta.is_none() || clips,
            "delta",
            self.delta.unwrap_or_default(),
            "`none` with a `loss_type` that does not clip the ratio from both sides",
        )?;
        demand(
            !self.sync_ref_model || self.beta > 0.0,
            "sync_ref_model",
            true,
            "`false` with `beta` 0: there is no reference model",
        )?;
        demand(
            self.kl_in_reward != Some(true) || self.beta > 0.0,
            "kl_in_reward",
            true,
            "`false` with `beta` 0: there is no divergence",
        )?;
        demand(
            !(self.use_bias_correction_kl && self.has_kl_in_reward()),
            "use_bias_correction_kl",
            true,
            "`false` where the divergence is in the reward (`kl_in_reward`)",
        )?;
        if self.multi_objective_aggregation == MultiObjectiveAggregation::NormalizeThenSum {
            let is_alone = self.scale_rewards == ScaleRewards::Auto
                && self.advantage_estimator == AdvantageEstimator::Grpo
                && !self.has_kl_in_reward();
            demand(
                is_alone,
                "multi_objective_aggregation",
                "normalize_then_sum",
                "`sum_then_normalize` beside `scale_rewards`, another `advantage_estimator` or `kl_in_reward`: it has its \
                 own normalisation",
            )?;
        }
        self.validate_sampler_correction()
    }

    fn validate_sampler_correction(&self) -> Result<(), ConfigError> {
        use SamplerCorrection::{SequenceMask, SequenceTruncate};
        let kind = self.sampler_correction;
        let (least, most) = (self.sampler_correction_min, self.sampler_correction_max);
        if kind == SamplerCorrection::None {
            return Ok(());
        }
        let is_of_sequence = matches!(kind, SequenceMask | SequenceTruncate);
        demand(
            !(self.loss_type == LossType::Vespo && is_of_sequence),
            "sampler_correction",
            kind.word(),
            "`token_truncate` or `token_mask` with the loss `vespo`, which weighs completions itself",
        )?;
        let has_bound = least.is_some() || most.is_some();
        demand(
            has_bound,
            "sampler_correction",
            kind.word(),
            "a bound: `sampler_correction_max` or `sampler_correction_min`",
        )?;
        let (least, most) = (least.unwrap_or(0.0), most.unwrap_or(f64::INFINITY));
        demand(least >= 0.0, "sampler_correction_min", least, NOT_NEGATIVE)?;
        demand(least < most, "sampler_correction_min", least, "less than `sampler_correction_max`")
    }

    /// Whether the divergence is taken off the reward.
    pub fn has_kl_in_reward(&self) -> bool {
        let by_default = self.advantage_estimator != AdvantageEstimator::Grpo;
        self.beta > 0.0 && self.kl_in_reward.unwrap_or(by_default)
    }

    /// What advantages are divided by, not [`ScaleRewards::Auto`].
    pub fn scale(&self) -> ScaleRewards {
        match (self.scale_rewards, self.advantage_estimator) {
            (ScaleRewards::Auto, AdvantageEstimator::Grpo) => ScaleRewards::Group,
            (ScaleRewards::Auto, AdvantageEstimator::Rloo) => ScaleRewards::None,
            (ScaleRewards::Auto, AdvantageEstimator::ReinforcePlusPlus) => ScaleRewards::Batch,
            (scale, _) => scale,
        }
    }

    /// Fields that have no effect beside the values of others, and why.
    pub(crate) fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        let sapo = self.loss_type == LossType::Sapo;
        let vespo = self.loss_type == LossType::Vespo;
        let gmpo = self.loss_type == LossType::Gmpo;
        let clips = self.loss_type.clips();
        let corrects = self.sampler_correction != SamplerCorrection::None;
        let groups: [(bool, &'static str, &[&'static str]); 9] = [
            (
                sapo,
                "it belongs to the loss `sapo`",
                &["sapo_temperature_neg", "sapo_temperature_pos"],
            ),
            (
                vespo,
                "it belongs to the loss `vespo`",
                &["vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"],
            ),
            (
                !(vespo || gmpo) || self.use_bias_correction_kl,
                "this loss weighs whole completions itself",
                &["importance_sampling_level"],
            ),
            (clips || gmpo, "this loss has no lower bound of the ratio", &["epsilon"]),
            (
                clips || gmpo || self.loss_type == LossType::Cispo,
                "this loss does not clip the ratio",
                &["epsilon_high"],
            ),
            (
                self.beta > 0.0,
                "there is no divergence with `--beta 0`",
                &["kl_estimator", "use_bias_correction_kl"],
            ),
            (
                self.dynamic_sample,
                "it counts with `--dynamic_sample true`",
                &["max_resample_times"],
            ),
            (
                self.sync_ref_model,
                "it counts with `--sync_ref_model true`",
                &["ref_model_mixup_alpha", "ref_model_sync_steps"],
            ),
            (
                corrects,
                "it counts with `--sampler_correction`",
                &["sampler_correction_max", "sampler_correction_min"],
            ),
        ];
        let inactive = groups.into_iter().filter(|(is_active, ..)| !is_active);
        inactive.flat_map(|(_, why, names)| names.iter().map(move |name| (*name, why))).collect()
    }
}
