//! The loss of a token, without divergence and entropy. One file each.

mod cispo;
mod clipped;
mod gmpo;
mod sapo;
mod vespo;

pub use cispo::Cispo;
pub use clipped::Clipped;
pub use gmpo::Gmpo;
pub use sapo::Sapo;
pub use vespo::Vespo;

use tch::Tensor;

use super::completions::Completions;

/// What the loss of a token is made of. All `[N]`, f32, a token each.
#[derive(Debug)]
pub struct Terms<'a> {
    /// Of the policy, with gradient.
    pub logprobs: &'a Tensor,
    /// Ratio of the policy to the old one, of the token or of its completion, with gradient.
    pub ratio: &'a Tensor,
    /// `log policy - log old policy` of the token itself, with gradient.
    pub difference: &'a Tensor,
    /// The completion's advantage.
    pub advantages: &'a Tensor,
    /// Which tokens are one completion.
    pub completions: &'a Completions,
    /// Weights of the sampler's correction, where there is one.
    pub sampler_weights: Option<&'a Tensor>,
}

/// Tokens whose ratio is beyond its bounds where that stops their gradient: `[N]` of zeros and ones.
#[derive(Debug)]
pub struct ClippedTokens {
    /// Below the lower bound, the advantage being negative.
    pub low: Tensor,
    /// Above the upper bound, the advantage being positive.
    pub high: Tensor,
}

/// The loss of a token.
pub trait Surrogate: std::fmt::Debug {
    /// `[N]`, to be minimised.
    fn loss(&self, terms: &Terms<'_>) -> Tensor;

    /// The tokens whose gradient a bound stopped, where the loss has bounds.
    fn clipped(&self, terms: &Terms<'_>) -> Option<ClippedTokens>;

    /// Whether the loss has the weights of the sampler's correction in it already.
    fn weighs_by_sampler(&self) -> bool {
        false
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Loss and gradient with respect to the log-probabilities, of completions of one token each with these ratios.
    pub fn by_hand(
        surrogate: &dyn Surrogate,
        ratios: &[f32],
        advantages: &[f32],
    ) -> (Vec<f64>, Vec<f64>) {
        let old = torch::on_test_device(&vec![-2.0f32; ratios.len()]);
        let logprobs = (torch::on_test_device(ratios).log() + &old).set_requires_grad(true);
        let difference = &logprobs - &old;
        let completions = Completions::new(&vec![1; ratios.len()], torch::device_of_tests());
        let advantages = torch::on_test_device(advantages);
        let loss = surrogate.loss(&Terms {
            logprobs: &logprobs,
            ratio: &difference.exp(),
            difference: &difference,
            advantages: &advantages,
            completions: &completions,
            sampler_weights: None,
        });
        loss.sum(tch::Kind::Float).backward();
        let list = |tensor: &Tensor| Vec::try_from(tensor.to_kind(tch::Kind::Double)).unwrap();
        (list(&loss.detach()), list(&logprobs.grad()))
    }

    pub fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-5 * e.abs().max(1.0), "{got:?} is not {expected:?}");
        }
    }
}
