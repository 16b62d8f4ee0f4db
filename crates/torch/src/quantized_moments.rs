//! Adam moments in 8 bits: a code per number and a scale per block, after Dettmers et al., *8-bit Optimizers via
//! Block-wise Quantization* (arXiv 2110.02861), section 2.
//!
//! A block of 256 numbers is divided by its largest absolute value. Each quotient becomes the nearest of 256 levels within -1 and 1.
//! Levels are evenly spaced within each power of ten from 1e-6 to 1, twice as many as in the power below: they cover seven orders of
//! magnitude, the large numbers most finely.

use tch::{Device, Kind, Tensor};

use crate::TorchError;

/// Numbers that share a scale.
pub const BLOCK: i64 = 256;

/// Powers of ten that the levels cover.
const DECADES: i32 = 7;
/// Bits of an f32 that choose its code: sign, exponent and eleven of the fraction.
const INDEX_BITS: u32 = 20;
const DROPPED_BITS: u32 = 32 - INDEX_BITS;

/// The quantization levels, and a table to find the nearest.
#[derive(Debug)]
pub struct Levels {
    /// `[256]`, ascending.
    values: Tensor,
    /// `[2^20]`: the code of each beginning of an f32.
    codes: Tensor,
}

impl Levels {
    /// Levels of both signs, or twice as many above 0 and none below.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn new(is_signed: bool, device: Device) -> Result<Self, TorchError> {
        let values = levels(is_signed);
        let codes: Vec<u8> = (0..1u32 << INDEX_BITS)
            .map(|index| {
                // The middle of the numbers that begin so.
                let bits = index << DROPPED_BITS | 1 << (DROPPED_BITS - 1);
                nearest(&values, f32::from_bits(bits))
            })
            .collect();
        Ok(Levels {
            values: Tensor::f_from_slice(&values)?.f_to_device(device)?,
            codes: Tensor::f_from_slice(&codes)?.f_to_device(device)?,
        })
    }
}

