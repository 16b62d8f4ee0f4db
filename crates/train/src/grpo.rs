//! The maths of GRPO: rewards to advantages, log-probabilities to a loss. Pure functions.
//!
//! DeepSeekMath (arXiv 2402.03300), equations 3 and 4, as VLM-R1 trains it: the KL estimator k3 is
//! added per token, the loss is the mean over completions of the mean over their tokens.

use tch::{Kind, Tensor};

/// Keeps the quotient of an advantage finite.
pub const STD_EPSILON: f64 = 1e-4;

/// `(r - mean) / (std + 1e-4)` over a group, `std` with n - 1. A group whose rewards are all equal has
/// advantages of exactly 0: subtracting a rounded mean would leave noise that the division enlarges.
pub fn advantages(rewards: &[f64]) -> Vec<f64> {
    if is_zero_spread(rewards) {
        return vec![0.0; rewards.len()];
    }
    let (mean, std) = mean_and_std(rewards);
    rewards.iter().map(|r| (r - mean) / (std + STD_EPSILON)).collect()
}

/// Whether a group teaches nothing: all rewards equal (or only one).
pub fn is_zero_spread(rewards: &[f64]) -> bool {
    rewards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean and standard deviation with n - 1 (0 for fewer than two).
pub fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// How far the policy may move from the one that sampled.
#[derive(Clone, Copy, Debug)]
pub struct ClipRange {
    /// The ratio is held above `1 - low`.
    pub low: f64,
    /// The ratio is held below `1 + high`.
    pub high: f64,
}

/// `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)` with `ratio = exp(logprobs - old_logprobs)`.
///
/// # Shapes
/// All `[N]`, a token each; `advantages` repeats a completion's advantage over its tokens.
pub fn policy_loss(
    logprobs: &Tensor,
    old_logprobs: &Tensor,
    advantages: &Tensor,
    clip: ClipRange,
) -> Tensor {
    let ratio = (logprobs - old_logprobs).exp();
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high);
    -(ratio * advantages).minimum(&(clipped * advantages))
}

/// k3: `exp(ref - cur) - (ref - cur) - 1`, at least 0 and without bias (Schulman 2020). `[N]`.
pub fn kl_k3(logprobs: &Tensor, ref_logprobs: &Tensor) -> Tensor {
    let difference = ref_logprobs - logprobs;
    difference.exp() - &difference - 1.0
}

/// Share of tokens whose gradient the clip cut off: a positive advantage above the range, or a
/// negative one below it. `[N]` of zeros and ones.
pub fn is_clipped(
    logprobs: &Tensor,
    old_logprobs: &Tensor,
    advantages: &Tensor,
    clip: ClipRange,
) -> Tensor {
    let ratio = (logprobs - old_logprobs).exp();
    let high = ratio.gt(1.0 + clip.high).logical_and(&advantages.gt(0.0));
    let low = ratio.lt(1.0 - clip.low).logical_and(&advantages.lt(0.0));
    high.logical_or(&low).to_kind(Kind::Float)
}

/// Weight of each token in the loss: `1 / (tokens of its completion * completions)`, so that a weighted
/// sum over tokens is the mean over completions of the mean over tokens. `completions` counts all of
/// the step, those left out of this batch too.
pub fn token_weights(lens: &[usize], completions: usize) -> Vec<f32> {
    spread(lens, |len| (1.0 / (len as f64 * completions as f64)) as f32)
}

/// A value per completion, repeated over its tokens.
pub fn repeat_over_tokens(values: &[f64], lens: &[usize]) -> Vec<f32> {
    values.iter().zip(lens).flat_map(|(&v, &len)| std::iter::repeat_n(v as f32, len)).collect()
}

fn spread(lens: &[usize], value: impl Fn(usize) -> f32) -> Vec<f32> {
    lens.iter().flat_map(|&len| std::iter::repeat_n(value(len), len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: ClipRange = ClipRange { low: 0.2, high: 0.3 };

    fn floats(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
    }

    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-6, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn advantages_by_hand() {
        // mean 1, deviations -1, 0, 1: std 1
        close(&advantages(&[0.0, 1.0, 2.0]), &[-1.0 / 1.0001, 0.0, 1.0 / 1.0001]);
        // mean 0.5, std sqrt(2 * 0.25 / 1)
        let std = 0.5f64.sqrt();
        close(&advantages(&[0.0, 1.0]), &[-0.5 / (std + 1e-4), 0.5 / (std + 1e-4)]);
    }

    #[test]
    fn equal_rewards_teach_nothing() {
        // Eight times 0.9 does not subtract to 0 in floating point.
        assert_eq!(advantages(&[0.9; 8]), [0.0; 8]);
        assert_eq!(advantages(&[0.3]), [0.0]);
        assert!(!is_zero_spread(&[0.9, 0.9, 0.900_000_1]));
    }

    #[test]
    fn policy_loss_by_hand() {
        let old = Tensor::from_slice(&[0.0f32; 6]);
        let ratios = [1.0f32, 1.5, 1.5, 0.5, 0.5, 1.25];
        let logprobs = Tensor::from_slice(&ratios).log();
        let adv = Tensor::from_slice(&[2.0f32, 2.0, -2.0, 2.0, -2.0, 1.0]);
        let loss = policy_loss(&logprobs, &old, &adv, CLIP);
        close(&floats(&loss), &[-2.0, -2.6, 3.0, -1.0, 1.6, -1.25]);
        close(&floats(&is_clipped(&logprobs, &old, &adv, CLIP)), &[0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn kl_by_hand() {
        let cur = Tensor::from_slice(&[-1.0f32, -1.0, -2.0]);
        let reference = Tensor::from_slice(&[-1.0f32, -2.0, -1.0]);
        let e = std::f64::consts::E;
        close(&floats(&kl_k3(&cur, &reference)), &[0.0, 1.0 / e, e - 2.0]);
    }

    #[test]
    fn weights_make_a_mean_of_means() {
        let weights = token_weights(&[1, 2, 4], 5);
        assert_eq!(weights.len(), 7);
        assert!(
            (weights[0] - 0.2).abs() < 1e-7
                && (weights[1] - 0.1).abs() < 1e-7
                && (weights[3] - 0.05).abs() < 1e-7
        );
        assert_eq!(repeat_over_tokens(&[1.0, -2.0], &[1, 2]), [1.0, -2.0, -2.0]);
    }
}
