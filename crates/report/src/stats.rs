//! Means with bootstrap intervals.

use std::fmt;

use base::console::plain_zero;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::error::ReportError;

const RESAMPLES: usize = 2_000;

/// A mean and its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean of the values.
    pub mean: f64,
    /// 2.5th percentile of the resampled means.
    pub low: f64,
    /// 97.5th percentile of the resampled means.
    pub high: f64,
    /// Number of values.
    pub num_values: usize,
}

impl Interval {
    /// A statistic of `num_values` values with the 2.5th and 97.5th percentile of what
    /// [`resampled`] says of it.
    ///
    /// # Errors
    /// On no draws and on what is not finite.
    pub fn of_draws(
        statistic: f64,
        mut draws: Vec<f64>,
        num_values: usize,
    ) -> Result<Self, ReportError> {
        if draws.is_empty() {
            return Err(ReportError::NoValues);
        }
        let all = std::iter::once(&statistic).chain(&draws).enumerate();
        if let Some((index, &value)) = all.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(ReportError::NotFinite { index, value });
        }
        draws.sort_by(f64::total_cmp);
        Ok(Self {
            mean: statistic,
            low: quantile(&draws, 0.025),
            high: quantile(&draws, 0.975),
            num_values,
        })
    }

    /// Whether no value lies in both.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        self.high < other.low || other.high < self.low
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, low, high] = [self.mean, self.low, self.high].map(|value| plain_zero(value, 3));
        write!(f, "{mean:.3} [{low:.3}, {high:.3}]")
    }
}

/// Mean of `values` with its 95 % percentile bootstrap interval, 2,000 resamples.
///
/// # Errors
/// On no values and on values that are not finite.
pub fn mean_interval(values: &[f64], seed: u64) -> Result<Interval, ReportError> {
    if values.is_empty() {
        return Err(ReportError::NoValues);
    }
    if let Some((index, &value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(ReportError::NotFinite { index, value });
    }
    let count = values.len();
    let mean = |sum: f64| sum / count as f64;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draws = (0..count).map(|_| values[below(&mut rng, count)]);
            mean(draws.sum())
        })
        .collect();
    means.sort_by(f64::total_cmp);
    Ok(Interval {
        mean: mean(values.iter().sum()),
        low: quantile(&means, 0.025),
        high: quantile(&means, 0.975),
        num_values: values.len(),
    })
}

/// The values of `statistic` on `resamples` draws with replacement from `count` items; it is given how often
/// each item was drawn.
pub fn resampled<T>(
    count: usize,
    resamples: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> T,
) -> Vec<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut times = vec![0; count];
    let draw = |_| {
        times.fill(0);
        for _ in 0..count {
            times[below(&mut rng, count)] += 1;
        }
        statistic(&times)
    };
    (0..resamples).map(draw).collect()
}

/// Uniform on `0..count` but for 1 in 2^64 / `count`: the upper half of a product.
fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    ((u128::from(rng.next_u64()) * count as u128) >> 64) as usize
}

/// Mean of `after - before`, value by value, with its interval.
///
/// # Errors
/// As [`mean_interval`], and where there are not as many before as after.
pub fn paired_difference_interval(
    before: &[f64],
    after: &[f64],
    seed: u64,
) -> Result<Interval, ReportError> {
    if before.len() != after.len() {
        return Err(ReportError::Unpaired { before: before.len(), after: after.len() });
    }
    let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    mean_interval(&differences, seed)
}

/// The value below which the share `q` of `sorted` lies, interpolated linearly.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let share = place - below as f64;
    sorted[below] + share * (sorted[above] - sorted[below])
}

