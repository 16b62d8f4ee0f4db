//! The budget of arithmetic for one comparison.

use std::cell::Cell;

use num_bigint::BigInt;
use num_rational::BigRational;

/// About 5 ms on a core of 2024, in units of a nanosecond.
const FOR_A_COMPARISON: u64 = 5_000_000;

/// For the ends of intervals, which are ordered while an answer is read.
const FOR_READING: u64 = 500_000;

/// The budget left; without any an expression has no value.
pub(crate) struct Work(Cell<u64>);

impl Work {
    pub(crate) fn for_a_comparison() -> Self {
        Self(Cell::new(FOR_A_COMPARISON))
    }

    pub(crate) fn for_reading() -> Self {
        Self(Cell::new(FOR_READING))
    }

    /// Spends `cost`; `None` where that is more than is left.
    pub(crate) fn spend(&self, cost: u64) -> Option<()> {
        let left = self.0.get().checked_sub(cost);
        self.0.set(left.unwrap_or(0));
        left.map(drop)
    }

    /// Arithmetic with fractions: their common divisors cost the square of their length.
    pub(crate) fn spend_on_fractions(&self, a: &BigRational, b: &BigRational) -> Option<()> {
        let bits = |x: &BigRational| x.numer().bits() + x.denom().bits();
        let bits = bits(a) + bits(b);
        self.spend(400 + bits * bits / 20)
    }

    /// A sum or product of integers.
    pub(crate) fn spend_on_integers(&self, a: &BigInt, b: &BigInt) -> Option<()> {
        let words = |x: &BigInt| x.bits() / 64 + 1;
        self.spend(100 + words(a) * words(b))
    }

    /// A sum, product or quotient of complex numbers.
    pub(crate) fn spend_on_product(&self, bits: i64) -> Option<()> {
        self.spend(400 + bits.unsigned_abs() * 2)
    }

    /// A function of a complex number.
    pub(crate) fn spend_on_function(&self, bits: i64) -> Option<()> {
        let bits = bits.unsigned_abs();
        self.spend(5_000 + bits * bits / 4)
    }
}
