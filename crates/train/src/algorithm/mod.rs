//! What an algorithm is: how rewards become [advantages](advantage), what the [loss](objective) of a token is, and which groups and tokens
//! count. A value, read from the settings once; the training loop knows nothing of its variants.
//!
//! A new loss is a file in `surrogates`, its name in `config::LossType`, and its line in [`loss_of`].

pub mod advantage;
pub mod aggregation;
pub mod completions;
pub mod kl;
pub mod objective;
pub mod ratio;
pub mod sampler_correction;
pub mod surrogates;
pub mod token_choice;

use config::{GrpoConfig, LossType, SamplerCorrection};

use advantage::AdvantageRule;
use aggregation::Aggregation;
use kl::{KlTerm, LogprobDifference};
use objective::Objective;
use sampler_correction::Correction;
use surrogates::{Cispo, Clipped, Gmpo, Sapo, Surrogate, Vespo};
use token_choice::TokenChoice;

/// An algorithm of policy optimisation.
#[derive(Debug)]
pub struct Algorithm {
    /// Rewards to advantages.
    pub advantages: AdvantageRule,
    /// Log-probabilities and advantages to a loss.
    pub objective: Objective,
    /// Which completions and tokens count.
    pub choice: TokenChoice,
    /// Whether there is a divergence from a reference model, in the loss or in the reward.
    pub needs_reference: bool,
    /// Whether log-probabilities of the old policy must be known before the first update; else its own pass gives them.
    pub needs_old_logprobs: bool,
    /// How often a step draws further prompts for groups whose rewards are all equal.
    pub resamples: usize,
    /// See [`Algorithm::first_loss_is_zero`].
    first_loss_is_zero: bool,
}

impl Algorithm {
    /// That of `config`, with the weight of each reward.
    pub fn new(config: &GrpoConfig, reward_weights: Vec<f64>) -> Self {
        let section = &config.algorithm;
        let (surrogate, aggregation) = loss_of(config);
        let in_reward = section.has_kl_in_reward();
        let has_kl = section.beta > 0.0;
        let kl = |default| KlTerm {
            beta: section.beta,
            estimator: LogprobDifference(section.kl_estimator.unwrap_or(default)),
            bias_correction: section.use_bias_correction_kl,
        };
        Algorithm {
            advantages: AdvantageRule {
                estimator: section.advantage_estimator,
                scale: section.scale(),
                aggregation: section.multi_objective_aggregation,
                reward_weights,
                kl: (has_kl && in_reward).then(|| kl(config::KlEstimator::K1)),
            },
            objective: Objective {
                level: section.importance_sampling_level,
                surrogate,
                aggregation,
                kl: (has_kl && !in_reward).then(|| kl(config::KlEstimator::K3)),
                entropy_coef: section.entropy_coef,
                off_policy_threshold: section.off_policy_mask_threshold,
                sampler: Correction::of(section),
            },
            choice: TokenChoice {
                masks_truncated: section.mask_truncated_completions,
                top_entropy_quantile: section.top_entropy_quantile,
            },
            needs_reference: has_kl,
            needs_old_logprobs: in_reward || updates_per_rollout(config) > 1,
            resamples: if section.dynamic_sample { section.max_resample_times } else { 0 },
            first_loss_is_zero: !has_kl
                && section.loss_type == LossType::Grpo
                && section.entropy_coef == 0.0
                && section.top_entropy_quantile == 1.0
                && section.sampler_correction == SamplerCorrection::None
                && !section.mask_truncated_completions,
        }
    }

    /// Whether the loss of the first update is 0 by construction: a mean of advantages that sum to 0 in each group.
    pub fn first_loss_is_zero(&self) -> bool {
        self.first_loss_is_zero
    }

    /// Whether a completion of this advantage has a gradient of its own.
    pub fn has_gradient(&self, advantage: f64) -> bool {
        advantage != 0.0
            || self.objective.kl.is_some()
            || self.objective.entropy_coef > 0.0
            || self.choice.needs_entropies()
    }
}

/// Updates, each by its own part of a rollout's completions.
pub fn updates_per_rollout(config: &GrpoConfig) -> usize {
    let accumulation = config.optimizer.gradient_accumulation_steps;
    let rollout = config.algorithm.steps_per_generation.unwrap_or(accumulation);
    (rollout / accumulation).max(1)
}

/// The table of losses: what a token's loss is, and what its weight.
fn loss_of(config: &GrpoConfig) -> (Box<dyn Surrogate>, Aggregation) {
    let section = &config.algorithm;
    let high = section.epsilon_high.unwrap_or(section.epsilon);
    let clipped = || Box::new(Clipped { low: section.epsilon, high, delta: section.delta });
    match section.loss_type {
        LossType::Grpo => (clipped(), Aggregation::MeanOfMeans),
        LossType::Bnpo | LossType::Dapo => (clipped(), Aggregation::TokenMean),
        LossType::DrGrpo => {
            (clipped(), Aggregation::FixedLength(config.sampling.max_completion_length))
        }
        LossType::Luspo => (clipped(), Aggregation::MeanOfSums),
        LossType::Cispo => (Box::new(Cispo { high }), Aggregation::TokenMean),
        LossType::Gmpo => (Box::new(Gmpo { low: section.epsilon, high }), Aggregation::MeanOfMeans),
        LossType::Sapo => (
            Box::new(Sapo {
                negative: section.sapo_temperature_neg,
                positive: section.sapo_temperature_pos,
            }),
            Aggregation::MeanOfMeans,
        ),
        LossType::Vespo => (
            Box::new(Vespo {
                positive: (section.vespo_k_pos, section.vespo_lambda_pos),
                negative: (section.vespo_k_neg, section.vespo_lambda_neg),
            }),
            Aggregation::TokenMean,
        ),
    }
}
