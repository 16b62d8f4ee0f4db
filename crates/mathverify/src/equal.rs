//! Equality by value: exact where arithmetic keeps fractions, else at fixed points of the
//! variables drawn from a seeded sequence. Numbers are told apart by few digits and found equal by
//! many.

use std::collections::{BTreeSet, HashMap};

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed};

use crate::complex::Likeness;
use crate::expr::Expr;
use crate::value::{BITS, HIGH_BITS, LOW_BITS, Value, constant, evaluate, infinite};
use crate::work::Work;

/// Points that two expressions are compared at.
const POINTS: usize = 6;

/// Points at which they must agree to all digits.
const ENOUGH: usize = 2;

/// Decimals are equal when they agree after rounding to this many places.
const DECIMAL_PLACES: u32 = 6;

/// Whether both have the same value wherever both have one.
pub(crate) fn same_value(a: &Expr, b: &Expr, work: &Work) -> bool {
    if a == b {
        return true;
    }
    let names = names_of(&[a, b]);
    if let (Expr::Matrix(_), _) | (_, Expr::Matrix(_)) = (a, b) {
        return false;
    }
    if names.is_empty() && (infinite(a).is_some() || infinite(b).is_some()) {
        return infinite(a) == infinite(b);
    }
    everywhere(&names, |index, bits| {
        let value = |expr| evaluate(expr, point(&names, index), bits, work);
        let (a, b) = (value(a)?, value(b)?);
        Some((a.compare(&b, bits), is_exact(&a) && is_exact(&b)))
    })
}

fn is_exact(value: &Value) -> bool {
    value.exact().is_some()
}

/// Whether `like` finds no difference at any point, and sameness at [`ENOUGH`]. It is given the
/// number of the point and the precision, and answers with whether more precision changes nothing.
fn everywhere(
    names: &BTreeSet<String>,
    like: impl Fn(usize, i64) -> Option<(Likeness, bool)>,
) -> bool {
    let (points, enough) = if names.is_empty() { (1, 1) } else { (POINTS, ENOUGH) };
    let mut unsettled = Vec::new();
    let mut same = 0;
    for index in 0..points {
        match like(index, LOW_BITS) {
            Some((Likeness::Different, _)) => return false,
            Some((Likeness::Same, true)) => same += 1,
            Some(_) => unsettled.push(index),
            None => {}
        }
    }
    for index in unsettled {
        if same >= enough {
            break;
        }
        for bits in [BITS, HIGH_BITS] {
            match like(index, bits) {
                Some((Likeness::Different, _)) => return false,
                Some((Likeness::Same, _)) => same += 1,
                Some((Likeness::Unsure, _)) => continue,
                None => {}
            }
            break;
        }
    }
    same >= enough
}

/// The sign of the constant factor between two expressions of variables, where there is one.
pub(crate) fn proportional(a: &Expr, b: &Expr, work: &Work) -> Option<bool> {
    let names = names_of(&[a, b]);
    if names.is_empty() || names_of(&[a]) != names_of(&[b]) {
        return None;
    }
    let values = |index, bits| {
        let value = |expr| evaluate(expr, point(&names, index), bits, work);
        value(a).zip(value(b))
    };
    let ratio = |index, bits| match values(index, bits)? {
        (Value::Exact(a), Value::Exact(b)) => (!is_zero(&b)).then(|| Value::Exact(a / b)),
        (a, b) => {
            let ratio = a.rounded(bits).div(&b.rounded(bits), bits)?;
            Some(Value::Rounded(ratio))
        }
    };
    // The first point that has a ratio; not the first alone, which may be a pole.
    let (first, factor) = (0..POINTS).find_map(|i| Some((i, ratio(i, LOW_BITS)?)))?;
    let real = factor.rounded(LOW_BITS);
    if !real.may_be_real() || real.re.is_zero() {
        return None;
    }
    let same = everywhere(&names, |index, bits| {
        let (known, here) = (ratio(first, bits)?, ratio(index, bits)?);
        let exact = is_exact(&known) && is_exact(&here);
        Some((here.compare(&known, bits), exact))
    });
    same.then(|| !real.re.is_negative())
}

