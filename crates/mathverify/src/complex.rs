//! Complex numbers with a bound on their error, principal branches.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

use crate::expr::Function;
use crate::real::{NOTHING, Real};

/// A number that lies within `2^error` of `re + im i`.
#[derive(Clone, Debug)]
pub(crate) struct Complex {
    pub(crate) re: Real,
    pub(crate) im: Real,
    error: i64,
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Likeness {
    Different,
    /// The same up to the error, which is small.
    Same,
    /// The error is too large to tell.
    Unsure,
}

/// Errors this many bits below the larger number, or below 1 next to zero, are taken for none.
const CONFIDENT: i64 = 200;

/// Largest power that is multiplied out.
const MAX_POWER: u32 = 1 << 20;

/// The sum of errors.
fn errors<const N: usize>(parts: [i64; N]) -> i64 {
    let largest = parts.into_iter().max().unwrap_or(NOTHING);
    if largest <= NOTHING / 2 {
        return NOTHING;
    }
    largest + (N as f64).log2().ceil() as i64
}

impl Complex {
    pub(crate) fn exact(re: Real, im: Real) -> Self {
        Self { re, im, error: NOTHING }
    }

    pub(crate) fn within(re: Real, im: Real, error: i64) -> Self {
        Self { re, im, error }
    }

    pub(crate) fn from_ratio(value: &BigRational, bits: i64) -> Self {
        let re = Real::from_ratio(value, bits);
        let error = re.magnitude() - bits + 1;
        Self::within(re, Real::zero(), error)
    }

    pub(crate) fn fraction(above: i64, below: i64, bits: i64) -> Self {
        Self::from_ratio(&BigRational::new(above.into(), below.into()), bits)
    }

    fn one() -> Self {
        Self::exact(Real::whole(1), Real::zero())
    }

    fn i() -> Self {
        Self::exact(Real::zero(), Real::whole(1))
    }

    /// Beyond `2^(2^42)` and its inverse nothing is a number.
    pub(crate) fn is_within_bounds(&self) -> bool {
        const BOUND: i64 = 1 << 42;
        let within = |x: &Real| x.is_zero() || x.magnitude().abs() < BOUND;
        within(&self.re) && within(&self.im) && self.error < BOUND
    }

    /// `|z| <= 2^high`.
    fn high(&self) -> i64 {
        self.re.magnitude().max(self.im.magnitude()) + 1
    }

    /// `|z| >= 2^low` but for zero.
    fn low(&self) -> i64 {
        self.re.magnitude().max(self.im.magnitude()) - 1
    }

    /// Whether the number behind may be zero.
    fn may_be_zero(&self) -> bool {
        self.low() <= self.error + 1
    }

    /// Whether the number behind may be real.
    pub(crate) fn may_be_real(&self) -> bool {
        self.im.is_zero() || self.im.magnitude() - 1 <= self.error
    }

    /// What lies on an axis up to the error is put there: branches are chosen by signs.
    fn snapped(self) -> Self {
        if !self.im.is_zero() && self.may_be_real() && !self.may_be_zero() {
            let error = errors([self.error, self.error]);
            return Self::within(self.re, Real::zero(), error);
        }
        self
    }

    pub(crate) fn negated(&self) -> Self {
        Self::within(self.re.negated(), self.im.negated(), self.error)
    }

    pub(crate) fn add(&self, other: &Self, bits: i64) -> Self {
        let (re, im) = (self.re.add(&other.re, bits), self.im.add(&other.im, bits));
        let high = self.high().max(other.high());
        let error = errors([self.error, other.error, high - bits + 2]);
        Self::within(re, im, error)
    }

    pub(crate) fn sub(&self, other: &Self, bits: i64) -> Self {
        self.add(&other.negated(), bits)
    }

