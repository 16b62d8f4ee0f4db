//! Whether a claim of the paper holds here: one rule for all, set before the runs.
//!
//! A claim says that a difference is above zero. There is one difference a seed. The claim holds
//! where their 95 % t-interval lies above zero, does not hold where it lies below, and cannot be
//! told where zero is inside.

/// Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
const T_95: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
/// The normal's, for more.
const NORMAL_95: f64 = 1.96;

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval lies above zero.
    Holds,
    /// The interval lies below zero.
    DoesNot,
    /// Zero is inside, or there are too few seeds.
    CannotTell,
}

impl Verdict {
    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNot => "does not hold",
            Self::CannotTell => "cannot be told",
        }
    }
}

/// A claim and the differences that speak for or against it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is said to be above zero.
    pub text: String,
    /// One a seed.
    pub differences: Vec<f64>,
}

impl Claim {
    /// A claim.
    pub fn new(text: &str, differences: Vec<f64>) -> Self {
        Self { text: text.to_owned(), differences }
    }

    /// What came of it.
    pub fn verdict(&self) -> Verdict {
        match interval(&self.differences) {
            Some([low, _]) if low > 0.0 => Verdict::Holds,
            Some([_, high]) if high < 0.0 => Verdict::DoesNot,
            _ => Verdict::CannotTell,
        }
    }

    /// How many seeds have a difference above zero: `3 of 3`.
    pub fn seeds_above_zero(&self) -> String {
        let above = self.differences.iter().filter(|value| **value > 0.0);
        format!("{} of {}", above.count(), self.differences.len())
    }

    /// Mean and interval, in words.
    pub fn measured(&self) -> String {
        let mean = mean(&self.differences);
        match interval(&self.differences) {
            Some([low, high]) => format!("{mean:+.3} [{low:+.3}, {high:+.3}]"),
            None => format!("{mean:+.3}, one seed"),
        }
    }
}

/// Mean of the values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// 95 % t-interval of the mean; none for fewer than two values.
fn interval(values: &[f64]) -> Option<[f64; 2]> {
    let freedom = values.len().checked_sub(1).filter(|&n| n > 0)?;
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (squares / freedom as f64 / values.len() as f64).sqrt();
    let half = T_95.get(freedom - 1).copied().unwrap_or(NORMAL_95) * error;
    Some([mean - half, mean + half])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        let verdict = |values: &[f64]| Claim::new("a", values.to_vec()).verdict();
        assert_eq!(verdict(&[0.10, 0.12, 0.11]), Verdict::Holds);
        assert_eq!(verdict(&[-0.10, -0.12, -0.11]), Verdict::DoesNot);
        // Mean 0.1, standard error 0.0577, times 4.303: from below zero.
        assert_eq!(verdict(&[0.0, 0.1, 0.2]), Verdict::CannotTell);
        let claim = Claim::new("a", vec![0.0, 0.1, 0.2]);
        assert_eq!(claim.seeds_above_zero(), "2 of 3");
        assert_eq!(verdict(&[0.5]), Verdict::CannotTell);
        assert_eq!(verdict(&[0.0, 0.0, 0.0]), Verdict::CannotTell);
    }

    #[test]
    fn the_interval_is_students() {
        let [low, high] = interval(&[0.0, 0.1, 0.2]).unwrap();
        let half = 4.303 * (0.01_f64 / 3.0).sqrt();
        assert!((low - (0.1 - half)).abs() < 1e-12 && (high - (0.1 + half)).abs() < 1e-12);
    }
}