fn is_zero(value: &BigRational) -> bool {
    !value.is_positive() && !value.is_negative()
}

/// Numbers to sort the elements of a set by: the value at a fixed point.
pub(crate) fn sort_key(expr: &Expr, work: &Work) -> Vec<f64> {
    match expr {
        Expr::Tuple(items) => items.iter().flat_map(|item| sort_key(item, work)).collect(),
        Expr::Interval { ends, .. } => {
            let mut key = sort_key(&ends.0, work);
            key.extend(sort_key(&ends.1, work));
            key
        }
        // `\text{13}` equals 13: it has its place.
        Expr::Symbol(name) if name.parse::<i64>().is_ok() => {
            vec![name.parse().unwrap_or(f64::INFINITY), 0.0]
        }
        _ => {
            let names = names_of(&[expr]);
            let value = evaluate(expr, point(&names, 0), LOW_BITS, work);
            let value = value.map(|value| value.rounded(LOW_BITS));
            let z = value.map_or((f64::INFINITY, 0.0), |z| (z.re.to_f64(), z.im.to_f64()));
            // Equal values reached by other ways must get equal keys.
            let coarse = |x: f64| (x * 1e9).round() / 1e9;
            vec![coarse(z.0), coarse(z.1)]
        }
    }
}

/// Whether both round to the same decimal.
pub(crate) fn decimal_places_equal(a: &Expr, b: &Expr, work: &Work) -> bool {
    let rounded = |expr: &Expr| match constant(expr, BITS, work)? {
        Value::Exact(value) => Some(half_even(&value)),
        Value::Rounded(z) if z.may_be_real() => Some(half_even(&z.re.to_ratio()?)),
        Value::Rounded(_) => None,
    };
    matches!((rounded(a), rounded(b)), (Some(a), Some(b)) if a == b)
}

/// `value` in units of the last decimal place, halves to the even one.
fn half_even(value: &BigRational) -> BigInt {
    let scaled = value * BigRational::from_integer(BigInt::from(10).pow(DECIMAL_PLACES));
    let below = scaled.floor().to_integer();
    let half = BigRational::new(BigInt::one(), BigInt::from(2));
    let rest = scaled - BigRational::from_integer(below.clone());
    let up = rest > half || (rest == half && below.bit(0));
    below + BigInt::from(i32::from(up))
}

/// The names of the variables of expressions.
pub(crate) fn names_of(exprs: &[&Expr]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    exprs.iter().for_each(|expr| variables(expr, &mut names));
    names
}

/// The names of the variables of an expression.
fn variables(expr: &Expr, names: &mut BTreeSet<String>) {
    match expr {
        Expr::Symbol(name) => {
            names.insert(name.clone());
        }
        Expr::Percent(inner) => variables(inner, names),
        Expr::Add(parts) | Expr::Mul(parts) | Expr::Call(_, parts) | Expr::Apply(_, parts) => {
            parts.iter().for_each(|part| variables(part, names));
        }
        Expr::Pow(pair) => {
            variables(&pair.0, names);
            variables(&pair.1, names);
        }
        Expr::Bound(_, body, variable, ends) => {
            let outer = names.contains(variable);
            variables(body, names);
            if !outer {
                names.remove(variable);
            }
            variables(&ends.0, names);
            variables(&ends.1, names);
        }
        Expr::Matrix(rows) => rows.iter().flatten().for_each(|entry| variables(entry, names)),
        _ => {}
    }
}

/// Point `index`: fractions of small numbers, some of them negative, the same in every run.
fn point(names: &BTreeSet<String>, index: usize) -> HashMap<String, Value> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1);
    names
        .iter()
        .map(|name| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let draw = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
            let above = i64::try_from(draw % 1999).unwrap_or(1) + 2;
            let sign = if index % 3 == 2 && draw & 0x1_0000 != 0 { -1 } else { 1 };
            let value = BigRational::new((sign * above).into(), 997.into());
            (name.clone(), Value::Exact(value))
        })
        .collect()
}
