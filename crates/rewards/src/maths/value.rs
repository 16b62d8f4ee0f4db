//! What a tree is worth at a point: an exact fraction where arithmetic keeps it one, else a
//! complex double. Bounded in size and steps: beyond the bounds a tree has no value.

use std::cmp::Ordering;
use std::collections::HashMap;

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

use super::complex::{self, Complex};
use super::expr::{Binder, Constant, Expr, Function};

/// Largest numerator or denominator kept exact.
const MAX_BITS: u64 = 4_096;

/// Nodes visited for one value.
const MAX_STEPS: usize = 5_000;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Exact(BigRational),
    Rounded(Complex),
}

impl Value {
    pub(super) fn rounded(&self) -> Complex {
        match self {
            Self::Exact(value) => Complex::new(value.to_f64().unwrap_or(f64::NAN), 0.0),
            Self::Rounded(z) => *z,
        }
    }

    fn exact(&self) -> Option<&BigRational> {
        match self {
            Self::Exact(value) => Some(value),
            Self::Rounded(_) => None,
        }
    }

    fn integer(&self) -> Option<BigInt> {
        self.exact()
            .filter(|value| value.is_integer())
            .map(BigRational::to_integer)
    }
}

/// Values of the variables, and the work that is left.
pub(super) struct Point {
    variables: HashMap<String, Value>,
    steps: usize,
}

/// The value of a tree without variables.
pub(super) fn constant(expr: &Expr) -> Option<Value> {
    evaluate(expr, HashMap::new())
}

/// The value of a tree where the variables are these.
pub(super) fn evaluate(expr: &Expr, variables: HashMap<String, Value>) -> Option<Value> {
    let mut point = Point {
        variables,
        steps: MAX_STEPS,
    };
    point.value(expr)
}

/// Whether an expression is plus infinity; nothing where it is finite.
pub(super) fn infinite(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Constant(Constant::Infinity) => Some(true),
        Expr::Mul(parts) if parts.contains(&Expr::Constant(Constant::Infinity)) => {
            Some(!parts.contains(&Expr::integer(-1)))
        }
        _ => None,
    }
}

/// How two trees without variables are ordered, where both are real.
pub(super) fn order(a: &Expr, b: &Expr) -> Option<Ordering> {
    let side = |expr: &Expr| match infinite(expr) {
        Some(true) => Some(Value::Rounded(Complex::new(f64::INFINITY, 0.0))),
        Some(false) => Some(Value::Rounded(Complex::new(f64::NEG_INFINITY, 0.0))),
        None => constant(expr),
    };
    let (a, b) = (side(a)?, side(b)?);
    if let (Value::Exact(a), Value::Exact(b)) = (&a, &b) {
        return Some(a.cmp(b));
    }
    let (a, b) = (a.rounded(), b.rounded());
    (a.im.abs() < 1e-9 && b.im.abs() < 1e-9)
        .then(|| a.re.partial_cmp(&b.re))
        .flatten()
}

fn fits(value: BigRational) -> Option<Value> {
    let small = value.numer().bits().max(value.denom().bits()) <= MAX_BITS;
    Some(if small {
        Value::Exact(value)
    } else {
        finite(Complex::new(value.to_f64()?, 0.0))?
    })
}

fn finite(z: Complex) -> Option<Value> {
    (z.re.is_finite() && z.im.is_finite()).then_some(Value::Rounded(z))
}

