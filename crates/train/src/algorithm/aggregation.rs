//! Losses of tokens to one number: the weight of each token in the sum.

/// How an update's tokens are brought together. Denominators count the completions and tokens of the whole update, whatever micro-batches
/// they lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Mean over completions of the mean over their tokens.
    MeanOfMeans,
    /// Mean over tokens.
    TokenMean,
    /// Sum over tokens, by completions times this length (arXiv 2503.20783).
    FixedLength(usize),
    /// Mean over completions of the sum over their tokens (arXiv 2602.05261).
    MeanOfSums,
}

/// What an update counts, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// Completions, those without a gradient and those left out too.
    pub completions: f64,
    /// Tokens of the completions that are not left out.
    pub tokens: f64,
}

impl Aggregation {
    /// The weight of each token of a completion of `len` tokens.
    pub fn weight(self, len: usize, totals: Totals) -> f64 {
        let completions = totals.completions;
        match self {
            Self::MeanOfMeans => 1.0 / (len as f64 * completions),
            Self::TokenMean => 1.0 / totals.tokens,
            Self::FixedLength(length) => 1.0 / (completions * length as f64),
            Self::MeanOfSums => 1.0 / completions,
        }
    }
}

/// `[N]`: a value of each completion, repeated over its tokens.
pub fn per_token(lens: &[usize], mut value: impl FnMut(usize) -> f64) -> Vec<f32> {
    let each = lens.iter().enumerate();
    each.flat_map(|(index, &len)| std::iter::repeat_n(value(index) as f32, len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_by_hand() {
        let totals = Totals { completions: 5.0, tokens: 40.0 };
        let of = |aggregation: Aggregation| [1, 2, 4].map(|len| aggregation.weight(len, totals));
        assert_eq!(of(Aggregation::MeanOfMeans), [0.2, 0.1, 0.05]);
        assert_eq!(of(Aggregation::TokenMean), [0.025; 3]);
        assert_eq!(of(Aggregation::FixedLength(10)), [0.02; 3]);
        assert_eq!(of(Aggregation::MeanOfSums), [0.2; 3]);
        assert_eq!(per_token(&[1, 2], |index| [1.0, -2.0][index]), [1.0, -2.0, -2.0]);
    }
}
