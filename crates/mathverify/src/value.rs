//! The value of an expression at a point: an exact fraction where arithmetic keeps it one, else a complex
//! number with a bound on its error. Bounded in size and work: beyond the bounds a tree has no value.

use std::cmp::Ordering;
use std::collections::HashMap;

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

use crate::complex::{self, Complex, Likeness};
use crate::expr::{Binder, Constant, Expr, Function};
use crate::real::Real;
use crate::work::Work;

/// Largest numerator or denominator kept exact.
const MAX_BITS: u64 = 4_096;

/// Precision that tells most numbers apart.
pub(crate) const LOW_BITS: i64 = 128;

/// Precision at which numbers must agree to be equal.
pub(crate) const BITS: i64 = 384;

/// Precision for what cancels.
pub(crate) const HIGH_BITS: i64 = 1_152;

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Exact(BigRational),
    Rounded(Complex),
}

impl Value {
    pub(crate) fn rounded(&self, bits: i64) -> Complex {
        match self {
            Self::Exact(value) => Complex::from_ratio(value, bits),
            Self::Rounded(z) => z.clone(),
        }
    }

    pub(crate) fn exact(&self) -> Option<&BigRational> {
        match self {
            Self::Exact(value) => Some(value),
            Self::Rounded(_) => None,
        }
    }

    pub(crate) fn integer(&self) -> Option<BigInt> {
        self.exact().filter(|value| value.is_integer()).map(BigRational::to_integer)
    }

    pub(crate) fn compare(&self, other: &Self, bits: i64) -> Likeness {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) if a == b => Likeness::Same,
            (Self::Exact(_), Self::Exact(_)) => Likeness::Different,
            _ => self.rounded(bits).compare(&other.rounded(bits), bits),
        }
    }
}

type Operation<T> = fn(&T, &T) -> T;

/// Values of the variables, the precision, and the work that is left.
struct Point<'a> {
    variables: HashMap<String, Value>,
    bits: i64,
    work: &'a Work,
}

/// The value of a tree without variables.
pub(crate) fn constant(expr: &Expr, bits: i64, work: &Work) -> Option<Value> {
    evaluate(expr, HashMap::new(), bits, work)
}

/// The value of a tree where the variables are these.
pub(crate) fn evaluate(
    expr: &Expr,
    variables: HashMap<String, Value>,
    bits: i64,
    work: &Work,
) -> Option<Value> {
    let mut point = Point { variables, bits, work };
    point.value(expr)
}

/// Whether an expression is plus infinity; nothing where it is finite.
pub(crate) fn infinite(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Constant(Constant::Infinity) => Some(true),
        Expr::Mul(parts) if parts.contains(&Expr::Constant(Constant::Infinity)) => {
            Some(!parts.contains(&Expr::integer(-1)))
        }
        _ => None,
    }
}

/// How two trees without variables are ordered, where both are real.
pub(crate) fn order(a: &Expr, b: &Expr, work: &Work) -> Option<Ordering> {
    match (infinite(a), infinite(b)) {
        (Some(a), Some(b)) => return Some(a.cmp(&b)),
        (Some(above), None) => {
            constant(b, LOW_BITS, work)?;
            return Some(if above { Ordering::Greater } else { Ordering::Less });
        }
        (None, Some(above)) => {
            constant(a, LOW_BITS, work)?;
            return Some(if above { Ordering::Less } else { Ordering::Greater });
        }
        (None, None) => {}
    }
    for bits in [LOW_BITS, BITS] {
        let (a, b) = (constant(a, bits, work)?, constant(b, bits, work)?);
        if let (Value::Exact(a), Value::Exact(b)) = (&a, &b) {
            return Some(a.cmp(b));
        }
        let likeness = a.compare(&b, bits);
        let (a, b) = (a.rounded(bits), b.rounded(bits));
        if !a.may_be_real() || !b.may_be_real() {
            return None;
        }
        match likeness {
            Likeness::Different => return Some(a.re.compare(&b.re)),
            Likeness::Same => return Some(Ordering::Equal),
            Likeness::Unsure => {}
        }
    }
    None
}

fn finite(z: Complex) -> Option<Value> {
    z.is_within_bounds().then_some(Value::Rounded(z))
}