    pub(crate) fn mul(&self, other: &Self, bits: i64) -> Self {
        let times = |a: &Real, b: &Real| a.mul(b, bits);
        let re = times(&self.re, &other.re).sub(&times(&self.im, &other.im), bits);
        let im = times(&self.re, &other.im).add(&times(&self.im, &other.re), bits);
        let (a, b) = (self.high(), other.high());
        let error =
            errors([a + other.error, b + self.error, self.error + other.error, a + b - bits + 4]);
        Self::within(re, im, error)
    }

    fn inverse(&self, bits: i64) -> Option<Self> {
        if self.may_be_zero() {
            return None;
        }
        let size = self.re.mul(&self.re, bits).add(&self.im.mul(&self.im, bits), bits);
        let re = self.re.div(&size, bits)?;
        let im = self.im.negated().div(&size, bits)?;
        let low = self.low();
        let error = errors([self.error - 2 * low + 1, -low - bits + 5]);
        Some(Self::within(re, im, error))
    }

    pub(crate) fn div(&self, other: &Self, bits: i64) -> Option<Self> {
        Some(self.mul(&other.inverse(bits)?, bits))
    }

    /// Times a power of two.
    fn scaled(&self, by: i64) -> Self {
        let error = if self.error == NOTHING { NOTHING } else { self.error + by };
        Self::within(self.re.scaled(by), self.im.scaled(by), error)
    }

    fn abs(&self, bits: i64) -> Option<Self> {
        let size = if self.im.is_zero() {
            self.re.abs()
        } else {
            let squares = self.re.mul(&self.re, bits).add(&self.im.mul(&self.im, bits), bits);
            squares.sqrt(bits)?
        };
        let error = errors([self.error, self.high() - bits + 3]);
        Some(Self::within(size, Real::zero(), error))
    }

    pub(crate) fn compare(&self, other: &Self, bits: i64) -> Likeness {
        let difference = self.sub(other, bits);
        if !difference.may_be_zero() {
            return Likeness::Different;
        }
        let mut size = self.high().max(other.high());
        if self.may_be_zero() || other.may_be_zero() {
            size = size.max(0);
        }
        if difference.error <= size - CONFIDENT { Likeness::Same } else { Likeness::Unsure }
    }

    fn exp(&self, bits: i64) -> Option<Self> {
        if self.error > 0 {
            return None;
        }
        let size = self.re.exp(bits)?;
        let magnitude = size.magnitude();
        // The angle's sine and cosine are within 2^-bits, whatever their size.
        let error = errors([magnitude + self.error + 1, magnitude - bits + 4]);
        if self.im.is_zero() {
            return Some(Self::within(size, Real::zero(), error));
        }
        let (sine, cosine) = self.im.sin_cos(bits)?;
        Some(Self::within(size.mul(&cosine, bits), size.mul(&sine, bits), error))
    }

    pub(crate) fn ln(&self, bits: i64) -> Option<Self> {
        if self.may_be_zero() {
            return None;
        }
        let z = self.clone().snapped();
        let re = if z.im.is_zero() {
            z.re.abs().ln(bits)?
        } else {
            let squares = z.re.mul(&z.re, bits).add(&z.im.mul(&z.im, bits), bits);
            squares.ln(bits)?.scaled(-1)
        };
        let im = angle(&z, bits)?;
        let rounding = re.magnitude().max(2) - bits + 4;
        let error = errors([z.error - z.low() + 1, rounding]);
        Some(Self::within(re, im, error))
    }

    pub(crate) fn sin(&self, bits: i64) -> Option<Self> {
        self.waves(bits).map(|(sine, _)| sine)
    }

    fn waves(&self, bits: i64) -> Option<(Self, Self)> {
        if self.im.is_zero() {
            let (sine, cosine) = self.re.sin_cos(bits)?;
            let error = errors([self.error, 2 - bits]);
            let real = |part| Self::within(part, Real::zero(), error);
            return Some((real(sine), real(cosine)));
        }
        let turned = Self::i().mul(self, bits);
        let (a, b) = (turned.exp(bits)?, turned.negated().exp(bits)?);
        let sine = Self::i().negated().mul(&a.sub(&b, bits), bits).scaled(-1);
        Some((sine, a.add(&b, bits).scaled(-1)))
    }

