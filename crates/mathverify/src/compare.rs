//! Whether two answers say the same, by the rules of math-verify 0.9.
//!
//! The order matters: `gold` sets the form. An equation against a bare value is reduced to its
//! right side; a chain `x = a = b` to `x = b`.

use crate::equal::{decimal_places_equal, proportional, same_value, sort_key};
use crate::expr::{Constant, Expr, Relation, SetOp};
use crate::matrix::{holds_matrix, with_matrices_done};
use crate::solution::is_solved_by;
use crate::work::Work;

/// Most elements of a set that are compared.
const MAX_ITEMS: usize = 200;

/// Deepest sets within sets.
const MAX_DEPTH: usize = 8;

/// Whether `pred` says what `gold` says.
pub(crate) fn equivalent(gold: &Expr, pred: &Expr) -> bool {
    let work = Work::for_a_comparison();
    let at = Level { depth: 0, work: &work };
    equal_at(gold, pred, at)
}

/// Sets entered so far, and the work that is left.
#[derive(Clone, Copy)]
struct Level<'a> {
    depth: usize,
    work: &'a Work,
}

impl Level<'_> {
    fn below(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

fn equal_at(gold: &Expr, pred: &Expr, at: Level<'_>) -> bool {
    if at.depth > MAX_DEPTH {
        return false;
    }
    let (gold_equation, pred_equation) = (is_equation(gold), is_equation(pred));
    let mut gold = without_middle(gold);
    let mut pred = without_middle(pred);
    if pred_equation && !gold_equation {
        pred = right_side(pred);
    } else if is_assignment(&gold) && !pred_equation {
        gold = right_side(gold);
    }
    if gold.is_relation() && is_set(&pred) && is_solved_by(&gold, &pred, at.work) {
        return true;
    }
    if gold.is_relation()
        && is_set(&pred)
        && let Some(set) = solution_set(&gold)
    {
        gold = set;
    }
    if gold == pred {
        return true;
    }
    if gold.is_relation() && pred.is_relation() {
        return relations(&gold, &pred, at);
    }
    if gold.is_collection() || pred.is_collection() {
        return collections(&gold, &pred, at);
    }
    if gold.is_relation() || pred.is_relation() {
        return false;
    }
    match (&gold, &pred) {
        (Expr::Symbol(name), other) | (other, Expr::Symbol(name)) => is_called(other, name),
        _ if holds_matrix(&gold) || holds_matrix(&pred) => {
            match (with_matrices_done(&gold, at.work), with_matrices_done(&pred, at.work)) {
                (Some(Expr::Matrix(a)), Some(Expr::Matrix(b))) => matrices(&a, &b, at.work),
                _ => false,
            }
        }
        _ => numbers(&gold, &pred, at.work),
    }
}

fn is_set(expr: &Expr) -> bool {
    expr.is_collection() && !matches!(expr, Expr::Tuple(_))
}

fn is_equation(expr: &Expr) -> bool {
    match expr {
        Expr::Relation(Relation::Equal, _) => true,
        Expr::Chain(links) => links.iter().all(is_equation),
        _ => false,
    }
}

/// An equation whose left side is a name.
fn is_assignment(expr: &Expr) -> bool {
    match expr {
        Expr::Relation(Relation::Equal, pair) => pair.0.is_name() || is_pair_of_names(&pair.0),
        Expr::Chain(links) => is_equation(expr) && links.first().is_some_and(is_assignment),
        _ => false,
    }
}

/// `(x, y)`, read as an interval.
fn is_pair_of_names(expr: &Expr) -> bool {
    matches!(expr, Expr::Interval { ends, .. } if ends.0.is_name() && ends.1.is_name())
}

/// `x = a = b` as `x = b`.
fn without_middle(expr: &Expr) -> Expr {
    if let Expr::Chain(links) = expr
        && is_assignment(expr)
        && let (Some(Expr::Relation(_, first)), Some(Expr::Relation(_, last))) =
            (links.first(), links.last())
    {
        let ends = (first.0.clone(), last.1.clone());
        return Expr::Relation(Relation::Equal, Box::new(ends));
    }
    expr.clone()
}

fn right_side(expr: Expr) -> Expr {
    match expr {
        Expr::Relation(_, pair) => pair.1,
        Expr::Chain(mut links) => match links.pop() {
            Some(link) => right_side(link),
            None => Expr::Chain(links),
        },
        other => other,
    }
}

/// A word against a word, against the product of its letters, or against the number that it spells:
/// `\text{13}`.
fn is_called(expr: &Expr, name: &str) -> bool {
    if let Expr::Number(number) = expr {
        // As the reference prints it: a decimal is never spelled so.
        return !number.decimal && number.value.to_string() == name;
    }
    let letters: Option<String> = match expr {
        Expr::Symbol(other) => Some(other.clone()),
        Expr::Constant(Constant::E) => Some("e".to_owned()),
        Expr::Mul(parts) => parts
            .iter()
            .map(|part| match part {
                Expr::Symbol(letter) => Some(letter.as_str()),
                Expr::Constant(Constant::E) => Some("e"),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    letters.is_some_and(|letters| letters == name)
}

/// Numbers and expressions: decimals by rounding, percents also by their digits, all by value.
fn numbers(gold: &Expr, pred: &Expr, work: &Work) -> bool {
    let percent = matches!(gold, Expr::Percent(_)) || matches!(pred, Expr::Percent(_));
    if percent
        && let (Some(a), Some(b)) = (whole_or_percent(gold), whole_or_percent(pred))
        && a == b
    {
        return true;
    }
    if (is_decimal(gold) || is_decimal(pred)) && decimal_places_equal(gold, pred, work) {
        return true;
    }
    same_value(gold, pred, work)
}

/// `9` and `9 %`: the reference takes one for the other.
fn whole_or_percent(expr: &Expr) -> Option<&num_rational::BigRational> {
    match expr {
        Expr::Percent(inner) => whole_or_percent(inner),
        Expr::Number(n) => (!n.decimal && n.value.is_integer()).then_some(&n.value),
        _ => None,
    }
}

fn is_decimal(expr: &Expr) -> bool {
    match expr {
        Expr::Number(n) => n.decimal,
        Expr::Percent(inner) => is_decimal(inner),
        _ => false,
    }
}

fn matrices(gold: &[Vec<Expr>], pred: &[Vec<Expr>], work: &Work) -> bool {
    gold.len() == pred.len()
        && gold
            .iter()
            .zip(pred)
            .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| numbers(a, b, work)))
}

fn relations(gold: &Expr, pred: &Expr, at: Level<'_>) -> bool {
    let (Expr::Relation(sign, left), Expr::Relation(other, right)) = (gold, pred) else {
        let (Expr::Chain(gold), Expr::Chain(pred)) = (gold, pred) else {
            return false;
        };
        return gold.len() == pred.len() && gold.iter().zip(pred).all(|(a, b)| relations(a, b, at));
    };
    let (a, b) = (left.0.is_value(), left.1.is_value());
    let (c, d) = (right.0.is_value(), right.1.is_value());
    if !(a && b && c && d) {
        // `x = {1, 2}`: names and sets side by side.
        return sign == other
            && equal_at(&left.0, &right.0, at.below())
            && equal_at(&left.1, &right.1, at.below());
    }
    let difference = |pair: &(Expr, Expr)| pair.0.clone().minus(pair.1.clone());
    let (gold, pred) = (difference(left), difference(right));
    if sign == other && numbers(&gold, &pred, at.work) {
        return true;
    }
    let flipped = sign.flipped() == Some(*other);
    if flipped && numbers(&gold, &pred.clone().negated(), at.work) {
        return true;
    }
    // Solving either gives the same.
    match proportional(&gold, &pred, at.work) {
        Some(_) if *sign == Relation::Equal => *other == Relation::Equal,
        Some(positive) if *sign != Relation::NotEqual => {
            (sign == other && positive) || (flipped && !positive)
        }
        _ => false,
    }
}

/// The numbers that satisfy `a < x`, `x < b` or `a < x < b`.
fn solution_set(expr: &Expr) -> Option<Expr> {
    let infinity = || Expr::Constant(Constant::Infinity);
    let whole = (infinity().negated(), infinity());
    let bounded = |links: &[Expr]| {
        let (mut ends, mut open) = (whole.clone(), (true, true));
        for link in links {
            let Expr::Relation(sign, pair) = link else {
                return None;
            };
            let variable = |side: &Expr| matches!(side, Expr::Symbol(_) | Expr::Apply(..));
            let (sign, bound) = match (variable(&pair.0), variable(&pair.1)) {
                (true, false) => (*sign, pair.1.clone()),
                (false, true) => (sign.flipped()?, pair.0.clone()),
                _ => return None,
            };
            match sign {
                Relation::Less => (ends.1, open.1) = (bound, true),
                Relation::LessEqual => (ends.1, open.1) = (bound, false),
                Relation::Greater => (ends.0, open.0) = (bound, true),
                Relation::GreaterEqual => (ends.0, open.0) = (bound, false),
                Relation::Equal => return Some(Expr::Set(vec![bound])),
                Relation::NotEqual => return None,
            }
        }
        Some(Expr::Interval { ends: Box::new(ends), open })
    };
    match expr {
        Expr::Relation(Relation::NotEqual, pair) => {
            let all = Expr::NamedSet('R');
            let without = Expr::Set(vec![pair.1.clone()]);
            Some(Expr::SetOp(SetOp::Minus, Box::new((all, without))))
        }
        Expr::Relation(..) => bounded(std::slice::from_ref(expr)),
        Expr::Chain(links) => bounded(links),
        _ => None,
    }
}

fn collections(gold: &Expr, pred: &Expr, at: Level<'_>) -> bool {
    if let (Expr::Interval { ends: a, open }, Expr::Interval { ends: b, open: other }) =
        (gold, pred)
    {
        return open == other
            && equal_at(&a.0, &b.0, at.below())
            && equal_at(&a.1, &b.1, at.below());
    }
    if let (Expr::SetOp(op, a), Expr::SetOp(other, b)) = (gold, pred) {
        return set_operations((*op, gold, a), (*other, pred, b), at);
    }
    let (Some(a), Some(b)) = (items(gold), items(pred)) else {
        return false;
    };
    // An open interval is a pair when the other side is one.
    let pair = |expr: &Expr| matches!(expr, Expr::Interval { open: (true, true), .. });
    let interval = |expr: &Expr| matches!(expr, Expr::Interval { .. });
    if (interval(gold) && !pair(gold)) || (interval(pred) && !pair(pred)) {
        return false;
    }
    let gold_set = matches!(gold, Expr::Set(_)) || gold.is_value();
    let pred_sorted = gold_set || (matches!(pred, Expr::Set(_)) && !matches!(gold, Expr::Tuple(_)));
    let a = if gold_set { sorted(a, at.work) } else { a };
    let b = if pred_sorted && !interval(gold) { sorted(b, at.work) } else { b };
    a.len() == b.len()
        && a.len() <= MAX_ITEMS
        && a.iter().zip(&b).all(|(a, b)| equal_at(a, b, at.below()))
}

/// What a set, tuple, interval or single value holds.
fn items(expr: &Expr) -> Option<Vec<Expr>> {
    match expr {
        Expr::Set(items) => Some(without_repeats(items)),
        Expr::Tuple(items) => Some(items.clone()),
        Expr::Interval { ends, .. } => Some(vec![ends.0.clone(), ends.1.clone()]),
        Expr::SetOp(..) | Expr::NamedSet(_) => None,
        value => Some(vec![value.clone()]),
    }
}

fn without_repeats(items: &[Expr]) -> Vec<Expr> {
    let mut kept: Vec<Expr> = Vec::new();
    for item in items.iter().take(MAX_ITEMS + 1) {
        if !kept.contains(item) {
            kept.push(item.clone());
        }
    }
    kept
}

fn sorted(items: Vec<Expr>, work: &Work) -> Vec<Expr> {
    let mut keyed: Vec<(Vec<f64>, Expr)> = items
        .into_iter()
        .map(|item| (sort_key(&right_side(without_middle(&item)), work), item))
        .collect();
    keyed.sort_by(|(a, _), (b, _)| {
        a.iter()
            .zip(b)
            .map(|(a, b)| a.total_cmp(b))
            .find(|order| order.is_ne())
            .unwrap_or_else(|| a.len().cmp(&b.len()))
    });
    keyed.into_iter().map(|(_, item)| item).collect()
}

type Operation<'a> = (SetOp, &'a Expr, &'a (Expr, Expr));

/// Unions and intersections hold the same parts in any order; differences the same two.
fn set_operations(gold: Operation<'_>, pred: Operation<'_>, at: Level<'_>) -> bool {
    if gold.0 != pred.0 {
        return false;
    }
    if gold.0 == SetOp::Minus {
        return equal_at(&gold.2.0, &pred.2.0, at.below())
            && equal_at(&gold.2.1, &pred.2.1, at.below());
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    parts(gold.0, gold.1, &mut a);
    parts(pred.0, pred.1, &mut b);
    if a.len() != b.len() || a.len() > 20 {
        return false;
    }
    a.iter().all(|part| {
        let found = b.iter().position(|other| equal_at(part, other, at.below()));
        found.map(|index| b.remove(index)).is_some()
    })
}

fn parts(op: SetOp, expr: &Expr, out: &mut Vec<Expr>) {
    match expr {
        Expr::SetOp(inner, pair) if *inner == op => {
            parts(op, &pair.0, out);
            parts(op, &pair.1, out);
        }
        other => out.push(other.clone()),
    }
}
