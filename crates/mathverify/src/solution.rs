//! Whether a set is what satisfies a relation of one variable.
//!
//! Nothing is solved. The set names its ends: at them, beside them and between them the relation must
//! hold exactly where the set says. A hole that falls between the samples and touches no end goes
//! unseen.

use std::cmp::Ordering;
use std::collections::HashMap;

use num_rational::BigRational;
use num_traits::{One, Zero};

use crate::complex::Likeness;
use crate::equal::names_of;
use crate::expr::{Expr, Relation, SetOp};
use crate::value::{BITS, LOW_BITS, Value, constant, evaluate, infinite};
use crate::work::Work;

/// Most intervals and points of a set.
const MAX_PARTS: usize = 16;

/// Where samples stand between two ends, and how far beyond the last, over 97.
const BETWEEN: [i64; 8] = [1, 13, 29, 41, 53, 67, 83, 96];
const BEYOND: [i64; 8] = [1, 32, 97, 236, 1_002, 9_797, 97_873, 97_000_000];

/// Next to an end, as a part of 2^20.
const BESIDE: i64 = 1 << 20;

/// From one end to another; no end is infinity.
struct Part {
    ends: [Option<BigRational>; 2],
    open: (bool, bool),
}

/// An end of a part: as written, and about where it is.
type End = (Expr, BigRational);

/// Whether `set` holds the numbers that satisfy `relation` and no others.
pub(crate) fn is_solved_by(relation: &Expr, set: &Expr, work: &Work) -> bool {
    solved(relation, set, work).unwrap_or(false)
}