    pub(crate) fn sqrt(&self, bits: i64) -> Option<Self> {
        if self.re.is_zero() && self.im.is_zero() && self.error == NOTHING {
            return Some(self.clone());
        }
        if self.may_be_zero() {
            // |sqrt(a) - sqrt(b)| <= sqrt(|a - b|)
            let error = (self.error + 3).div_euclid(2) + 1;
            return Some(Self::within(Real::zero(), Real::zero(), error));
        }
        let z = self.clone().snapped();
        if !z.im.is_zero() {
            return z.ln(bits)?.scaled(-1).exp(bits);
        }
        let root = z.re.abs().sqrt(bits)?;
        let error = errors([z.error - (z.low() - 1).div_euclid(2), root.magnitude() - bits + 2]);
        Some(if z.re.is_negative() {
            Self::within(Real::zero(), root, error)
        } else {
            Self::within(root, Real::zero(), error)
        })
    }

    /// `self^n`, multiplied out.
    fn whole_power(&self, n: u32, bits: i64) -> Self {
        let (mut power, mut square, mut rest) = (Self::one(), self.clone(), n);
        while rest > 0 {
            if rest % 2 == 1 {
                power = power.mul(&square, bits);
            }
            rest /= 2;
            if rest > 0 {
                square = square.mul(&square, bits);
            }
        }
        power
    }

    /// `self^exponent` for an exponent that is known exactly; nothing for a pole.
    pub(crate) fn to_fraction(&self, exponent: &BigRational, bits: i64) -> Option<Self> {
        if exponent.is_integer()
            && let Some(n) = exponent.numer().abs().to_u32().filter(|n| *n <= MAX_POWER)
        {
            let power = self.whole_power(n, bits);
            return if exponent.is_negative() { power.inverse(bits) } else { Some(power) };
        }
        if *exponent.denom() == BigInt::from(2) && exponent.numer().abs().to_u32() == Some(1) {
            let root = self.sqrt(bits)?;
            return if exponent.is_negative() { root.inverse(bits) } else { Some(root) };
        }
        self.to(&Self::from_ratio(exponent, bits), bits)
    }

    /// `self^exponent`; nothing for a pole.
    pub(crate) fn to(&self, exponent: &Self, bits: i64) -> Option<Self> {
        if self.re.is_zero() && self.im.is_zero() && self.error == NOTHING {
            let positive = !exponent.re.is_negative() && !exponent.may_be_zero();
            return positive.then(|| self.clone());
        }
        self.ln(bits)?.mul(exponent, bits).exp(bits)
    }

    fn asin(&self, bits: i64) -> Option<Self> {
        let one = Self::one();
        let root = one.sub(&self.mul(self, bits), bits).sqrt(bits)?;
        let turned = Self::i().mul(self, bits).add(&root, bits).ln(bits)?;
        Some(Self::i().negated().mul(&turned, bits))
    }

    fn acos(&self, bits: i64) -> Option<Self> {
        let quarter = pi(bits).scaled(-1);
        Some(quarter.sub(&self.asin(bits)?, bits))
    }

    fn atan(&self, bits: i64) -> Option<Self> {
        if self.im.is_zero() {
            let error = errors([self.error, 4 - bits]);
            return Some(Self::within(self.re.atan(bits), Real::zero(), error));
        }
        let turned = Self::i().mul(self, bits);
        let above = Self::one().sub(&turned, bits).ln(bits)?;
        let below = Self::one().add(&turned, bits).ln(bits)?;
        Some(Self::i().mul(&above.sub(&below, bits), bits).scaled(-1))
    }

    fn hyperbolic(&self, bits: i64) -> Option<(Self, Self)> {
        let (a, b) = (self.exp(bits)?, self.negated().exp(bits)?);
        Some((a.sub(&b, bits).scaled(-1), a.add(&b, bits).scaled(-1)))
    }

