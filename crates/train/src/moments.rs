//! AdamW's two moments of one weight, in f32 or in 8 bits, and the update by them.

use tch::{Device, Kind, Tensor};
use torch::{AdamWOptions, BLOCK, Levels, QuantizedMoment, fused_adamw};

use crate::TrainError;

/// Weights of fewer scalars keep f32 moments: biases and norms, as in arXiv 2110.02861.
const LEAST_8BIT: i64 = 4096;
/// How the names of codes and of scales end.
pub(crate) const CODES: &str = ".codes";
pub(crate) const SCALES: &str = ".scales";
/// Scalars dequantized at a time during an update; whole blocks.
pub(crate) const CHUNK: i64 = 1 << 22;

/// Levels of the first moment, which has both signs, and of the second.
#[derive(Debug)]
pub(crate) struct MomentLevels {
    first: Levels,
    second: Levels,
}

impl MomentLevels {
    pub fn new(device: Device) -> Result<Self, TrainError> {
        Ok(MomentLevels { first: Levels::new(true, device)?, second: Levels::new(false, device)? })
    }
}

/// Whether a weight of so many scalars has moments in 8 bits where these are asked for.
pub(crate) fn are_in_8bit(numbers: i64) -> bool {
    numbers >= LEAST_8BIT
}

/// The moments of one weight.
#[derive(Debug)]
pub(crate) enum Moments {
    Exact { exp_avg: Tensor, exp_avg_sq: Tensor },
    EightBit { exp_avg: QuantizedMoment, exp_avg_sq: QuantizedMoment },
}

impl Moments {
    /// Zeros for a weight of `size`, or a part of one, on `device`.
    pub fn new(size: &[i64], device: Device, in_8bit: bool) -> Result<Self, TrainError> {
        let numbers: i64 = size.iter().product();
        if in_8bit {
            let zeros = || QuantizedMoment::zeros(numbers, device);
            return Ok(Moments::EightBit { exp_avg: zeros()?, exp_avg_sq: zeros()? });
        }
        let zeros = || Tensor::f_zeros(size, (Kind::Float, device));
        Ok(Moments::Exact { exp_avg: zeros()?, exp_avg_sq: zeros()? })
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Moments::Exact { exp_avg, exp_avg_sq } => {
                vec![("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)]
            }
            Moments::EightBit { exp_avg, exp_avg_sq } => vec![
                ("exp_avg.codes", &exp_avg.codes),
                ("exp_avg.scales", &exp_avg.scales),
                ("exp_avg_sq.codes", &exp_avg_sq.codes),
                ("exp_avg_sq.scales", &exp_avg_sq.scales),
            ],
        }
    }
}

/// An update to be made.
pub(crate) struct Update<'a> {
    /// f32, changed in place.
    pub weight: Tensor,
    /// Of its shape and on its device, f32.
    pub gradient: &'a Tensor,
    pub moments: &'a Moments,
    /// f32 scalar: updates that the weight has had.
    pub step: &'a Tensor,
}

