//! Sums over the tokens of each completion, of values that lie one behind another.

use tch::{Device, Kind, Tensor};

/// The completions of a micro-batch: `N` tokens in `C` runs.
#[derive(Debug)]
pub struct Completions {
    /// `[N]`: the completion of each token.
    owner: Tensor,
    /// `[N]`: the place of each token in its completion.
    place: Tensor,
    /// `[C]`: tokens, f32.
    lens: Tensor,
    longest: i64,
}

impl Completions {
    /// Completions of `lens` tokens.
    pub fn new(lens: &[usize], device: Device) -> Self {
        let owner =
            lens.iter().enumerate().flat_map(|(c, &len)| std::iter::repeat_n(c as i64, len));
        let owner: Vec<i64> = owner.collect();
        let place: Vec<i64> = lens.iter().flat_map(|&len| 0..len as i64).collect();
        let counts: Vec<f32> = lens.iter().map(|&len| len as f32).collect();
        Completions {
            owner: torch::upload(&owner, device),
            place: torch::upload(&place, device),
            lens: torch::upload(&counts, device),
            longest: lens.iter().copied().max().unwrap_or_default() as i64,
        }
    }

    /// `[N]` to `[C]`: the sum over each completion's tokens, in their order whatever else is in the micro-batch.
    pub fn sum(&self, values: &Tensor) -> Tensor {
        let rows = self.lens.size()[0];
        let zeros = Tensor::zeros([rows, self.longest], (values.kind(), values.device()));
        let at = [Some(&self.owner), Some(&self.place)];
        zeros.index_put(&at, values, false).sum_dim_intlist(1i64, false, Kind::Float)
    }

    /// `[N]` to `[C]`: the mean over each completion's tokens.
    pub fn mean(&self, values: &Tensor) -> Tensor {
        self.sum(values) / &self.lens
    }

    /// `[C]` to `[N]`: each value at all tokens of its completion.
    pub fn spread(&self, values: &Tensor) -> Tensor {
        values.index_select(0, &self.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_means_and_their_gradients() {
        let completions = Completions::new(&[2, 1, 3], torch::device_of_tests());
        let values =
            torch::on_test_device(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).set_requires_grad(true);
        let sums = Vec::<f32>::try_from(completions.sum(&values)).unwrap();
        assert_eq!(sums, [3.0, 3.0, 15.0]);
        let mean = completions.mean(&values);
        assert_eq!(Vec::<f32>::try_from(&mean).unwrap(), [1.5, 3.0, 5.0]);
        let spread = completions.spread(&mean);
        assert_eq!(Vec::<f32>::try_from(&spread).unwrap(), [1.5, 1.5, 3.0, 5.0, 5.0, 5.0]);
        (spread * torch::on_test_device(&[1.0f32, 0.0, 2.0, 0.0, 0.0, 3.0]))
            .sum(Kind::Float)
            .backward();
        let gradient = Vec::<f32>::try_from(values.grad()).unwrap();
        assert_eq!(gradient, [0.5, 0.5, 2.0, 1.0, 1.0, 1.0]);
    }
}