impl Point {
    fn value(&mut self, expr: &Expr) -> Option<Value> {
        self.steps = self.steps.checked_sub(1)?;
        match expr {
            Expr::Number(n) => fits(n.value.clone()),
            Expr::Symbol(name) => self.variables.get(name).cloned(),
            Expr::Constant(constant) => named(*constant),
            Expr::Percent(inner) => {
                let hundredth = BigRational::new(1.into(), 100.into());
                multiplied(self.value(inner)?, Value::Exact(hundredth))
            }
            Expr::Add(parts) => {
                let mut total = Value::Exact(BigRational::zero());
                for part in parts {
                    total = added(total, self.value(part)?)?;
                }
                Some(total)
            }
            Expr::Mul(parts) => {
                let mut total = Value::Exact(BigRational::one());
                for part in parts {
                    total = multiplied(total, self.value(part)?)?;
                }
                Some(total)
            }
            Expr::Pow(pair) => raised(self.value(&pair.0)?, self.value(&pair.1)?),
            Expr::Call(function, arguments) => self.call(*function, arguments),
            Expr::Apply(name, arguments) => self.unknown(name, arguments),
            Expr::Bound(binder, body, variable, ends) => self.bound(*binder, body, variable, ends),
            _ => None,
        }
    }

    /// A function of which only the name is known: any fixed function will do to compare by.
    fn unknown(&mut self, name: &str, arguments: &[Expr]) -> Option<Value> {
        let mut seed = 1.0;
        for byte in name.bytes() {
            seed = (seed * 31.0 + f64::from(byte)) % 1009.0;
        }
        let mut total = Complex::new(seed / 997.0, 0.0);
        for (i, argument) in arguments.iter().enumerate() {
            let value = self.value(argument)?.rounded();
            let weight = Complex::new(0.37 + 0.29 * i as f64, 0.0);
            total = total.add(complex::sin(value.mul(weight).add(total)));
        }
        finite(total)
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
            let here = Value::Exact(BigRational::from_integer(at.into()));
            self.variables.insert(variable.to_owned(), here);
            total = total
                .zip(self.value(body))
                .and_then(|(total, term)| match binder {
                    Binder::Sum => added(total, term),
                    _ => multiplied(total, term),
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
        let mut total = Complex::new(0.1 + 0.7 * binder as usize as f64, 0.0);
        for (end, weight) in [(&ends.0, 0.31), (&ends.1, 0.53)] {
            let end = match end {
                Expr::Set(_) => Complex::new(0.77, 0.0),
                other if infinite(other).is_some() => Complex::new(1.93, weight),
                other => self.value(other)?.rounded(),
            };
            total = total.add(complex::sin(end.mul(Complex::new(weight, 0.0))));
        }
        let outer = self.variables.remove(variable);
        let mut parts = Some(total);
        for at in [13, 29] {
            let here = BigRational::new(at.into(), 17.into());
            self.variables
                .insert(variable.to_owned(), Value::Exact(here));
            let weight = Complex::new(f64::from(at) / 41.0, 0.0);
            parts = parts
                .zip(self.value(body))
                .map(|(total, part)| total.add(part.rounded().mul(weight)));
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
        let values: Vec<Value> = arguments
            .iter()
            .map(|argument| self.value(argument))
            .collect::<Option<_>>()?;
        match (function, values.as_slice()) {
            (Function::Abs, [Value::Exact(x)]) => Some(Value::Exact(x.abs())),
            (Function::Floor, [Value::Exact(x)]) => Some(Value::Exact(x.floor())),
            (Function::Ceil, [Value::Exact(x)]) => Some(Value::Exact(x.ceil())),
            (Function::Factorial, [x]) => factorial(&x.integer()?),
            (Function::Binomial, [n, k]) => binomial(&n.integer()?, &k.integer()?),
            (Function::Gcd | Function::Lcm, values) => {
                let numbers: Option<Vec<BigInt>> = values.iter().map(Value::integer).collect();
                let joined = numbers?.into_iter().reduce(|a, b| match function {
                    Function::Gcd => a.gcd(&b),
                    _ => a.lcm(&b),
                })?;
                fits(BigRational::from_integer(joined))
            }
            (Function::Max | Function::Min, values) => values.iter().cloned().reduce(|a, b| {
                let larger = a.rounded().re >= b.rounded().re;
                if larger == (function == Function::Max) {
                    a
                } else {
                    b
                }
            }),
            (Function::Mod, [a, b]) => {
                let (a, b) = (a.exact()?, b.exact()?);
                if b.is_zero() {
                    return None;
                }
                fits(a - b * (a / b).floor())
            }
            (Function::Log, [x, base]) => {
                let base = complex::ln(base.rounded());
                finite(complex::ln(x.rounded()).div(base))
            }
            (_, [x]) => finite(complex::call(function, x.rounded())?),
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
        determinant(&values)
    }
}

fn determinant(rows: &[Vec<Value>]) -> Option<Value> {
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
        let term = multiplied(multiplied(sign, entry.clone())?, determinant(&minor)?)?;
        total = added(total, term)?;
    }
    Some(total)
}

fn named(constant: Constant) -> Option<Value> {
    let z = match constant {
        Constant::Pi => Complex::new(std::f64::consts::PI, 0.0),
        Constant::E => Complex::new(std::f64::consts::E, 0.0),
        Constant::I => Complex::new(0.0, 1.0),
        Constant::EulerGamma => Complex::new(0.577_215_664_901_532_9, 0.0),
        Constant::Infinity => return None,
    };
    Some(Value::Rounded(z))
}

fn added(a: Value, b: Value) -> Option<Value> {
    match (&a, &b) {
        (Value::Exact(a), Value::Exact(b)) => fits(a + b),
        _ => finite(a.rounded().add(b.rounded())),
    }
}

fn multiplied(a: Value, b: Value) -> Option<Value> {
    match (&a, &b) {
        (Value::Exact(a), Value::Exact(b)) => fits(a * b),
        _ => finite(a.rounded().mul(b.rounded())),
    }
}

fn raised(base: Value, exponent: Value) -> Option<Value> {
    if let (Value::Exact(base), Value::Exact(exponent)) = (&base, &exponent) {
        if base.is_zero() && !exponent.is_positive() {
            return exponent.is_zero().then(|| Value::Exact(BigRational::one()));
        }
        let bits = base.numer().bits().max(base.denom().bits());
        if let Some(n) = exponent.is_integer().then(|| exponent.to_i32()).flatten()
            && u64::from(n.unsigned_abs()).saturating_mul(bits) <= MAX_BITS
        {
            let power = Pow::pow(base.clone(), n.unsigned_abs());
            return fits(if n < 0 { power.recip() } else { power });
        }
        if let Some(root) = exact_root(base, exponent) {
            return Some(Value::Exact(root));
        }
    }
    finite(complex::pow(base.rounded(), exponent.rounded())?)
}

/// `4^(1/2)` is exactly 2.
fn exact_root(base: &BigRational, exponent: &BigRational) -> Option<BigRational> {
    let degree = exponent
        .denom()
        .to_u32()
        .filter(|degree| (2..=8).contains(degree))?;
    if exponent.numer().abs() != BigInt::one() || !base.is_positive() {
        return None;
    }
    let (above, below) = (base.numer().nth_root(degree), base.denom().nth_root(degree));
    let exact = BigInt::pow(&above, degree) == *base.numer()
        && BigInt::pow(&below, degree) == *base.denom();
    let root = BigRational::new(above, below);
    exact.then(|| {
        if exponent.is_negative() {
            root.recip()
        } else {
            root
        }
    })
}

fn factorial(n: &BigInt) -> Option<Value> {
    let n = n.to_u32().filter(|n| *n <= 400)?;
    let product = (1..=n).fold(BigInt::one(), |product, k| product * k);
    fits(BigRational::from_integer(product))
}

fn binomial(n: &BigInt, k: &BigInt) -> Option<Value> {
    let (n, k) = (n.to_i64()?, k.to_i64()?);
    if !(0..=10_000).contains(&n) || k > 10_000 {
        return None;
    }
    let mut result = BigInt::from(i32::from((0..=n).contains(&k)));
    for step in 0..k.min(n - k).max(0) {
        result = result * (n - step) / (step + 1);
        if result.bits() > MAX_BITS {
            return None;
        }
    }
    fits(BigRational::from_integer(result))
}
