//! The ratio of the policy to the one that sampled.

use config::RatioLevel;
use tch::Tensor;

use super::completions::Completions;

/// `[N]`: the logarithm of the ratio that a token's loss is weighed by: its own, or the mean over its completion (GSPO, arXiv 2507.18071),
/// whose gradient flows through all its tokens.
pub fn log_ratio(level: RatioLevel, difference: &Tensor, completions: &Completions) -> Tensor {
    match level {
        RatioLevel::Token => difference.shallow_clone(),
        RatioLevel::Sequence => completions.spread(&completions.mean(difference)),
    }
}
