//! Which completions and tokens the loss counts.

/// Of a step's completions and of their tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenChoice {
    /// Completions that were cut off count for no loss; their reward counts in its group.
    pub masks_truncated: bool,
    /// The share of an update's tokens that count, those of the highest entropy (arXiv 2506.01939); 1: all.
    pub top_entropy_quantile: f64,
}

impl TokenChoice {
    /// Whether a completion counts.
    pub fn counts(&self, is_cut_off: bool) -> bool {
        !(self.masks_truncated && is_cut_off)
    }

    /// Whether entropies of all tokens must be known before an update.
    pub fn needs_entropies(&self) -> bool {
        self.top_entropy_quantile < 1.0
    }

    /// The entropy from which on tokens count: the quantile of all those of the update, between neighbours by a straight line.
    pub fn entropy_threshold(&self, entropies: &[f32]) -> f64 {
        let mut sorted = entropies.to_vec();
        sorted.sort_by(f32::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
        let place = (1.0 - self.top_entropy_quantile) * last as f64;
        let (below, part) = (place.floor() as usize, place.fract());
        let (a, b) = (f64::from(sorted[below]), f64::from(sorted[last.min(below + 1)]));
        // The place between neighbours is computed in f32, as the entropies are.
        f64::from((a + (b - a) * part) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threshold(quantile: f64, entropies: &[f32]) -> f64 {
        let choice = TokenChoice { masks_truncated: false, top_entropy_quantile: quantile };
        choice.entropy_threshold(entropies)
    }

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        let entropies = [3.0, 1.0, 2.0, 5.0, 4.0];
        assert_eq!(threshold(0.5, &entropies), 3.0);
        assert_eq!(threshold(0.2, &entropies), f64::from(4.2f32));
        assert_eq!(threshold(0.0, &entropies), 5.0);
        assert_eq!(threshold(1.0, &entropies), 1.0);
    }
}