/// Makes the updates. The update is elementwise, so grouping and order do not change the result.
pub(crate) fn apply(
    updates: &[&Update<'_>],
    levels: Option<&MomentLevels>,
    options: AdamWOptions,
) -> Result<(), TrainError> {
    let mut exact: [Vec<Tensor>; 5] = Default::default();
    for update in updates {
        match (update.moments, levels) {
            (Moments::Exact { exp_avg, exp_avg_sq }, _) => {
                let tensors = [&update.weight, update.gradient, exp_avg, exp_avg_sq, update.step];
                for (list, tensor) in exact.iter_mut().zip(tensors) {
                    list.push(tensor.shallow_clone());
                }
            }
            (Moments::EightBit { exp_avg, exp_avg_sq }, Some(levels)) => {
                apply_in_8bit(update, (exp_avg, exp_avg_sq), levels, options)?
            }
            (Moments::EightBit { .. }, None) => {
                let cause = "8-bit moments without their levels".into();
                return Err(TrainError::State { cause });
            }
        }
    }
    let [weights, gradients, exp_avgs, exp_avg_sqs, steps] = &exact;
    Ok(fused_adamw(weights, gradients, exp_avgs, exp_avg_sqs, steps, options)?)
}

/// Dequantizes a part of the moments at a time, updates, and quantizes it again.
fn apply_in_8bit(
    update: &Update<'_>,
    (exp_avg, exp_avg_sq): (&QuantizedMoment, &QuantizedMoment),
    levels: &MomentLevels,
    options: AdamWOptions,
) -> Result<(), TrainError> {
    let weight = update.weight.f_view([-1])?;
    let gradient = update.gradient.f_reshape([-1])?;
    let len = weight.size()[0];
    let mut step = update.step.copy();
    for start in (0..len).step_by(CHUNK as usize) {
        let part = CHUNK.min(len - start);
        debug_assert!(start % BLOCK == 0);
        let of = |whole: &Tensor| whole.f_narrow(0, start, part);
        let first = exp_avg.read(&levels.first, start, part)?;
        let second = exp_avg_sq.read(&levels.second, start, part)?;
        step = update.step.copy();
        let lists = [of(&weight)?, of(&gradient)?, first, second, step.shallow_clone()];
        let [w, g, m, v, s] = lists.each_ref().map(std::slice::from_ref);
        fused_adamw(w, g, m, v, s, options)?;
        exp_avg.write(&levels.first, start, &m[0])?;
        exp_avg_sq.write(&levels.second, start, &v[0])?;
    }
    update.step.shallow_clone().copy_(&step);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::no_grad;

    use super::*;

    const OPTIONS: AdamWOptions =
        AdamWOptions { lr: 3e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    const WIDTH: i64 = 96;

    /// Fits `y = x W` for `steps` steps and returns the loss of each.
    fn regress(in_8bit: bool, steps: usize) -> Vec<f64> {
        tch::manual_seed(5);
        let options = (Kind::Float, torch::device_of_tests());
        let target = Tensor::randn([WIDTH, WIDTH], options) * 0.1;
        let weight = Tensor::zeros([WIDTH, WIDTH], options);
        // Inputs of unequal size, so that gradients span orders of it.
        let scales = (Tensor::arange(WIDTH, options) * (-4.0 / WIDTH as f64)).exp();
        let moments = Moments::new(&weight.size(), torch::device_of_tests(), in_8bit).unwrap();
        assert_eq!(matches!(moments, Moments::EightBit { .. }), in_8bit);
        let levels = MomentLevels::new(torch::device_of_tests()).unwrap();
        let step = Tensor::zeros([], options);
        (0..steps)
            .map(|_| {
                let x = Tensor::randn([32, WIDTH], options) * &scales;
                let error = x.matmul(&weight) - x.matmul(&target);
                let gradient = x.tr().matmul(&error) / 32.0;
                let update = Update {
                    weight: weight.shallow_clone(),
                    gradient: &gradient,
                    moments: &moments,
                    step: &step,
                };
                no_grad(|| apply(&[&update], Some(&levels), OPTIONS)).unwrap();
                (&error * &error).mean(Kind::Double).double_value(&[])
            })
            .collect()
    }

    /// The losses of a window with 8-bit moments lie within a tenth of those with f32 moments, all the way.
    #[test]
    fn eight_bits_learn_as_thirty_two_do() {
        let (exact, eight) = (regress(false, 600), regress(true, 600));
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (start, end) = (mean(&exact[..20]), mean(&exact[580..]));
        assert!(end < 0.05 * start, "{start} to {end}");
        for (exact, eight) in exact.chunks(50).zip(eight.chunks(50)) {
            let ratio = mean(eight) / mean(exact);
            assert!((ratio - 1.0).abs() < 0.1, "{} and {}", mean(exact), mean(eight));
        }
    }

    #[test]
    fn small_weights_keep_exact_moments() {
        let moments =
            |len, in_8bit| Moments::new(&[len], torch::device_of_tests(), in_8bit).unwrap();
        assert!(!are_in_8bit(4095) && are_in_8bit(4096));
        let bytes = |moments: Moments| {
            let size = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
            moments.tensors().iter().map(|(_, tensor)| size(tensor)).sum::<usize>()
        };
        assert_eq!(bytes(moments(8192, false)), 8 * 8192);
        assert_eq!(bytes(moments(8192, true)), 2 * (8192 + 4 * 32));
    }
}