fn levels(is_signed: bool) -> Vec<f32> {
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let count = if is_signed { 1 << decade } else { 2 << decade };
        let power = 10f64.powi(decade + 1 - DECADES);
        for i in 0..count {
            // The middle of each part of 0.1 to 1.
            let level = (0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(count)) * power;
            values.push(level as f32);
            if is_signed {
                values.push(-level as f32);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

fn nearest(levels: &[f32], value: f32) -> u8 {
    let above = levels.partition_point(|&level| level < value);
    let below = above.saturating_sub(1);
    let above = above.min(levels.len() - 1);
    let is_nearer = value - levels[below] < levels[above] - value;
    (if is_nearer { below } else { above }) as u8
}

/// A moment of AdamW, quantized to 8 bits by blocks.
#[derive(Debug)]
pub struct QuantizedMoment {
    /// `[blocks * 256]`, u8: the last block may be longer than what is stored.
    pub codes: Tensor,
    /// `[blocks]`, f32: the largest absolute value of each block.
    pub scales: Tensor,
}

impl QuantizedMoment {
    /// `len` zeros.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn zeros(len: i64, device: Device) -> Result<Self, TorchError> {
        let blocks = (len + BLOCK - 1) / BLOCK;
        Ok(QuantizedMoment {
            codes: Tensor::f_zeros([blocks * BLOCK], (Kind::Uint8, device))?,
            scales: Tensor::f_zeros([blocks], (Kind::Float, device))?,
        })
    }

    /// `len` numbers in f32 from `start`, which begins a block.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn read(&self, levels: &Levels, start: i64, len: i64) -> Result<Tensor, TorchError> {
        let blocks = (len + BLOCK - 1) / BLOCK;
        let codes = self.codes.f_narrow(0, start, blocks * BLOCK)?;
        let scales = self.scales.f_narrow(0, start / BLOCK, blocks)?;
        let values = levels.values.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
        let values = values.f_view([blocks, BLOCK])?.f_mul(&scales.f_unsqueeze(1)?)?;
        Ok(values.f_view([-1])?.f_narrow(0, 0, len)?)
    }

    /// Stores `values [n]`, f32, from `start`, which begins a block; they end at the end of a block or of the whole.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn write(&self, levels: &Levels, start: i64, values: &Tensor) -> Result<(), TorchError> {
        let len = values.size()[0];
        let blocks = (len + BLOCK - 1) / BLOCK;
        let values = values.f_constant_pad_nd([0, blocks * BLOCK - len])?;
        let values = values.f_view([blocks, BLOCK])?;
        let scales = values.f_abs()?.f_amax([1i64].as_slice(), true)?;
        // A block of zeros stays one: its scale is 0.
        let divisors = scales.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        let bits = values.f_div(&divisors)?.f_view_dtype(Kind::Int)?;
        let index = bits
            .f_bitwise_right_shift_tensor_scalar(i64::from(DROPPED_BITS))?
            .f_bitwise_and(i64::from((1u32 << INDEX_BITS) - 1))?;
        let codes = levels.codes.f_index_select(0, &index.f_view([-1])?)?;
        self.codes.f_narrow(0, start, blocks * BLOCK)?.f_copy_(&codes)?;
        let scales = scales.f_view([-1])?;
        self.scales.f_narrow(0, start / BLOCK, blocks)?.f_copy_(&scales)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(values: &Tensor, is_signed: bool) -> Tensor {
        let levels = Levels::new(is_signed, crate::device_of_tests()).unwrap();
        let len = values.size()[0];
        let stored = QuantizedMoment::zeros(len, crate::device_of_tests()).unwrap();
        stored.write(&levels, 0, &values.to_device(crate::device_of_tests())).unwrap();
        stored.read(&levels, 0, len).unwrap().to_device(values.device())
    }

    #[test]
    fn levels_are_those_of_the_paper() {
        for (is_signed, largest) in [(true, 64), (false, 128)] {
            let values = levels(is_signed);
            assert_eq!(values.len(), 256);
            assert!(values.is_sorted_by(|a, b| a < b));
            assert!(values.contains(&0.0) && values[255] == 1.0);
            let top = values.iter().filter(|v| **v > 0.1 && **v < 1.0).count();
            assert_eq!(top, largest);
        }
        // One level in the lowest decade of both signs, 1e-7 to 1e-6: its middle.
        assert!(levels(true).iter().any(|v| (v - 5.5e-7).abs() < 1e-12));
    }

    /// The distance to a level is at most half the width of its part of the decade, whatever the block's
    /// scale; a number less than half the smallest level becomes 0.
    #[test]
    fn errors_are_bounded() {
        let count = 100 * BLOCK + 77;
        let spread = (Tensor::rand([count], (Kind::Float, crate::device_of_tests())) * -14.0).exp();
        for (is_signed, scale) in [(true, 1.0), (true, 3e-5), (false, 1.0), (false, 2e-12)] {
            let signs = Tensor::rand([count], (Kind::Float, crate::device_of_tests())).gt(0.5);
            let values = &spread
                * scale
                * if is_signed {
                    signs.to_kind(Kind::Float) * 2.0 - 1.0
                } else {
                    signs.ones_like().to_kind(Kind::Float)
                };
            let got = Vec::<f32>::try_from(through(&values, is_signed)).unwrap();
            let values = Vec::<f32>::try_from(values).unwrap();
            let mut largest = 0f64;
            for (block, got) in values.chunks(BLOCK as usize).zip(got.chunks(BLOCK as usize)) {
                let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
                for (value, got) in block.iter().zip(got) {
                    let size = f64::from(value.abs() / most);
                    let decade = (size.log10().ceil() as i32).clamp(-6, 0);
                    let parts = f64::from(if is_signed { 1 } else { 2 } << (decade + 6));
                    // Half a part of this decade or of the coarser start of the next, and what the dropped bits blur.
                    let half = 0.45 / parts * 10f64.powi(decade) + size / 2048.0;
                    let error = f64::from((value - got).abs() / most);
                    assert!(error <= half * 1.2, "{value} became {got} of {most}: {error}, {half}");
                    largest = largest.max(error);
                }
            }
            assert!(largest > 1e-4 && largest < if is_signed { 9e-3 } else { 5e-3 }, "{largest}");
        }
    }

    #[test]
    fn a_level_stays_itself_and_zeros_stay_zero() {
        for is_signed in [true, false] {
            let values = Tensor::from_slice(&levels(is_signed));
            assert_eq!(through(&values, is_signed), values);
            let again = through(&(&values * 1e-3), is_signed);
            assert_eq!(through(&again, is_signed), again);
        }
        let zeros = Tensor::zeros([2 * BLOCK + 3], (Kind::Float, crate::device_of_tests()));
        assert_eq!(through(&zeros, true), zeros);
        let tiny = Tensor::full([BLOCK], 1e-42, (Kind::Float, crate::device_of_tests()));
        assert!(bool::try_from(through(&tiny, false).isfinite().all()).unwrap());
    }

    #[test]
    fn parts_are_as_the_whole() {
        let levels = Levels::new(true, crate::device_of_tests()).unwrap();
        let len = 3 * BLOCK + 9;
        let values = Tensor::randn([len], (Kind::Float, crate::device_of_tests()));
        let stored = QuantizedMoment::zeros(len, crate::device_of_tests()).unwrap();
        for (start, len) in [(0, 2 * BLOCK), (2 * BLOCK, BLOCK + 9)] {
            stored.write(&levels, start, &values.narrow(0, start, len)).unwrap();
        }
        let whole = stored.read(&levels, 0, len).unwrap();
        assert_eq!(whole, through(&values, true));
        let part = stored.read(&levels, BLOCK, 2 * BLOCK + 9).unwrap();
        assert_eq!(part, whole.narrow(0, BLOCK, 2 * BLOCK + 9));
    }
}
