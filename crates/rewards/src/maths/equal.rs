//! Equality by value: exact where arithmetic keeps fractions, else at fixed points of the
//! variables drawn from a seeded sequence.

use std::collections::{BTreeSet, HashMap};

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::One;

use super::expr::Expr;
use super::value::{Value, constant, evaluate, infinite};

/// Points that two expressions are compared at.
const POINTS: usize = 6;

/// Points that must have a value for the comparison to count.
const ENOUGH: usize = 2;

/// Decimals are equal when they agree after rounding to this many places.
const DECIMAL_PLACES: u32 = 6;

/// Whether both have the same value wherever both have one.
pub(super) fn same_value(a: &Expr, b: &Expr) -> bool {
    if a == b {
        return true;
    }
    let mut names = BTreeSet::new();
    variables(a, &mut names);
    variables(b, &mut names);
    if let (Expr::Matrix(_), _) | (_, Expr::Matrix(_)) = (a, b) {
        return false;
    }
    if names.is_empty() {
        return match (constant(a), constant(b)) {
            (Some(a), Some(b)) => close(&a, &b),
            (None, None) => infinite(a).is_some() && infinite(a) == infinite(b),
            _ => false,
        };
    }
    let mut compared = 0;
    for index in 0..POINTS {
        let values = (
            evaluate(a, point(&names, index)),
            evaluate(b, point(&names, index)),
        );
        if let (Some(a), Some(b)) = values {
            if !close(&a, &b) {
                return false;
            }
            compared += 1;
        }
    }
    compared >= ENOUGH
}

/// The constant factor between two expressions of variables.
pub(super) fn proportional(a: &Expr, b: &Expr) -> Option<f64> {
    let (mut names, mut others) = (BTreeSet::new(), BTreeSet::new());
    variables(a, &mut names);
    variables(b, &mut others);
    if names.is_empty() || names != others {
        return None;
    }
    let mut factor: Option<f64> = None;
    let mut compared = 0;
    for index in 0..POINTS {
        let values = (
            evaluate(a, point(&names, index)),
            evaluate(b, point(&names, index)),
        );
        let (Some(a), Some(b)) = values else { continue };
        let (a, b) = (a.rounded(), b.rounded());
        if b.abs() < 1e-9 || a.abs() < 1e-9 {
            continue;
        }
        let ratio = a.div(b);
        if ratio.im.abs() > 1e-9 * ratio.re.abs() {
            return None;
        }
        let known = *factor.get_or_insert(ratio.re);
        if (ratio.re - known).abs() > 1e-9 * known.abs() {
            return None;
        }
        compared += 1;
    }
    factor.filter(|_| compared >= ENOUGH)
}

/// Numbers to sort the elements of a set by: the value at a fixed point.
pub(super) fn sort_key(expr: &Expr) -> Vec<f64> {
    match expr {
        Expr::Tuple(items) => items.iter().flat_map(sort_key).collect(),
        Expr::Interval { ends, .. } => {
            let mut key = sort_key(&ends.0);
            key.extend(sort_key(&ends.1));
            key
        }
        _ => {
            let mut names = BTreeSet::new();
            variables(expr, &mut names);
            let value = evaluate(expr, point(&names, 0)).map(|value| value.rounded());
            let z = value.map_or((f64::INFINITY, 0.0), |z| (z.re, z.im));
            // Equal values reached by other ways must get equal keys.
            let coarse = |x: f64| (x * 1e9).round() / 1e9;
            vec![coarse(z.0), coarse(z.1)]
        }
    }
}

fn close(a: &Value, b: &Value) -> bool {
    if let (Value::Exact(a), Value::Exact(b)) = (a, b) {
        return a == b;
    }
    let (a, b) = (a.rounded(), b.rounded());
    let size = a.abs().max(b.abs());
    a.sub(b).abs() <= 1e-9 * size + 1e-12
}

/// Whether both round to the same decimal.
pub(super) fn decimal_places_equal(a: &Expr, b: &Expr) -> bool {
    let rounded = |expr: &Expr| match constant(expr)? {
        Value::Exact(value) => Some(half_even(&value)),
        Value::Rounded(z) if z.im == 0.0 => Some(half_even(&BigRational::from_float(z.re)?)),
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
        Expr::Matrix(rows) => rows
            .iter()
            .flatten()
            .for_each(|entry| variables(entry, names)),
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
            let sign = if index % 3 == 2 && draw & 0x1_0000 != 0 {
                -1
            } else {
                1
            };
            let value = BigRational::new((sign * above).into(), 997.into());
            (name.clone(), Value::Exact(value))
        })
        .collect()
}
