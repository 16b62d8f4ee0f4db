//! Real numbers of a chosen precision: a whole mantissa times a power of two.
//!
//! Every result is within `2^(magnitude - bits + 1)` of the true one, for functions within
//! `2^(max(magnitude, 0) - bits + 1)`. Functions answer nothing where an argument is too large.

use std::cmp::Ordering;
use std::sync::LazyLock;

use num_bigint::{BigInt, Sign};
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// The magnitude of zero, and the error of what is exact.
pub(crate) const NOTHING: i64 = i64::MIN / 8;

/// Extra bits within functions.
const GUARD: i64 = 40;

/// Largest magnitude of an argument of `exp`.
const MAX_EXPONENT: i64 = 40;

/// Largest magnitude of an angle.
const MAX_ANGLE: i64 = 64;

/// Bits that the constants are kept to.
const CONSTANT_BITS: i64 = 1_152 + 4 * GUARD + MAX_ANGLE;

#[derive(Clone, Debug)]
pub(crate) struct Real {
    mantissa: BigInt,
    exponent: i64,
}

impl Real {
    pub(crate) fn zero() -> Self {
        Self::whole(0)
    }

    pub(crate) fn whole(n: i64) -> Self {
        Self { mantissa: n.into(), exponent: 0 }
    }

    fn rounded(mantissa: BigInt, exponent: i64, bits: i64) -> Self {
        let excess = mantissa.bits() as i64 - bits;
        if excess <= 0 {
            return Self { mantissa, exponent };
        }
        Self { mantissa: mantissa >> excess, exponent: exponent + excess }
    }

    pub(crate) fn from_ratio(value: &BigRational, bits: i64) -> Self {
        let shift = bits + value.denom().bits() as i64 - value.numer().bits() as i64;
        let above = shifted(value.numer(), shift.max(0));
        let below = shifted(value.denom(), (-shift).max(0));
        Self::rounded(above / below, -shift, bits + 2)
    }

    /// Smallest `k` with `|x| <= 2^k`, [`NOTHING`] for zero.
    pub(crate) fn magnitude(&self) -> i64 {
        if self.mantissa.is_zero() {
            return NOTHING;
        }
        self.mantissa.bits() as i64 + self.exponent
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.mantissa.is_zero()
    }

    pub(crate) fn is_negative(&self) -> bool {
        self.mantissa.is_negative()
    }

    pub(crate) fn negated(&self) -> Self {
        Self { mantissa: -&self.mantissa, exponent: self.exponent }
    }

    pub(crate) fn abs(&self) -> Self {
        Self { mantissa: self.mantissa.abs(), exponent: self.exponent }
    }

    /// Times `2^by`.
    pub(crate) fn scaled(&self, by: i64) -> Self {
        Self {
            mantissa: self.mantissa.clone(),
            exponent: if self.is_zero() { 0 } else { self.exponent + by },
        }
    }

    pub(crate) fn add(&self, other: &Self, bits: i64) -> Self {
        let (a, b) = (self.magnitude(), other.magnitude());
        if a - b > bits + 2 {
            return self.clone();
        }
        if b - a > bits + 2 {
            return other.clone();
        }
        let low = self.exponent.min(other.exponent);
        let sum = shifted(&self.mantissa, self.exponent - low)
            + shifted(&other.mantissa, other.exponent - low);
        Self::rounded(sum, low, bits)
    }

    pub(crate) fn sub(&self, other: &Self, bits: i64) -> Self {
        self.add(&other.negated(), bits)
    }

    pub(crate) fn mul(&self, other: &Self, bits: i64) -> Self {
        let exponent = self.exponent + other.exponent;
        Self::rounded(&self.mantissa * &other.mantissa, exponent, bits)
    }

    /// Nothing where `other` is zero.
    pub(crate) fn div(&self, other: &Self, bits: i64) -> Option<Self> {
        if other.is_zero() {
            return None;
        }
        let wanted = bits + 2 + other.mantissa.bits() as i64 - self.mantissa.bits() as i64;
        let shift = wanted.max(0);
        let quotient = shifted(&self.mantissa, shift) / &other.mantissa;
        let exponent = self.exponent - other.exponent - shift;
        Some(Self::rounded(quotient, exponent, bits))
    }

