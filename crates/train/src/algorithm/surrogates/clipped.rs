//! PPO's clipped ratio (arXiv 1707.06347), as GRPO, DAPO, Dr. GRPO and GSPO have it.

use tch::{Kind, Tensor};

use super::{ClippedTokens, Surrogate, Terms};

/// `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)`.
#[derive(Clone, Copy, Debug)]
pub struct Clipped {
    /// The ratio is held above `1 - low`.
    pub low: f64,
    /// The ratio is held below `1 + high`.
    pub high: f64,
    /// Where the advantage is negative, the ratio counts at most this (two-sided clipping, arXiv 2505.07291).
    pub delta: Option<f64>,
}

impl Clipped {
    fn ratio(&self, terms: &Terms<'_>) -> Tensor {
        match self.delta {
            Some(delta) => terms.ratio.clamp_max(delta),
            None => terms.ratio.shallow_clone(),
        }
    }
}

impl Surrogate for Clipped {
    fn loss(&self, terms: &Terms<'_>) -> Tensor {
        let clipped = terms.ratio.clamp(1.0 - self.low, 1.0 + self.high);
        -(self.ratio(terms) * terms.advantages).minimum(&(clipped * terms.advantages))
    }

    fn clipped(&self, terms: &Terms<'_>) -> Option<ClippedTokens> {
        let ratio = self.ratio(terms);
        let low = ratio.lt(1.0 - self.low).logical_and(&terms.advantages.lt(0.0));
        let high = ratio.gt(1.0 + self.high).logical_and(&terms.advantages.gt(0.0));
        let numbers = |mask: Tensor| mask.to_kind(Kind::Float);
        Some(ClippedTokens { low: numbers(low), high: numbers(high) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by_hand, close};
    use super::*;

    #[test]
    fn by_hand_with_and_without_a_second_side() {
        let ratios = [1.0f32, 1.5, 1.5, 0.5, 0.5, 1.25];
        let advantages = [2.0f32, 2.0, -2.0, 2.0, -2.0, 1.0];
        let clipped = |delta| Clipped { low: 0.2, high: 0.3, delta };
        let (loss, gradient) = by_hand(&clipped(None), &ratios, &advantages);
        close(&loss, &[-2.0, -2.6, 3.0, -1.0, 1.6, -1.25]);
        // d ratio / d logprob is the ratio; nothing beyond the bounds.
        close(&gradient, &[-2.0, 0.0, 3.0, -1.0, 0.0, -1.25]);
        let (loss, gradient) = by_hand(&clipped(Some(1.4)), &ratios, &advantages);
        close(&loss, &[-2.0, -2.6, 2.8, -1.0, 1.6, -1.25]);
        close(&gradient, &[-2.0, 0.0, 0.0, -1.0, 0.0, -1.25]);
    }
}
