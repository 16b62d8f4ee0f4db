//! Random draws keyed by their purpose: batch size and number of ranks do not change them.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The key of the draws of one completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// The run's seed.
    pub seed: u64,
    /// Training step (0 outside training).
    pub step: u64,
    /// Index of the prompt within the step.
    pub prompt: u64,
    /// Index of the completion within its group.
    pub completion: u64,
}

impl DrawKey {
    /// A uniform number in `[0, 1)` for the token at `token`, the same whatever was drawn before.
    pub fn uniform(&self, token: usize) -> f64 {
        let mut key = [0u8; 32];
        for (slot, word) in
            key.chunks_exact_mut(8).zip([self.seed, self.step, self.prompt, self.completion])
        {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_word_pos(2 * token as u128);
        // 53 bits: every value is exact in f64.
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DrawKey = DrawKey { seed: 42, step: 3, prompt: 1, completion: 7 };

    #[test]
    fn a_draw_depends_on_its_key_alone() {
        let forward: Vec<f64> = (0..20).map(|t| KEY.uniform(t)).collect();
        let backward: Vec<f64> = (0..20).rev().map(|t| KEY.uniform(t)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        for other in [
            DrawKey { seed: 43, ..KEY },
            DrawKey { step: 4, ..KEY },
            DrawKey { prompt: 2, ..KEY },
            DrawKey { completion: 6, ..KEY },
        ] {
            assert_ne!(other.uniform(0), KEY.uniform(0));
        }
    }

    #[test]
    fn draws_are_uniform() {
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|t| KEY.uniform(t)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / n as f64;
        // Standard error of the mean of n uniforms is 0.289 / sqrt(n) = 0.002.
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
    }
}
