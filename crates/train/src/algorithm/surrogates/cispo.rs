//! CISPO, MiniMax-M1 (arXiv 2506.13585).

use tch::{Kind, Tensor};

use super::{ClippedTokens, Surrogate, Terms};

/// `-min(ratio, high) * A * log p`, the ratio without gradient: every token keeps one.
#[derive(Clone, Copy, Debug)]
pub struct Cispo {
    /// The upper bound of the ratio itself, `epsilon_high` (TRL proposes 5).
    pub high: f64,
}

impl Surrogate for Cispo {
    fn loss(&self, terms: &Terms<'_>) -> Tensor {
        let weights = terms.ratio.detach().clamp_max(self.high);
        -(weights * terms.advantages * terms.logprobs)
    }

    fn clipped(&self, terms: &Terms<'_>) -> Option<ClippedTokens> {
        let high = terms.ratio.gt(self.high).logical_and(&terms.advantages.gt(0.0));
        Some(ClippedTokens { low: terms.ratio.zeros_like(), high: high.to_kind(Kind::Float) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by_hand, close};
    use super::*;

    #[test]
    fn by_hand_every_token_has_a_gradient() {
        let (loss, gradient) = by_hand(&Cispo { high: 1.2 }, &[1.0, 2.0, 0.5], &[1.0, 1.0, -2.0]);
        let logprobs = [-2.0, 2.0f64.ln() - 2.0, 0.5f64.ln() - 2.0];
        close(&loss, &[-logprobs[0], -1.2 * logprobs[1], logprobs[2]]);
        close(&gradient, &[-1.0, -1.2, 1.0]);
    }
}