    /// Nothing below zero.
    pub(crate) fn sqrt(&self, bits: i64) -> Option<Self> {
        if self.is_negative() {
            return None;
        }
        let wanted = (2 * bits + 4 - self.mantissa.bits() as i64).max(0);
        let shift = wanted + (self.exponent - wanted).rem_euclid(2);
        let root = shifted(&self.mantissa, shift).sqrt();
        Some(Self::rounded(root, (self.exponent - shift) / 2, bits))
    }

    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        let gap = self.magnitude().max(other.magnitude()) - self.exponent.min(other.exponent);
        let difference = self.sub(other, gap.clamp(64, 20_000));
        match difference.mantissa.sign() {
            Sign::Minus => Ordering::Less,
            Sign::NoSign => Ordering::Equal,
            Sign::Plus => Ordering::Greater,
        }
    }

    /// Largest whole number that is not above; nothing beyond `2^4096`.
    pub(crate) fn floor(&self) -> Option<BigInt> {
        if self.magnitude() > 4_096 {
            return None;
        }
        Some(if self.exponent >= 0 {
            shifted(&self.mantissa, self.exponent)
        } else {
            // Shifts round down.
            self.fixed(0)
        })
    }

    /// Exactly; nothing where that would be long.
    pub(crate) fn to_ratio(&self) -> Option<BigRational> {
        if self.exponent.abs() > 20_000 {
            return self.is_zero().then(BigRational::zero);
        }
        let power = BigInt::one() << self.exponent.unsigned_abs();
        Some(if self.exponent < 0 {
            BigRational::new(self.mantissa.clone(), power)
        } else {
            BigRational::from_integer(&self.mantissa * power)
        })
    }

    /// The nearest double or one beside it; infinite where none is near.
    pub(crate) fn to_f64(&self) -> f64 {
        let excess = (self.mantissa.bits() as i64 - 60).max(0);
        let short = (&self.mantissa >> excess).to_f64().unwrap_or(0.0);
        let exponent = (self.exponent + excess).clamp(-2_000, 2_000) as i32;
        short * 2f64.powi(exponent / 2) * 2f64.powi(exponent - exponent / 2)
    }

    /// `floor(x * 2^bits)`, zero where `x` is far below.
    fn fixed(&self, bits: i64) -> BigInt {
        let shift = self.exponent + bits;
        if shift >= 0 {
            shifted(&self.mantissa, shift)
        } else if self.magnitude() + bits < -1 {
            BigInt::from(-i32::from(self.is_negative()))
        } else {
            &self.mantissa >> -shift
        }
    }

    /// Nothing where the argument is beyond `2^40`.
    pub(crate) fn exp(&self, bits: i64) -> Option<Self> {
        if self.magnitude() > MAX_EXPONENT {
            return None;
        }
        let halvings = i64::from(bits.unsigned_abs().isqrt() as u32) / 2;
        let width = bits + 2 * GUARD + halvings;
        let (twos, rest) = self.fixed(width).div_mod_floor(&constant(&LN_2, width));
        let step = rest >> halvings;
        let one = BigInt::one() << width;
        let (mut sum, mut term) = (one.clone(), one);
        for n in 1u32.. {
            term = ((term * &step) >> width) / n;
            if term.is_zero() {
                break;
            }
            sum += &term;
        }
        for _ in 0..halvings {
            sum = (&sum * &sum) >> width;
        }
        Some(Self::rounded(sum, twos.to_i64()? - width, bits))
    }

    /// Nothing where the argument is not above zero.
    pub(crate) fn ln(&self, bits: i64) -> Option<Self> {
        if !self.mantissa.is_positive() {
            return None;
        }
        let width = bits + GUARD;
        let mut twos = self.magnitude();
        let mut near_one = self.scaled(-twos);
        if near_one.to_f64() < std::f64::consts::FRAC_1_SQRT_2 {
            near_one = near_one.scaled(1);
            twos -= 1;
        }
        let one = Self::whole(1);
        let slope = near_one.sub(&one, width).div(&near_one.add(&one, width), width)?;
        let series = odd_series(&slope.fixed(width), width, false) * 2;
        let whole = constant(&LN_2, width) * twos;
        Some(Self::rounded(series + whole, -width, bits))
    }

    /// Sine and cosine; nothing where the angle is beyond `2^64`.
    pub(crate) fn sin_cos(&self, bits: i64) -> Option<(Self, Self)> {
        if self.magnitude() > MAX_ANGLE {
            return None;
        }
        let width = bits + GUARD;
        let quarter = constant(&PI, width + MAX_ANGLE);
        let angle: BigInt = self.fixed(width + MAX_ANGLE) * 2 + (&quarter >> 1u8);
        let (quarters, rest) = angle.div_mod_floor(&quarter);
        // From -pi/4 to pi/4.
        let rest = (rest - (&quarter >> 1u8)) >> (MAX_ANGLE + 1);
        let square = (&rest * &rest) >> width;
        let alternating = |start: BigInt, first: u32| {
            let (mut sum, mut term) = (start.clone(), start);
            for n in (first..).step_by(2) {
                term = -(((term * &square) >> width) / (n * (n + 1)));
                if term.is_zero() || term == -BigInt::one() {
                    return sum;
                }
                sum += &term;
            }
            sum
        };
        let sine = alternating(rest.clone(), 2);
        let cosine = alternating(BigInt::one() << width, 1);
        let (sine, cosine) = match quarters.mod_floor(&4.into()).to_u8()? {
            0 => (sine, cosine),
            1 => (cosine, -sine),
            2 => (-sine, -cosine),
            _ => (-cosine, sine),
        };
        let real = |mantissa| Self::rounded(mantissa, -width, bits);
        Some((real(sine), real(cosine)))
    }

    pub(crate) fn atan(&self, bits: i64) -> Self {
        let width = bits + GUARD;
        let one = Self::whole(1);
        let large = self.magnitude() > 1;
        let mut tangent =
            if large { one.div(self, width).unwrap_or_else(Self::zero) } else { self.clone() };
        const HALVINGS: usize = 2;
        for _ in 0..HALVINGS {
            let square = tangent.mul(&tangent, width);
            let root = square.add(&one, width).sqrt(width);
            let below = root.unwrap_or_else(|| one.clone()).add(&one, width);
            tangent = tangent.div(&below, width).unwrap_or_else(Self::zero);
        }
        let angle = odd_series(&tangent.fixed(width), width, true) << HALVINGS;
        let angle = Self::rounded(angle, -width, bits);
        if !large {
            return angle;
        }
        let quarter = Self::pi(bits + 2).scaled(-1);
        let quarter = if self.is_negative() { quarter.negated() } else { quarter };
        quarter.sub(&angle, bits)
    }

    pub(crate) fn pi(bits: i64) -> Self {
        Self::rounded(constant(&PI, bits + GUARD), -bits - GUARD, bits)
    }

    pub(crate) fn euler_gamma(bits: i64) -> Self {
        Self::rounded(constant(&EULER_GAMMA, bits + GUARD), -bits - GUARD, bits)
    }
}

