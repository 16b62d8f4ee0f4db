//! The loss of a micro-batch, from the log-probabilities of its tokens. Pure functions.

use config::RatioLevel;
use tch::{Kind, Tensor, no_grad};

use super::aggregation::Aggregation;
use super::completions::Completions;
use super::kl::KlTerm;
use super::ratio::log_ratio;
use super::sampler_correction::Correction;
use super::surrogates::{ClippedTokens, Surrogate, Terms};

/// What is minimised.
#[derive(Debug)]
pub struct Objective {
    /// What a ratio is of.
    pub level: RatioLevel,
    /// The loss of a token.
    pub surrogate: Box<dyn Surrogate>,
    /// The weight of a token.
    pub aggregation: Aggregation,
    /// The divergence from the reference, where it is in the loss.
    pub kl: Option<KlTerm>,
    /// The weight of the tokens' mean entropy, which the loss rewards.
    pub entropy_coef: f64,
    /// Completions with a negative advantage count only where the mean of `log old - log policy` is at most this (DeepSeek-V3.2).
    pub off_policy_threshold: Option<f64>,
    /// What is done about the sampler's own log-probabilities.
    pub sampler: Option<Correction>,
}

/// Inputs of the loss. All `[N]`, f32, a token each.
#[derive(Debug)]
pub struct Tokens<'a> {
    /// Of the policy, with gradient.
    pub logprobs: &'a Tensor,
    /// Entropies of its distributions; with gradient where [`Objective::entropy_coef`] is above 0.
    pub entropies: &'a Tensor,
    /// Of the policy before the first update on these tokens.
    pub old_logprobs: &'a Tensor,
    /// Of the policy as the sampler computed it.
    pub sampled_logprobs: &'a Tensor,
    /// Of the reference; read where there is a divergence in the loss.
    pub ref_logprobs: Option<&'a Tensor>,
    /// The completion's advantage.
    pub advantages: &'a Tensor,
    /// The token's weight, [`Aggregation::weight`].
    pub weights: &'a Tensor,
    /// The token's weight in the mean entropy that is rewarded; read where there is one.
    pub entropy_weights: &'a Tensor,
    /// 1 where the token counts, 0 where not; without it, all do.
    pub chosen: Option<&'a Tensor>,
    /// Which tokens are one completion.
    pub completions: &'a Completions,
}

/// A loss and what it was made of.
#[derive(Debug)]
pub struct Loss {
    /// What is minimised, a scalar with gradient.
    pub total: Tensor,
    /// `[N]`: the divergence.
    pub kl: Option<Tensor>,
    /// `[N]`: tokens without a gradient.
    pub clipped: Option<ClippedTokens>,
    /// `[N]`: weights of the sampler's correction.
    pub sampler_weights: Option<Tensor>,
}

impl Objective {
    /// The part of an update's loss that these tokens have.
    ///
    /// The choice of tokens, the off-policy bound and the sampler's weights are about the policy term alone: divergence and denominators
    /// count all tokens.
    ///
    /// # Panics
    /// Where there is a divergence and no reference.
    pub fn loss(&self, tokens: &Tokens<'_>) -> Loss {
        let difference = tokens.logprobs - tokens.old_logprobs;
        let ratio = log_ratio(self.level, &difference, tokens.completions).exp();
        let sampler_weights = self.sampler.as_ref().map(|correction| {
            let (old, sampled) = (tokens.old_logprobs, tokens.sampled_logprobs);
            correction.weights(old, sampled, tokens.completions)
        });
        let terms = Terms {
            logprobs: tokens.logprobs,
            ratio: &ratio,
            difference: &difference,
            advantages: tokens.advantages,
            completions: tokens.completions,
            sampler_weights: sampler_weights.as_ref(),
        };
        let mut loss = self.surrogate.loss(&terms);
        if let Some(on_policy) = self.on_policy(tokens) {
            loss *= on_policy;
        }
        if let Some(chosen) = tokens.chosen {
            loss *= chosen;
        }
        if let Some(weights) =
            sampler_weights.as_ref().filter(|_| !self.surrogate.weighs_by_sampler())
        {
            loss *= weights;
        }
        let kl = self.kl.map(|term| {
            let reference = tokens.ref_logprobs.expect("a reference");
            let kl = term.estimator.of(tokens.logprobs, reference);
            let kl = if term.bias_correction { kl * &ratio } else { kl };
            loss += &kl * term.beta;
            kl.detach()
        });
        let mut total = (loss * tokens.weights).sum(Kind::Float);
        if self.entropy_coef > 0.0 {
            total -=
                (tokens.entropies * tokens.entropy_weights).sum(Kind::Float) * self.entropy_coef;
        }
        let clipped = no_grad(|| self.surrogate.clipped(&terms));
        Loss { total, kl, clipped, sampler_weights }
    }

    /// `[N]`: 0 for the tokens of a completion with a negative advantage that the policy has moved too far from.
    fn on_policy(&self, tokens: &Tokens<'_>) -> Option<Tensor> {
        let threshold = self.off_policy_threshold?;
        let sampled = match self.sampler {
            Some(_) => tokens.sampled_logprobs,
            None => tokens.old_logprobs,
        };
        let moved = tokens.completions.mean(&(sampled - tokens.logprobs.detach()));
        let is_near = tokens.completions.spread(&moved).le(threshold);
        Some(is_near.logical_or(&tokens.advantages.ge(0.0)).to_kind(Kind::Float))
    }
}