    /// The whole number below or above; what lies within the error of a whole number is that.
    fn rounded(&self, up: bool) -> Option<BigInt> {
        if !self.may_be_real() || self.error > -8 {
            return None;
        }
        let half = Real::whole(1).scaled(-1);
        let nearest = self.re.add(&half, 8_192).floor()?;
        let whole = Real::from_ratio(&BigRational::from_integer(nearest.clone()), 4_200);
        if self.re.sub(&whole, 8_192).magnitude() <= self.error + 1 {
            return Some(nearest);
        }
        Some(self.re.floor()? + i32::from(up))
    }
}

/// The angle from the positive axis, from -pi to pi.
fn angle(z: &Complex, bits: i64) -> Option<Real> {
    let turn = |angle: Real, negative: bool| if negative { angle.negated() } else { angle };
    if z.im.is_zero() {
        return Some(if z.re.is_negative() { Real::pi(bits) } else { Real::zero() });
    }
    if z.re.abs().compare(&z.im.abs()).is_lt() {
        let rest = z.re.div(&z.im, bits)?.atan(bits);
        let quarter = turn(Real::pi(bits).scaled(-1), z.im.is_negative());
        return Some(quarter.sub(&rest, bits));
    }
    let part = z.im.div(&z.re, bits)?.atan(bits);
    if !z.re.is_negative() {
        return Some(part);
    }
    Some(part.add(&turn(Real::pi(bits), z.im.is_negative()), bits))
}

pub(crate) fn pi(bits: i64) -> Complex {
    Complex::within(Real::pi(bits), Real::zero(), 4 - bits)
}

/// Functions of one number.
pub(crate) fn call(function: Function, z: &Complex, bits: i64) -> Option<Complex> {
    let one = Complex::one();
    let inverse = || one.div(z, bits);
    let over = |(above, below): (Complex, Complex)| above.div(&below, bits);
    let swapped = |(a, b): (Complex, Complex)| (b, a);
    let whole = |n: BigInt| Complex::from_ratio(&BigRational::from_integer(n), bits);
    match function {
        Function::Exp => z.exp(bits),
        Function::Sin => z.sin(bits),
        Function::Cos => z.waves(bits).map(|(_, cosine)| cosine),
        Function::Tan => over(z.waves(bits)?),
        Function::Cot => over(swapped(z.waves(bits)?)),
        Function::Sec => z.waves(bits)?.1.inverse(bits),
        Function::Csc => z.waves(bits)?.0.inverse(bits),
        Function::Asin => z.asin(bits),
        Function::Acos => z.acos(bits),
        Function::Atan => z.atan(bits),
        Function::Acot => inverse()?.atan(bits),
        Function::Asec => inverse()?.acos(bits),
        Function::Acsc => inverse()?.asin(bits),
        Function::Sinh => z.hyperbolic(bits).map(|(sine, _)| sine),
        Function::Cosh => z.hyperbolic(bits).map(|(_, cosine)| cosine),
        Function::Tanh => over(z.hyperbolic(bits)?),
        Function::Asinh => {
            let root = z.mul(z, bits).add(&one, bits).sqrt(bits)?;
            z.add(&root, bits).ln(bits)
        }
        Function::Acosh => {
            let roots = z.add(&one, bits).sqrt(bits)?;
            let roots = roots.mul(&z.sub(&one, bits).sqrt(bits)?, bits);
            z.add(&roots, bits).ln(bits)
        }
        Function::Atanh => {
            let ratio = one.add(z, bits).div(&one.sub(z, bits), bits)?;
            Some(ratio.ln(bits)?.scaled(-1))
        }
        Function::Abs => z.abs(bits),
        Function::Floor => z.rounded(false).map(whole),
        Function::Ceil => z.rounded(true).map(whole),
        _ => None,
    }
}
