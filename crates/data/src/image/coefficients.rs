//! Resampling weights of one axis: the same filters, rounded to integers by two policies.
//!
//! Both libraries compute the weights in f64 and then sum `weight * sample` in integers. Pillow
//! rounds each weight to 22 fractional bits; torch's 8-bit kernel (ATen
//! `_compute_index_ranges_int16_weights`, 2.11) to as many as let the largest weight fit 16 bits.

use super::resize::{Filter, ResizeBackend};

/// Fractional bits of Pillow's weights, and torch's upper bound.
const PRECISION_BITS: u32 = 22;

/// Which input samples make each output sample of an axis, and with which weights.
pub(super) struct AxisWeights {
    /// First input sample and number of samples, per output sample.
    spans: Vec<(usize, usize)>,
    /// `[outputs, stride]`, zero beyond a span.
    weights: Vec<i32>,
    stride: usize,
    /// Fractional bits of a weight.
    pub(super) precision: u32,
}

impl AxisWeights {
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        filter: Filter,
        policy: ResizeBackend,
    ) -> Self {
        let real = RealWeights::new(inputs, outputs, filter);
        let precision = match policy {
            ResizeBackend::Pillow => PRECISION_BITS,
            ResizeBackend::Torchvision => int16_precision(&real.weights),
        };
        let one = f64::from(1u32 << precision);
        // Half away from zero, by truncation, as both libraries round.
        let round = |weight: f64| (weight * one + f64::copysign(0.5, weight)) as i32;
        Self {
            spans: real.spans,
            weights: real.weights.into_iter().map(round).collect(),
            stride: real.stride,
            precision,
        }
    }

    /// First input sample and weights of an output sample.
    pub(super) fn taps(&self, output: usize) -> (usize, &[i32]) {
        let (start, count) = self.spans[output];
        let first = output * self.stride;
        (start, &self.weights[first..first + count])
    }

    pub(super) fn num_outputs(&self) -> usize {
        self.spans.len()
    }
}

struct RealWeights {
    spans: Vec<(usize, usize)>,
    weights: Vec<f64>,
    stride: usize,
}

impl RealWeights {
    fn new(inputs: usize, outputs: usize, filter: Filter) -> Self {
        let scale = inputs as f64 / outputs as f64;
        // When shrinking, the filter widens to cover all inputs of an output.
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut spans = Vec::with_capacity(outputs);
        let mut weights = vec![0.0; outputs * stride];
        for (output, row) in weights.chunks_exact_mut(stride).enumerate() {
            let center = (output as f64 + 0.5) * scale;
            // Float-to-integer casts saturate, so the start is never negative.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(inputs);
            let row = &mut row[..end - start];
            for (tap, weight) in row.iter_mut().enumerate() {
                *weight = filter.weight(((tap + start) as f64 - center + 0.5) * inverse);
            }
            let sum: f64 = row.iter().sum();
            if sum != 0.0 {
                row.iter_mut().for_each(|weight| *weight /= sum);
            }
            spans.push((start, end - start));
        }
        Self { spans, weights, stride }
    }
}

/// The most fractional bits, up to 22, with which every weight fits 16 bits.
fn int16_precision(weights: &[f64]) -> u32 {
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let fits = |bits: u32| 0.5 + largest * f64::from(1u32 << bits) < f64::from(1 << 15);
    (0..PRECISION_BITS).find(|&bits| !fits(bits + 1)).unwrap_or(PRECISION_BITS)
}

impl Filter {
    /// Half width, in samples of the coarser of the two grids.
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            // Keys' cubic convolution with a = -1/2.
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Filter::Bicubic => 0.0,
            Filter::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_with_bilinear_has_hand_computed_weights() {
        let axis = AxisWeights::new(2, 4, Filter::Bilinear, ResizeBackend::Pillow);
        let one = 1 << PRECISION_BITS;
        assert_eq!(axis.taps(0), (0, &[one][..]));
        assert_eq!(axis.taps(1), (0, &[3 * one / 4, one / 4][..]));
        assert_eq!(axis.taps(2), (0, &[one / 4, 3 * one / 4][..]));
        assert_eq!(axis.taps(3), (1, &[one][..]));
    }

    #[test]
    fn weights_fit_sixteen_bits_for_torchvision() {
        for (inputs, outputs) in [(2, 4), (333, 336), (1000, 28), (28, 1000), (5000, 28)] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let axis = AxisWeights::new(inputs, outputs, filter, ResizeBackend::Torchvision);
                assert!(axis.weights.iter().all(|&w| i16::try_from(w).is_ok()));
                // One bit more would not fit, or the bound is reached.
                let largest = axis.weights.iter().max().copied().unwrap_or(0);
                assert!(largest >= 1 << 14 || axis.precision == PRECISION_BITS);
            }
        }
    }
}
