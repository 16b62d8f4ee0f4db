//! The reward `overlong`: the soft penalty of DAPO (arXiv 2503.14476, equation 13).

use crate::error::RewardError;
use crate::explain::Explanation;
use crate::registry::{Reward, RewardInput};

/// How long is too long, tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlongOptions {
    /// Length from which the penalty is whole.
    pub max_tokens: usize,
    /// Tokens before `max_tokens` over which it grows, at most `max_tokens`.
    pub cache_tokens: usize,
}

impl OverlongOptions {
    /// Without `cache_tokens`, a fifth of `max_tokens`: DAPO has 4,096 of 20,480.
    pub fn new(max_tokens: usize, cache_tokens: Option<usize>) -> Self {
        Self { max_tokens, cache_tokens: cache_tokens.unwrap_or(max_tokens / 5) }
    }
}

impl Default for OverlongOptions {
    fn default() -> Self {
        Self::new(2048, None)
    }
}

/// 0 up to `max_tokens - cache_tokens`, then falling linearly to -1 at `max_tokens`.
pub fn overlong(num_tokens: usize, options: OverlongOptions) -> f64 {
    let free = options.max_tokens.saturating_sub(options.cache_tokens);
    if num_tokens <= free {
        0.0
    } else if num_tokens <= options.max_tokens {
        -((num_tokens - free) as f64) / options.cache_tokens as f64
    } else {
        -1.0
    }
}

/// Tokens of the row's completion.
pub(crate) fn num_tokens(
    reward: &'static str,
    row: usize,
    input: &RewardInput<'_>,
) -> Result<usize, RewardError> {
    input.completion_tokens.ok_or(RewardError::NoTokenCount { reward, row })
}

/// [`overlong`] of the row's completion.
pub(crate) struct Overlong(pub(crate) OverlongOptions);

const NAME: &str = "overlong";

impl Reward for Overlong {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter()
            .enumerate()
            .map(|(row, input)| Ok(Some(overlong(num_tokens(NAME, row, input)?, self.0))))
            .collect()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let OverlongOptions { max_tokens, cache_tokens } = self.0;
        let count = num_tokens(NAME, 0, row)?;
        let free = max_tokens.saturating_sub(cache_tokens);
        Ok(Some(Explanation {
            score: Some(overlong(count, self.0)),
            reason: format!("{count} tokens; 0 up to {free}, -1 from {max_tokens}"),
            ..Explanation::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equation_13_by_hand() {
        let options = OverlongOptions::new(100, Some(20));
        let of = |num_tokens| overlong(num_tokens, options);
        assert_eq!([of(0), of(80)], [0.0, 0.0]);
        assert_eq!([of(81), of(85), of(100)], [-0.05, -0.25, -1.0]);
        assert_eq!([of(101), of(usize::MAX)], [-1.0, -1.0]);
    }

    #[test]
    fn a_cache_of_nothing_is_a_cliff_and_of_all_a_slope_from_the_start() {
        let cliff = OverlongOptions::new(10, Some(0));
        assert_eq!([overlong(10, cliff), overlong(11, cliff)], [0.0, -1.0]);
        let slope = OverlongOptions::new(10, Some(10));
        assert_eq!([overlong(0, slope), overlong(5, slope)], [0.0, -0.5]);
    }

    #[test]
    fn without_a_cache_it_is_a_fifth() {
        assert_eq!(OverlongOptions::new(20_480, None).cache_tokens, 4096);
        assert_eq!(OverlongOptions::new(3, None).cache_tokens, 0);
    }
}
