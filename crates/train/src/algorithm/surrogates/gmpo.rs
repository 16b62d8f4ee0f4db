//! GMPO, geometric-mean policy optimization (arXiv 2507.20673).

use tch::{Kind, Tensor};

use super::{ClippedTokens, Surrogate, Terms};

/// `-A * exp(mean over the completion of log ratio)`, the logarithm of each token's ratio clipped to `-low .. high` on the side where it
/// helps. verl calls it `geo_mean`.
#[derive(Clone, Copy, Debug)]
pub struct Gmpo {
    /// The logarithm is held above `-low`.
    pub low: f64,
    /// The logarithm is held below `high`.
    pub high: f64,
}

impl Surrogate for Gmpo {
    fn loss(&self, terms: &Terms<'_>) -> Tensor {
        let sign = terms.advantages.sign();
        let clipped = terms.difference.clamp(-self.low, self.high);
        let held = (&sign * terms.difference).minimum(&(&sign * clipped)) * sign;
        let ratio = terms.completions.mean(&held).exp();
        -(terms.completions.spread(&ratio) * terms.advantages)
    }

    fn clipped(&self, terms: &Terms<'_>) -> Option<ClippedTokens> {
        let low = terms.difference.lt(-self.low).logical_and(&terms.advantages.lt(0.0));
        let high = terms.difference.gt(self.high).logical_and(&terms.advantages.gt(0.0));
        let numbers = |mask: Tensor| mask.to_kind(Kind::Float);
        Some(ClippedTokens { low: numbers(low), high: numbers(high) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by_hand, close};
    use super::*;

    #[test]
    fn by_hand_each_token_is_clipped_before_the_mean() {
        let gmpo = Gmpo { low: 0.4, high: 0.4 };
        let e = std::f32::consts::E;
        let (loss, gradient) = by_hand(&gmpo, &[1.0, e, e, 1.0 / e], &[1.0, 1.0, -1.0, -1.0]);
        let (most, least) = (0.4f64.exp(), (-0.4f64).exp());
        close(&loss, &[-1.0, -most, std::f64::consts::E, least]);
        // Nothing where the clip holds it.
        close(&gradient, &[-1.0, 0.0, std::f64::consts::E, 0.0]);
    }

    #[test]
    fn the_ratio_of_a_completion_is_the_geometric_mean_of_its_tokens() {
        let completions =
            crate::algorithm::completions::Completions::new(&[2], torch::device_of_tests());
        let difference = torch::on_test_device(&[0.3f32, -0.1]);
        let advantages = torch::on_test_device(&[2.0f32, 2.0]);
        let loss = Gmpo { low: 0.4, high: 0.4 }.loss(&Terms {
            logprobs: &difference,
            ratio: &difference.exp(),
            difference: &difference,
            advantages: &advantages,
            completions: &completions,
            sampler_weights: None,
        });
        let loss = Vec::<f32>::try_from(loss).unwrap();
        close(&[f64::from(loss[0]), f64::from(loss[1])], &[-2.0 * 0.1f64.exp(); 2]);
    }
}