fn solved(relation: &Expr, set: &Expr, work: &Work) -> Option<bool> {
    let links = match relation {
        Expr::Chain(links) => links.as_slice(),
        link => std::slice::from_ref(link),
    };
    let links: Vec<(Relation, &Expr, &Expr)> = links
        .iter()
        .map(|link| match link {
            Expr::Relation(sign, sides) => Some((*sign, &sides.0, &sides.1)),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let sides: Vec<&Expr> = links.iter().flat_map(|(_, a, b)| [*a, *b]).collect();
    if !sides.iter().all(|side| side.is_value()) {
        return None;
    }
    let names = names_of(&sides);
    let variable = names.first().filter(|_| names.len() == 1)?;
    let test = Test { links, variable, work };
    let (mut parts, mut ends) = (Vec::new(), Vec::new());
    collect(set, &mut parts, &mut ends, work)?;
    ends.sort_by(|a, b| a.1.cmp(&b.1));
    ends.dedup_by(|a, b| about_equal(&a.1, &b.1));
    for (end, near) in &ends {
        let inside = parts.iter().any(|part| part.holds(near));
        let value = |bits| constant(end, bits, work);
        if test.holds(value)?.0 != inside {
            return Some(false);
        }
    }
    Some(pieces(&ends).iter().all(|samples| test.piece(samples, &parts) == Some(true)))
}

/// The samples of each stretch between ends.
fn pieces(ends: &[End]) -> Vec<Vec<BigRational>> {
    let over = |above: i64, below: i64| BigRational::new(above.into(), below.into());
    let offsets = || {
        let beside = std::iter::once(over(1, BESIDE));
        beside.chain(BEYOND.iter().map(|n| over(*n, 97)))
    };
    let zero = BigRational::zero();
    let (first, last) = match (ends.first(), ends.last()) {
        (Some(first), Some(last)) => (&first.1, &last.1),
        _ => (&zero, &zero),
    };
    let mut pieces: Vec<Vec<BigRational>> = vec![
        offsets().map(|offset| first - offset).collect(),
        offsets().map(|offset| last + offset).collect(),
    ];
    for pair in ends.windows(2) {
        let (low, width) = (&pair[0].1, &pair[1].1 - &pair[0].1);
        let beside = [over(1, BESIDE), over(BESIDE - 1, BESIDE)];
        let parts = BETWEEN.iter().map(|n| over(*n, 97)).chain(beside);
        pieces.push(parts.map(|part| low + &width * part).collect());
    }
    if ends.is_empty() {
        pieces[0].push(zero);
    }
    pieces
}

fn about_equal(a: &BigRational, b: &BigRational) -> bool {
    let gap = if a < b { b - a } else { a - b };
    gap * BigRational::from_integer(num_bigint::BigInt::one() << 80u8) < BigRational::one()
}

fn collect(set: &Expr, parts: &mut Vec<Part>, ends: &mut Vec<End>, work: &Work) -> Option<()> {
    match set {
        Expr::Interval { ends: pair, open } => {
            let low = end(&pair.0, ends, work)?;
            let high = end(&pair.1, ends, work)?;
            parts.push(Part { ends: [low, high], open: *open });
        }
        Expr::Set(items) => {
            for item in items.iter().take(MAX_PARTS + 1) {
                let at = end(item, ends, work)?;
                at.as_ref()?;
                parts.push(Part { ends: [at.clone(), at], open: (false, false) });
            }
        }
        Expr::SetOp(SetOp::Union, pair) => {
            collect(&pair.0, parts, ends, work)?;
            collect(&pair.1, parts, ends, work)?;
        }
        Expr::NamedSet('R') => parts.push(Part { ends: [None, None], open: (true, true) }),
        _ => return None,
    }
    (parts.len() <= MAX_PARTS).then_some(())
}

/// Where an end is, `Some(None)` for infinity.
fn end(expr: &Expr, ends: &mut Vec<End>, work: &Work) -> Option<Option<BigRational>> {
    if infinite(expr).is_some() {
        return Some(None);
    }
    let at = match constant(expr, LOW_BITS, work)? {
        Value::Exact(at) => at,
        Value::Rounded(z) if z.may_be_real() => z.re.to_ratio()?,
        Value::Rounded(_) => return None,
    };
    ends.push((expr.clone(), at.clone()));
    Some(Some(at))
}

impl Part {
    fn holds(&self, at: &BigRational) -> bool {
        let beside =
            |end: &Option<BigRational>, open: bool, inner: Ordering| {
                end.as_ref().is_none_or(|end| {
                    if about_equal(at, end) { !open } else { at.cmp(end) == inner }
                })
            };
        beside(&self.ends[0], self.open.0, Ordering::Greater)
            && beside(&self.ends[1], self.open.1, Ordering::Less)
    }
}

/// A relation as something to try numbers on.
struct Test<'a> {
    links: Vec<(Relation, &'a Expr, &'a Expr)>,
    variable: &'a str,
    work: &'a Work,
}

impl Test<'_> {
    /// Whether the relation holds where the parts are, and no equation changes sides.
    fn piece(&self, samples: &[BigRational], parts: &[Part]) -> Option<bool> {
        let mut sides: Option<Vec<Option<Ordering>>> = None;
        for at in samples {
            let (holds, orders) = self.holds(|_| Some(Value::Exact(at.clone())))?;
            if holds != parts.iter().any(|part| part.holds(at)) {
                return Some(false);
            }
            let known = sides.get_or_insert_with(|| orders.clone());
            let mut links = self.links.iter().zip(known.iter().zip(&orders));
            let crossed = |link: &Relation| matches!(link, Relation::Equal | Relation::NotEqual);
            if links.any(|((sign, ..), (before, here))| crossed(sign) && before != here) {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Whether the relation holds at a number, and how the sides of each link are ordered there.
    fn holds(
        &self,
        number: impl Fn(i64) -> Option<Value>,
    ) -> Option<(bool, Vec<Option<Ordering>>)> {
        let mut orders = Vec::with_capacity(self.links.len());
        for (_, left, right) in &self.links {
            orders.push(self.order(left, right, &number)?);
        }
        let each = self.links.iter().zip(&orders);
        let mut holds = each.map(|((sign, ..), order)| match (sign, order) {
            (_, None) => false,
            (Relation::Equal, Some(order)) => order.is_eq(),
            (Relation::NotEqual, Some(order)) => order.is_ne(),
            (Relation::Less, Some(order)) => order.is_lt(),
            (Relation::LessEqual, Some(order)) => order.is_le(),
            (Relation::Greater, Some(order)) => order.is_gt(),
            (Relation::GreaterEqual, Some(order)) => order.is_ge(),
        });
        let holds = holds.all(|one| one);
        Some((holds, orders))
    }

    /// How the sides are ordered; `Some(None)` where one has no value or none that is real.
    fn order(
        &self,
        left: &Expr,
        right: &Expr,
        number: &impl Fn(i64) -> Option<Value>,
    ) -> Option<Option<Ordering>> {
        for bits in [LOW_BITS, BITS] {
            let variables = HashMap::from([(self.variable.to_owned(), number(bits)?)]);
            let value = |expr| evaluate(expr, variables.clone(), bits, self.work);
            let (Some(a), Some(b)) = (value(left), value(right)) else {
                return Some(None);
            };
            let likeness = a.compare(&b, bits);
            let (a, b) = (a.rounded(bits), b.rounded(bits));
            if !a.may_be_real() || !b.may_be_real() {
                return Some(None);
            }
            match likeness {
                Likeness::Different => return Some(Some(a.re.compare(&b.re))),
                Likeness::Same => return Some(Some(Ordering::Equal)),
                Likeness::Unsure => {}
            }
        }
        None
    }
}
