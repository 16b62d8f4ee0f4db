//! VESPO, variational sequence-level soft policy optimisation (arXiv 2602.10693).

use tch::{Kind, Tensor, no_grad};

use super::{ClippedTokens, Surrogate, Terms};

/// Bounds of the logarithm of a ratio: beyond them its exponential is of no use in f32.
const MOST: f64 = 20.0;
const LEAST_RATIO: f64 = 1e-8;
/// The decay is held above it.
const LEAST_LAMBDA: f64 = 1e-4;

/// `-phi * A * log p` with `phi = exp(lambda + k log w - lambda w)` without gradient, `w` the product of the ratios of all tokens of the
/// completion. `phi` is 1 where the policy has not moved, and falls to both sides.
#[derive(Clone, Copy, Debug)]
pub struct Vespo {
    /// `k` and `lambda` where the advantage is not negative.
    pub positive: (f64, f64),
    /// Where it is.
    pub negative: (f64, f64),
}

impl Vespo {
    /// `[N]`.
    fn phi(&self, terms: &Terms<'_>) -> Tensor {
        no_grad(|| {
            let log_least = LEAST_RATIO.ln();
            let completions = terms.completions;
            let mut log_ratio = completions.sum(&terms.difference.detach().clamp(-MOST, MOST));
            if let Some(weights) = terms.sampler_weights {
                log_ratio += completions.sum(&weights.log().clamp(log_least, MOST));
            }
            let log_ratio = completions.spread(&log_ratio.clamp(log_least, MOST));
            let is_positive = terms.advantages.ge(0.0);
            let of_sign = |positive: f64, negative: f64| {
                let ones = log_ratio.ones_like();
                (&ones * positive).where_self(&is_positive, &(ones * negative))
            };
            let k = of_sign(self.positive.0, self.negative.0);
            let lambda =
                of_sign(self.positive.1.max(LEAST_LAMBDA), self.negative.1.max(LEAST_LAMBDA));
            let phi = (&lambda + k * &log_ratio - &lambda * log_ratio.exp()).exp();
            phi.nan_to_num(0.0, 0.0, 0.0).to_kind(Kind::Float)
        })
    }
}

impl Surrogate for Vespo {
    fn loss(&self, terms: &Terms<'_>) -> Tensor {
        -(self.phi(terms) * terms.advantages * terms.logprobs)
    }

    fn clipped(&self, _: &Terms<'_>) -> Option<ClippedTokens> {
        None
    }

    fn weighs_by_sampler(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by_hand, close};
    use super::*;

    #[test]
    fn by_hand_the_weight_is_1_where_the_policy_has_not_moved() {
        let vespo = Vespo { positive: (2.0, 3.0), negative: (3.0, 2.0) };
        let (_, gradient) = by_hand(&vespo, &[1.0, 2.0, 2.0], &[1.0, 1.0, -1.0]);
        let phi = |k: f64, lambda: f64, w: f64| (lambda + k * w.ln() - lambda * w).exp();
        close(&gradient, &[-1.0, -phi(2.0, 3.0, 2.0), phi(3.0, 2.0, 2.0)]);
    }
}
