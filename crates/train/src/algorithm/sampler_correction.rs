//! Weights for tokens that another program than the trainer's passes sampled: the ratio of the policy as the trainer computes it to the
//! policy as the sampler did.

use config::{AlgorithmSection, SamplerCorrection};
use tch::Tensor;

use super::completions::Completions;

/// A correction and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Correction {
    /// Of tokens or completions, cut off or left out.
    pub kind: SamplerCorrection,
    /// Lower bound of the ratio.
    pub least: Option<f64>,
    /// Upper bound of the ratio.
    pub most: Option<f64>,
}

impl Correction {
    /// That of the settings, if any.
    pub fn of(section: &AlgorithmSection) -> Option<Self> {
        let kind = section.sampler_correction;
        (kind != SamplerCorrection::None).then_some(Correction {
            kind,
            least: section.sampler_correction_min,
            most: section.sampler_correction_max,
        })
    }

    /// `[N]`, without gradient: the ratio `exp(old - sampled)` of each token, or of its completion as their product. Beyond the bounds it is
    /// the bound, or 0.
    pub fn weights(&self, old: &Tensor, sampled: &Tensor, completions: &Completions) -> Tensor {
        let difference = (old - sampled).detach();
        let of_sequence = || completions.spread(&completions.sum(&difference));
        let (log_ratio, truncates) = match self.kind {
            SamplerCorrection::None => return difference.zeros_like() + 1.0,
            SamplerCorrection::TokenTruncate => (difference, true),
            SamplerCorrection::TokenMask => (difference, false),
            SamplerCorrection::SequenceTruncate => (of_sequence(), true),
            SamplerCorrection::SequenceMask => (of_sequence(), false),
        };
        let ratio = log_ratio.exp();
        let (least, most) = (self.least.unwrap_or(0.0), self.most.unwrap_or(f64::INFINITY));
        if truncates {
            return ratio.clamp(least, most);
        }
        let is_within = ratio.ge(least).logical_and(&ratio.le(most));
        // Not by a product: an infinite ratio times 0 is no number.
        ratio.where_self(&is_within, &ratio.zeros_like())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn weights_by_hand() {
        let completions = Completions::new(&[2, 2], torch::device_of_tests());
        let ratios = [1.5f32, 4.0, 0.5, 0.5];
        let old = torch::on_test_device(&ratios).log();
        let of = |kind, least, most| {
            let weights =
                Correction { kind, least, most }.weights(&old, &old.zeros_like(), &completions);
            let weights = Vec::<f32>::try_from(weights).unwrap();
            weights.iter().map(|w| (w * 1e4).round() / 1e4).collect::<Vec<_>>()
        };
        let (least, most) = (Some(0.6), Some(3.0));
        assert_eq!(of(SamplerCorrection::TokenTruncate, least, most), [1.5, 3.0, 0.6, 0.6]);
        assert_eq!(of(SamplerCorrection::TokenMask, least, most), [1.5, 0.0, 0.0, 0.0]);
        assert_eq!(of(SamplerCorrection::SequenceTruncate, None, most), [3.0, 3.0, 0.25, 0.25]);
        assert_eq!(of(SamplerCorrection::SequenceMask, None, most), [0.0, 0.0, 0.25, 0.25]);
        assert_eq!(of(SamplerCorrection::SequenceMask, None, None), [6.0, 6.0, 0.25, 0.25]);
    }
}