/// Mean and deviation (with n - 1) of values; none of none, no deviation of one.
pub fn moments(values: &[f64]) -> Option<(f64, Option<f64>)> {
    if values.is_empty() {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
    Some((mean, deviation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let sorted = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.5), 2.0);
        assert_eq!(quantile(&sorted, 0.125), 0.5);
        assert_eq!(quantile(&sorted, 1.0), 4.0);
        assert_eq!(quantile(&[7.0], 0.975), 7.0);
    }

    #[test]
    fn draws_by_their_counts_give_the_interval_of_the_mean() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i * i)).collect();
        let by_values = mean_interval(&values, 5).expect("values");
        let draws = resampled(values.len(), RESAMPLES, 5, |times| {
            assert_eq!(times.iter().sum::<usize>(), 50);
            let sum: f64 = times.iter().zip(&values).map(|(n, v)| *n as f64 * v).sum();
            sum / 50.0
        });
        let by_counts = Interval::of_draws(by_values.mean, draws, 50).expect("draws");
        assert!((by_values.low - by_counts.low).abs() < 1e-9, "{by_counts}");
        assert!((by_values.high - by_counts.high).abs() < 1e-9, "{by_counts}");
        assert!(Interval::of_draws(1.0, vec![f64::NAN], 1).is_err());
        assert!(Interval::of_draws(f64::INFINITY, vec![1.0], 1).is_err());
        assert!(Interval::of_draws(1.0, vec![], 1).is_err());
    }

    #[test]
    fn equal_values_have_no_spread() {
        let interval = mean_interval(&[0.25; 40], 1).expect("values");
        let expected = Interval { mean: 0.25, low: 0.25, high: 0.25, num_values: 40 };
        assert_eq!(interval, expected);
    }

    #[test]
    fn the_interval_is_that_of_the_normal_approximation() {
        // 100 zeros and 100 ones: standard error 0.5 / sqrt(200) = 0.03536, so 0.5 -+ 0.0693.
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        let interval = mean_interval(&values, 7).expect("values");
        assert_eq!(interval.mean, 0.5);
        // A percentile of 2,000 resamples is itself uncertain by about 0.002.
        assert!((interval.low - 0.4307).abs() < 0.01, "{interval}");
        assert!((interval.high - 0.5693).abs() < 0.01, "{interval}");
        assert_eq!(mean_interval(&values, 7).expect("values"), interval);
        assert_ne!(mean_interval(&values, 8).expect("values"), interval);
    }

    #[test]
    fn the_interval_covers_the_truth_about_95_times_in_100() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut uniform = || rng.next_u32() as f64 / f64::from(u32::MAX);
        let covered = (0..200)
            .filter(|&seed| {
                let values: Vec<f64> = (0..60).map(|_| uniform()).collect();
                let interval = mean_interval(&values, seed).expect("values");
                interval.low <= 0.5 && 0.5 <= interval.high
            })
            .count();
        // 190 expected, standard deviation 3.
        assert!((180..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn pairs_take_out_what_they_share() {
        let before: Vec<f64> = (0..50).map(f64::from).collect();
        let after: Vec<f64> = before.iter().map(|b| b + 0.5).collect();
        let paired = paired_difference_interval(&before, &after, 3).expect("pairs");
        assert_eq!([paired.mean, paired.low, paired.high], [0.5; 3]);
        assert!(matches!(
            paired_difference_interval(&before, &after[1..], 3),
            Err(ReportError::Unpaired { before: 50, after: 49 })
        ));
    }

    #[test]
    fn nothing_and_nan_are_errors() {
        assert!(matches!(mean_interval(&[], 0), Err(ReportError::NoValues)));
        assert!(matches!(
            mean_interval(&[0.0, f64::NAN], 0),
            Err(ReportError::NotFinite { index: 1, .. })
        ));
    }

    #[test]
    fn apart_means_no_common_value() {
        let at = |low: f64, high: f64| Interval { mean: low, low, high, num_values: 2 };
        assert!(at(0.0, 1.0).is_apart_from(&at(1.1, 2.0)));
        assert!(at(1.1, 2.0).is_apart_from(&at(0.0, 1.0)));
        assert!(!at(0.0, 1.0).is_apart_from(&at(1.0, 2.0)));
    }
}
