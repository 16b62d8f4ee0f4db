//! SAPO, soft adaptive policy optimisation (arXiv 2511.20347).

use tch::Tensor;

use super::{ClippedTokens, Surrogate, Terms};

/// `-4 / t * sigmoid(t * (ratio - 1)) * A`, with a slope `t` for each sign of the advantage: far ratios fade out instead of being cut off.
#[derive(Clone, Copy, Debug)]
pub struct Sapo {
    /// The slope where the advantage is not positive.
    pub negative: f64,
    /// The slope where it is.
    pub positive: f64,
}

impl Surrogate for Sapo {
    fn loss(&self, terms: &Terms<'_>) -> Tensor {
        let ones = terms.advantages.ones_like();
        let slope =
            (&ones * self.positive).where_self(&terms.advantages.gt(0.0), &(ones * self.negative));
        let gate = (&slope * (terms.ratio - 1.0)).sigmoid() * (slope.reciprocal() * 4.0);
        -(gate * terms.advantages)
    }

    fn clipped(&self, _: &Terms<'_>) -> Option<ClippedTokens> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by_hand, close};
    use super::*;

    #[test]
    fn by_hand_the_slope_is_that_of_the_sign() {
        let sapo = Sapo { negative: 2.0, positive: 1.0 };
        let (loss, gradient) = by_hand(&sapo, &[1.0, 3.0, 3.0], &[1.0, 1.0, -1.0]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        close(&loss, &[-2.0, -4.0 * sigmoid(2.0), 2.0 * sigmoid(4.0)]);
        // At ratio 1 the gradient is that of the plain ratio.
        let slope = |x: f64| sigmoid(x) * (1.0 - sigmoid(x));
        close(&gradient, &[-1.0, -4.0 * slope(2.0) * 3.0, 4.0 * slope(4.0) * 3.0]);
    }
}
