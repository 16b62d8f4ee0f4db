//! The divergence of the policy from its reference.

use config::KlEstimator;
use tch::Tensor;

/// How far the policy is held to its reference.
#[derive(Clone, Copy, Debug)]
pub struct KlTerm {
    /// Its weight.
    pub beta: f64,
    /// How it is estimated from a token.
    pub estimator: LogprobDifference,
    /// Whether it is multiplied by the ratio to the old policy: an estimate over tokens of the old policy is without bias then.
    pub bias_correction: bool,
}

/// An estimate from the log-probabilities of the sampled token alone (Schulman 2020).
#[derive(Clone, Copy, Debug)]
pub struct LogprobDifference(pub KlEstimator);

impl LogprobDifference {
    /// With `d = log reference - log policy`: k1 `-d`, k2 `d^2 / 2`, k3 `exp(d) - d - 1`. `[N]`.
    pub fn of(self, logprobs: &Tensor, ref_logprobs: &Tensor) -> Tensor {
        let difference = ref_logprobs - logprobs;
        match self.0 {
            KlEstimator::K1 => -difference,
            KlEstimator::K2 => &difference * &difference / 2.0,
            KlEstimator::K3 => difference.exp() - &difference - 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_by_hand() {
        let policy = Tensor::from_slice(&[-1.0f32, -1.0, -2.0]);
        let reference = Tensor::from_slice(&[-1.0f32, -2.0, -1.0]);
        let of = |estimator| {
            let values = LogprobDifference(estimator).of(&policy, &reference);
            Vec::<f32>::try_from(values).unwrap()
        };
        assert_eq!(of(KlEstimator::K1), [0.0, 1.0, -1.0]);
        assert_eq!(of(KlEstimator::K2), [0.0, 0.5, 0.5]);
        let e = std::f32::consts::E;
        let k3 = of(KlEstimator::K3);
        assert!(k3.iter().zip([0.0, 1.0 / e, e - 2.0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
