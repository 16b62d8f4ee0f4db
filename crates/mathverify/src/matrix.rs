//! Sums, products and small powers of matrices.

use num_traits::ToPrimitive;

use crate::expr::{Expr, Number, product, sum};
use crate::value::{LOW_BITS, Value, constant};
use crate::work::Work;

/// Sums and products of matrices, worked out; anything else as it is.
pub(crate) fn with_matrices_done(expr: &Expr, work: &Work) -> Option<Expr> {
    match expr {
        Expr::Matrix(_) => Some(expr.clone()),
        Expr::Add(parts) => {
            let mut parts = parts.iter().map(|part| with_matrices_done(part, work));
            let mut total = parts.next()??;
            for part in parts {
                total = matrix_sum(&total, &part?)?;
            }
            Some(total)
        }
        Expr::Mul(parts) => {
            let mut parts = parts.iter().map(|part| with_matrices_done(part, work));
            let mut total = parts.next()??;
            for part in parts {
                total = matrix_product(&total, &part?, work)?;
            }
            Some(total)
        }
        Expr::Pow(pair) if holds_matrix(&pair.0) => {
            let power = constant(&pair.1, LOW_BITS, work)?
                .integer()?
                .to_i32()
                .filter(|n| (1..=6).contains(n))?;
            let base = with_matrices_done(&pair.0, work)?;
            (1..power).try_fold(base.clone(), |total, _| matrix_product(&total, &base, work))
        }
        other => Some(other.clone()),
    }
}

/// Whether an expression is built from matrices.
pub(crate) fn holds_matrix(expr: &Expr) -> bool {
    match expr {
        Expr::Matrix(_) => true,
        Expr::Add(parts) | Expr::Mul(parts) => parts.iter().any(holds_matrix),
        Expr::Pow(pair) => holds_matrix(&pair.0),
        _ => false,
    }
}

fn matrix_sum(a: &Expr, b: &Expr) -> Option<Expr> {
    let (Expr::Matrix(a), Expr::Matrix(b)) = (a, b) else {
        return (!holds_matrix(a) && !holds_matrix(b)).then(|| sum(a.clone(), b.clone()));
    };
    if a.len() != b.len() || a[0].len() != b[0].len() {
        return None;
    }
    let rows = a.iter().zip(b).map(|(a, b)| {
        let entries = a.iter().zip(b);
        entries.map(|(a, b)| sum(a.clone(), b.clone())).collect()
    });
    Some(Expr::Matrix(rows.collect()))
}

fn matrix_product(a: &Expr, b: &Expr, work: &Work) -> Option<Expr> {
    match (a, b) {
        (Expr::Matrix(a), Expr::Matrix(b)) => {
            // Entries grow with each product; beyond this size nothing is an answer.
            if a[0].len() != b.len() || a.len() > 8 || b.len() > 8 || b[0].len() > 8 {
                return None;
            }
            let rows = a.iter().map(|row| {
                let entries = (0..b[0].len()).map(|column| {
                    let terms = row.iter().zip(b);
                    let terms = terms.map(|(x, row)| product(x.clone(), row[column].clone()));
                    Expr::Add(terms.collect())
                });
                entries.map(|entry| simplified(&entry, work)).collect()
            });
            Some(Expr::Matrix(rows.collect()))
        }
        (Expr::Matrix(rows), scale) | (scale, Expr::Matrix(rows)) => {
            let scaled = rows.iter().map(|row| {
                let entries = row.iter();
                entries.map(|entry| product(scale.clone(), entry.clone())).collect()
            });
            Some(Expr::Matrix(scaled.collect()))
        }
        (a, b) => Some(product(a.clone(), b.clone())),
    }
}

/// A number where the value is an exact one, so that products do not grow.
fn simplified(expr: &Expr, work: &Work) -> Expr {
    match constant(expr, LOW_BITS, work) {
        Some(Value::Exact(value)) => Expr::Number(Number { decimal: has_decimal(expr), value }),
        _ => expr.clone(),
    }
}

fn has_decimal(expr: &Expr) -> bool {
    match expr {
        Expr::Number(n) => n.decimal,
        Expr::Add(parts) | Expr::Mul(parts) => parts.iter().any(has_decimal),
        _ => false,
    }
}