impl Point<'_> {
    fn value(&mut self, expr: &Expr) -> Option<Value> {
        self.work.spend(50)?;
        match expr {
            Expr::Number(n) => self.fits(n.value.clone()),
            Expr::Symbol(name) => self.variables.get(name).cloned(),
            Expr::Constant(constant) => self.named(*constant),
            Expr::Percent(inner) => {
                let hundredth = BigRational::new(1.into(), 100.into());
                let inner = self.value(inner)?;
                self.multiplied(inner, Value::Exact(hundredth))
            }
            Expr::Add(parts) => {
                let mut total = Value::Exact(BigRational::zero());
                for part in parts {
                    let part = self.value(part)?;
                    total = self.added(total, part)?;
                }
                Some(total)
            }
            Expr::Mul(parts) => {
                let mut total = Value::Exact(BigRational::one());
                for part in parts {
                    let part = self.value(part)?;
                    total = self.multiplied(total, part)?;
                }
                Some(total)
            }
            Expr::Pow(pair) => {
                let (base, exponent) = (self.value(&pair.0)?, self.value(&pair.1)?);
                self.raised(&base, &exponent)
            }
            Expr::Call(function, arguments) => self.call(*function, arguments),
            Expr::Apply(name, arguments) => self.unknown(name, arguments),
            Expr::Bound(binder, body, variable, ends) => self.bound(*binder, body, variable, ends),
            _ => None,
        }
    }

    /// A function of which only the name is known: any fixed function will do to compare by.
    fn unknown(&mut self, name: &str, arguments: &[Expr]) -> Option<Value> {
        let mut seed = 1;
        for byte in name.bytes() {
            seed = (seed * 31 + i64::from(byte)) % 1009;
        }
        let mut total = Complex::fraction(seed, 997, self.bits);
        for (at, argument) in (0i64..).zip(arguments) {
            let value = self.value(argument)?.rounded(self.bits);
            total = self.stirred(&total, &value, 37 + 29 * at)?;
        }
        finite(total)
    }

    /// A sum that no other argument or weight gives.
    fn stirred(&self, total: &Complex, value: &Complex, hundredths: i64) -> Option<Complex> {
        self.work.spend_on_function(self.bits)?;
        let weight = Complex::fraction(hundredths, 100, self.bits);
        let inside = value.mul(&weight, self.bits).add(total, self.bits);
        Some(total.add(&inside.sin(self.bits)?, self.bits))
    }

    fn bound(
        &mut self,
        binder: Binder,
        body: &Expr,
        variable: &str,
        ends: &(Expr, Expr),
    ) -> Option<Value> {
        let whole = |value: Option<Value>| value?.integer()?.to_i64();
        let range = whole(self.value(&ends.0)).zip(whole(self.value(&ends.1)));
        let Some((from, to)) = range.filter(|_| matches!(binder, Binder::Sum | Binder::Product))
        else {
            return self.by_form(binder, body, variable, ends);
        };
        let outer = self.variables.remove(variable);
        let start = i64::from(binder == Binder::Product);
        let mut total = Some(Value::Exact(BigRational::from_integer(start.into())));
        let mut at = from;
        while at <= to && total.is_some() {
            total = self.work.spend(300).and(total);
            let here = Value::Exact(BigRational::from_integer(at.into()));
            self.variables.insert(variable.to_owned(), here);
            total = total.zip(self.value(body)).and_then(|(total, term)| match binder {
                Binder::Sum => self.added(total, term),
                _ => self.multiplied(total, term),
            });
            at += 1;
        }
        self.variables.remove(variable);
        if let Some(outer) = outer {
            self.variables.insert(variable.to_owned(), outer);
        }
        total
    }

    /// What cannot be worked out stands for its parts: equal parts give equal values.
    fn by_form(
        &mut self,
        binder: Binder,
        body: &Expr,
        variable: &str,
        ends: &(Expr, Expr),
    ) -> Option<Value> {
        let bits = self.bits;
        let mut total = Complex::fraction(1 + 7 * binder as i64, 10, bits);
        for (end, weight) in [(&ends.0, 31), (&ends.1, 53)] {
            let end = match end {
                Expr::Set(_) => Complex::fraction(77, 100, bits),
                other if infinite(other).is_some() => Complex::fraction(193 + weight, 100, bits),
                other => self.value(other)?.rounded(bits),
            };
            total = self.stirred(&total, &end, weight)?;
        }
        let outer = self.variables.remove(variable);
        let mut parts = Some(total);
        for at in [13i64, 29] {
            let here = BigRational::new(at.into(), 17.into());
            self.variables.insert(variable.to_owned(), Value::Exact(here));
            let weight = Complex::fraction(at, 41, bits);
            parts = parts
                .zip(self.value(body))
                .map(|(total, part)| total.add(&part.rounded(bits).mul(&weight, bits), bits));
        }
        self.variables.remove(variable);
        if let Some(outer) = outer {
            self.variables.insert(variable.to_owned(), outer);
        }
        finite(parts?)
    }

    fn call(&mut self, function: Function, arguments: &[Expr]) -> Option<Value> {
        if let (Function::Det, [Expr::Matrix(rows)]) = (function, arguments) {
            return self.determinant(rows);
        }
        let values: Vec<Value> =
            arguments.iter().map(|argument| self.value(argument)).collect::<Option<_>>()?;
        match (function, values.as_slice()) {
            (Function::Abs, [Value::Exact(x)]) => Some(Value::Exact(x.abs())),
            (Function::Floor, [Value::Exact(x)]) => Some(Value::Exact(x.floor())),
            (Function::Ceil, [Value::Exact(x)]) => Some(Value::Exact(x.ceil())),
            (Function::Factorial, [x]) => self.fits(factorial(&x.integer()?)?),
            (Function::Binomial, [n, k]) => self.binomial(&n.integer()?, &k.integer()?),
            (Function::Gcd | Function::Lcm, values) => {
                let numbers: Option<Vec<BigInt>> = values.iter().map(Value::integer).collect();
                let joined = numbers?.into_iter().reduce(|a, b| match function {
                    Function::Gcd => a.gcd(&b),
                    _ => a.lcm(&b),
                })?;
                self.fits(BigRational::from_integer(joined))
            }
            (Function::Max | Function::Min, values) => values.iter().cloned().reduce(|a, b| {
                let (first, second) = (a.rounded(self.bits).re, b.rounded(self.bits).re);
                let larger = first.compare(&second).is_ge();
                if larger == (function == Function::Max) { a } else { b }
            }),
            (Function::Mod, [a, b]) => {
                let (a, b) = (a.exact()?, b.exact()?);
                if b.is_zero() {
                    return None;
                }
                self.fits(a - b * (a / b).floor())
            }
            (Function::Log, [x, base]) => {
                self.work.spend_on_function(self.bits)?;
                self.work.spend_on_function(self.bits)?;
                let log = |x: &Value| x.rounded(self.bits).ln(self.bits);
                finite(log(x)?.div(&log(base)?, self.bits)?)
            }
            (_, [x]) => {
                self.work.spend_on_function(self.bits)?;
                let value = complex::call(function, &x.rounded(self.bits), self.bits)?;
                finite(value)
            }
            _ => None,
        }
    }

    /// Laplace for small matrices; larger ones have no value.
    fn determinant(&mut self, rows: &[Vec<Expr>]) -> Option<Value> {
        let size = rows.len();
        if size > 5 || rows[0].len() != size {
            return None;
        }
        let mut values = Vec::with_capacity(size);
        for row in rows {
            let row: Option<Vec<Value>> = row.iter().map(|entry| self.value(entry)).collect();
            values.push(row?);
        }
        self.minors(&values)
    }

    fn minors(&self, rows: &[Vec<Value>]) -> Option<Value> {
        let Some((first, below)) = rows.split_first() else {
            return Some(Value::Exact(BigRational::one()));
        };
        let mut total = Value::Exact(BigRational::zero());
        for (column, entry) in first.iter().enumerate() {
            let minor: Vec<Vec<Value>> = below
                .iter()
                .map(|row| {
                    let mut row = row.clone();
                    row.remove(column);
                    row
                })
                .collect();
            let sign = if column % 2 == 0 { 1 } else { -1 };
            let sign = Value::Exact(BigRational::from_integer(sign.into()));
            let signed = self.multiplied(sign, entry.clone())?;
            let term = self.multiplied(signed, self.minors(&minor)?)?;
            total = self.added(total, term)?;
        }
        Some(total)
    }

    /// Exact where it is short.
    fn fits(&self, value: BigRational) -> Option<Value> {
        if value.numer().bits().max(value.denom().bits()) <= MAX_BITS {
            return Some(Value::Exact(value));
        }
        finite(Complex::from_ratio(&value, self.bits))
    }

    fn named(&self, constant: Constant) -> Option<Value> {
        let real = |value| Complex::within(value, Real::zero(), 4 - self.bits);
        let z = match constant {
            Constant::Pi => complex::pi(self.bits),
            Constant::E => {
                self.work.spend_on_function(self.bits)?;
                real(Real::whole(1).exp(self.bits)?)
            }
            Constant::I => Complex::exact(Real::zero(), Real::whole(1)),
            Constant::EulerGamma => real(Real::euler_gamma(self.bits)),
            Constant::Infinity => return None,
        };
        Some(Value::Rounded(z))
    }

    fn added(&self, a: Value, b: Value) -> Option<Value> {
        if let (Value::Exact(a), Value::Exact(b)) = (&a, &b) {
            return self.fits(self.exactly(a, b, (|a, b| a + b, |a, b| a + b))?);
        }
        self.work.spend_on_product(self.bits)?;
        finite(a.rounded(self.bits).add(&b.rounded(self.bits), self.bits))
    }

    fn multiplied(&self, a: Value, b: Value) -> Option<Value> {
        if let (Value::Exact(a), Value::Exact(b)) = (&a, &b) {
            return self.fits(self.exactly(a, b, (|a, b| a * b, |a, b| a * b))?);
        }
        self.work.spend_on_product(self.bits)?;
        finite(a.rounded(self.bits).mul(&b.rounded(self.bits), self.bits))
    }

    /// A sum or product; integers have no common divisors to look for.
    fn exactly(
        &self,
        a: &BigRational,
        b: &BigRational,
        (of_integers, of_fractions): (Operation<BigInt>, Operation<BigRational>),
    ) -> Option<BigRational> {
        if a.is_integer() && b.is_integer() {
            self.work.spend_on_integers(a.numer(), b.numer())?;
            let result = of_integers(a.numer(), b.numer());
            return Some(BigRational::from_integer(result));
        }
        self.work.spend_on_fractions(a, b)?;
        Some(of_fractions(a, b))
    }

    fn raised(&self, base: &Value, exponent: &Value) -> Option<Value> {
        if let (Value::Exact(base), Value::Exact(exponent)) = (base, exponent) {
            if base.is_zero() && !exponent.is_positive() {
                return exponent.is_zero().then(|| Value::Exact(BigRational::one()));
            }
            let bits = base.numer().bits().max(base.denom().bits());
            if let Some(n) = exponent.is_integer().then(|| exponent.to_i32()).flatten()
                && u64::from(n.unsigned_abs()).saturating_mul(bits) <= MAX_BITS
            {
                self.work.spend_on_fractions(base, exponent)?;
                self.work.spend(u64::from(n.unsigned_abs()) * bits)?;
                let power = Pow::pow(base.clone(), n.unsigned_abs());
                return self.fits(if n < 0 { power.recip() } else { power });
            }
            self.work.spend(bits * bits / 10)?;
            if let Some(root) = exact_root(base, exponent) {
                return Some(Value::Exact(root));
            }
        }
        // A logarithm and an exponential.
        self.work.spend_on_function(self.bits)?;
        self.work.spend_on_function(self.bits)?;
        let rounded = base.rounded(self.bits);
        finite(match exponent {
            Value::Exact(exponent) => rounded.to_fraction(exponent, self.bits)?,
            Value::Rounded(exponent) => rounded.to(exponent, self.bits)?,
        })
    }

    fn binomial(&self, n: &BigInt, k: &BigInt) -> Option<Value> {
        let (n, k) = (n.to_i64()?, k.to_i64()?);
        if !(0..=10_000).contains(&n) || k > 10_000 {
            return None;
        }
        let mut result = BigInt::from(i32::from((0..=n).contains(&k)));
        for step in 0..k.min(n - k).max(0) {
            self.work.spend(100 + result.bits() / 10)?;
            result = result * (n - step) / (step + 1);
            if result.bits() > MAX_BITS {
                return None;
            }
        }
        self.fits(BigRational::from_integer(result))
    }
}

/// `4^(1/2)` is exactly 2.
fn exact_root(base: &BigRational, exponent: &BigRational) -> Option<BigRational> {
    let degree = exponent.denom().to_u32().filter(|degree| (2..=8).contains(degree))?;
    if exponent.numer().abs() != BigInt::one() || !base.is_positive() {
        return None;
    }
    let (above, below) = (base.numer().nth_root(degree), base.denom().nth_root(degree));
    let exact = BigInt::pow(&above, degree) == *base.numer()
        && BigInt::pow(&below, degree) == *base.denom();
    let root = BigRational::new(above, below);
    exact.then(|| if exponent.is_negative() { root.recip() } else { root })
}

fn factorial(n: &BigInt) -> Option<BigRational> {
    let n = n.to_u32().filter(|n| *n <= 400)?;
    let product = (1..=n).fold(BigInt::one(), |product, k| product * k);
    Some(BigRational::from_integer(product))
}