fn shifted(mantissa: &BigInt, by: i64) -> BigInt {
    mantissa << by.max(0)
}

/// `x + x^3 / 3 + x^5 / 5 + ...`, signs alternating for the arc tangent; fixed point.
fn odd_series(x: &BigInt, width: i64, alternate: bool) -> BigInt {
    let square = (x * x) >> width;
    let (mut sum, mut power) = (x.clone(), x.clone());
    for n in (3u32..).step_by(2) {
        power = (power * &square) >> width;
        if alternate {
            power = -power;
        }
        let term = &power / n;
        if term.is_zero() {
            break;
        }
        sum += term;
    }
    sum
}

fn constant(value: &BigInt, bits: i64) -> BigInt {
    value >> (CONSTANT_BITS - bits)
}

static LN_2: LazyLock<BigInt> = LazyLock::new(|| {
    let width = CONSTANT_BITS + GUARD;
    odd_series(&((BigInt::one() << width) / 3), width, false) >> (GUARD - 1)
});

/// Machin, 1706.
static PI: LazyLock<BigInt> = LazyLock::new(|| {
    let width = CONSTANT_BITS + GUARD;
    let angle = |n: u32| odd_series(&((BigInt::one() << width) / n), width, true);
    (angle(5) * 16 - angle(239) * 4) >> GUARD
});

/// Brent and McMillan, 1980, with n = 512: the error is about `e^-2048`.
static EULER_GAMMA: LazyLock<BigInt> = LazyLock::new(|| {
    const N: u32 = 512;
    let width = CONSTANT_BITS + GUARD;
    let one = BigInt::one() << width;
    let (mut weight, mut harmonic) = (one.clone(), BigInt::zero());
    let (mut above, mut below) = (BigInt::zero(), one.clone());
    for k in 1u32.. {
        weight = weight * (N * N) / k / k;
        if weight.is_zero() {
            break;
        }
        harmonic += &one / k;
        above += (&weight * &harmonic) >> width;
        below += &weight;
    }
    let ln_n = &*LN_2 * 9;
    (((above << width) / below) >> GUARD) - ln_n
});

#[cfg(test)]
mod tests {
    use super::*;

    /// Digits by mpmath.
    #[test]
    fn functions_by_mpmath() {
        let two = Real::whole(2);
        let half = Real::from_ratio(&BigRational::new(1.into(), 2.into()), 400);
        let (sine, cosine) = Real::whole(100).sin_cos(384).expect("small");
        let digits = |value: Real| {
            let scaled = value.to_ratio().expect("short") * BigInt::from(10).pow(60);
            scaled.floor().to_integer().to_string()
        };
        for (value, expected) in [
            (Real::pi(384), PI_60),
            (Real::euler_gamma(384), GAMMA_60),
            (two.ln(384).expect("positive"), LN_2_60),
            (two.sqrt(384).expect("positive"), SQRT_2_60),
            (Real::whole(1).exp(384).expect("small"), E_60),
            (sine, SIN_100_60),
            (cosine, COS_100_60),
            (half.atan(384), ATAN_HALF_60),
            (Real::whole(-3).atan(384), ATAN_MINUS_3_60),
        ] {
            assert_eq!(digits(value), expected);
        }
    }

    const PI_60: &str = "3141592653589793238462643383279502884197169399375105820974944";
    const GAMMA_60: &str = "577215664901532860606512090082402431042159335939923598805767";
    const LN_2_60: &str = "693147180559945309417232121458176568075500134360255254120680";
    const SQRT_2_60: &str = "1414213562373095048801688724209698078569671875376948073176679";
    const E_60: &str = "2718281828459045235360287471352662497757247093699959574966967";
    const SIN_100_60: &str = "-506365641109758793656557610459785432065032721290657323443393";
    const COS_100_60: &str = "862318872287683934101938513950842535510084008535510829280162";
    const ATAN_HALF_60: &str = "463647609000806116214256231461214402028537054286120263810933";
    const ATAN_MINUS_3_60: &str = "-1249045772398254425829917077281090123077829404129896719054670";
}
