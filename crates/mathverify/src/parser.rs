//! Tokens to a tree: lists, relations, sets, arithmetic. Operands are in `operand.rs`.
//!
//! The grammar is that of latex2sympy2_extended 1.11, so that the same text means the same:
//! `a/bc` is `a/(bc)`, `2\frac{1}{2}` is two and a half, `(1,2)` is an open interval until it is
//! compared with a pair, `1,2` is a set.

use num_traits::Signed;

use crate::expr::{Expr, Function, Number, Relation, SetOp, product, sum};
use crate::lexer::{Token, tokens};
use crate::work::Work;

/// Deepest nesting of brackets, powers and signs.
const MAX_DEPTH: usize = 60;

/// Most levels entered: what `f(f(f(` may mean doubles with every level.
const MAX_STEPS: usize = 5_000;

/// The meaning of LaTeX without its delimiters; `None` where it has none.
pub(crate) fn parse_latex(text: &str) -> Option<Expr> {
    if let Some(number) = number_with_commas(text) {
        return Some(Expr::Number(number));
    }
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
        steps: 0,
        no_function: false,
        work: Work::for_reading(),
    };
    let parsed = parser.answer()?;
    (parser.at == tokens.len()).then_some(parsed)
}

/// `1,234` and `-12,345.6` as a whole are one number, not a set.
fn number_with_commas(text: &str) -> Option<Number> {
    let text = text.trim();
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let mut groups = whole.split(',');
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let first = groups.next()?;
    if !digits(first) || first.len() > 3 || !digits(fraction) {
        return None;
    }
    let mut more = 0;
    for group in groups {
        if !digits(group) || group.len() != 3 {
            return None;
        }
        more += 1;
    }
    let zero = first.starts_with('0') && !text.starts_with('-');
    (more > 0)
        .then(|| text.replace(',', if zero { "." } else { "" }))
        .and_then(|plain| Number::parse(&plain))
}

pub(crate) struct Parser<'a> {
    pub(crate) tokens: &'a [Token],
    pub(crate) at: usize,
    pub(crate) depth: usize,
    /// Levels entered so far, those of abandoned readings included.
    pub(crate) steps: usize,
    /// Within the argument of a function written without parentheses.
    pub(crate) no_function: bool,
    /// For ends of intervals.
    pub(crate) work: Work,
}

impl Parser<'_> {
    pub(crate) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    pub(crate) fn next_is(&self, c: char) -> bool {
        self.peek() == Some(&Token::Char(c))
    }

    pub(crate) fn eat(&mut self, c: char) -> bool {
        let found = self.next_is(c);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, c: char) -> Option<()> {
        self.eat(c).then_some(())
    }

    pub(crate) fn eat_command(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Command(known)) if *known == name);
        self.at += usize::from(found);
        found
    }

    /// Runs `inner` one level deeper.
    pub(crate) fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.steps += 1;
        if self.depth >= MAX_DEPTH || self.steps > MAX_STEPS {
            return None;
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// The whole answer: a list of elements, alone or right of `x =` or `x \in`.
    fn answer(&mut self) -> Option<Expr> {
        let groups = self.groups()?;
        Some(named_list(&groups).unwrap_or_else(|| set_of(groups)))
    }

    /// `a, b; c, d`: groups of elements.
    pub(crate) fn groups(&mut self) -> Option<Vec<Vec<Expr>>> {
        let mut groups = Vec::new();
        loop {
            let mut group = Vec::new();
            loop {
                group.extend(self.element()?);
                if !self.eat(',') {
                    break;
                }
            }
            groups.push(group);
            if !self.eat(';') {
                return Some(groups);
            }
        }
    }

    /// An expression, set or relation; two of them where there is a `\pm`.
    fn element(&mut self) -> Option<Vec<Expr>> {
        let first = self.plus_minus()?;
        let mut sides = vec![first];
        let mut signs = Vec::new();
        while let Some(sign) = self.relation_sign() {
            signs.push(sign);
            sides.push(self.plus_minus()?);
        }
        if signs.is_empty() {
            return sides.pop();
        }
        related(sides, &signs)
    }

    fn relation_sign(&mut self) -> Option<char> {
        let Some(Token::Char(c)) = self.peek() else {
            return None;
        };
        let sign = *c;
        if !"=<>≤≥≠≈∈".contains(sign) {
            return None;
        }
        self.at += 1;
        Some(sign)
    }

    fn plus_minus(&mut self) -> Option<Vec<Expr>> {
        if self.eat('±') {
            let value = self.additive()?;
            return Some(vec![value.clone().negated(), value]);
        }
        let left = self.sets()?;
        if !self.eat('±') {
            return Some(vec![left]);
        }
        let right = self.additive()?;
        if !left.is_value() || !right.is_value() {
            return None;
        }
        Some(vec![sum(left.clone(), right.clone()), sum(left, right.negated())])
    }

    /// Unions, intersections and differences; the intersection binds tightest.
    fn sets(&mut self) -> Option<Expr> {
        self.set_level(0)
    }

    fn set_level(&mut self, level: usize) -> Option<Expr> {
        const LEVELS: [(char, SetOp); 3] =
            [('∖', SetOp::Minus), ('∪', SetOp::Union), ('∩', SetOp::Intersection)];
        let Some((sign, op)) = LEVELS.get(level) else {
            return self.additive();
        };
        let mut left = self.set_level(level + 1)?;
        while self.eat(*sign) {
            let right = self.set_level(level + 1)?;
            let (left_set, right_set) = (as_set(left)?, as_set(right)?);
            left = Expr::SetOp(*op, Box::new((left_set, right_set)));
        }
        Some(left)
    }

    pub(crate) fn additive(&mut self) -> Option<Expr> {
        let mut left = self.multiplicative()?;
        loop {
            let minus = self.next_is('-');
            if !minus && !self.next_is('+') {
                return Some(left);
            }
            self.at += 1;
            let right = value(self.multiplicative()?)?;
            let right = if minus { right.negated() } else { right };
            left = sum(value(left)?, right);
        }
    }

    pub(crate) fn multiplicative(&mut self) -> Option<Expr> {
        let mut left = self.unary()?;
        loop {
            let Some(Token::Char(sign @ ('*' | '/' | '%'))) = self.peek() else {
                return Some(left);
            };
            let sign = *sign;
            self.at += 1;
            let (a, b) = (value(left)?, value(self.unary()?)?);
            left = match sign {
                '*' => product(a, b),
                '/' => a.over(b),
                _ => Expr::Call(Function::Mod, vec![a, b]),
            };
        }
    }

    fn unary(&mut self) -> Option<Expr> {
        if self.eat('+') {
            return self.deeper(|p| value(p.unary()?));
        }
        if self.eat('-') {
            return self.deeper(|p| Some(value(p.unary()?)?.negated()));
        }
        // A function's bare argument takes a function at its beginning only.
        let was = std::mem::replace(&mut self.no_function, false);
        let first = self.postfix();
        self.no_function = was;
        let mut factors = vec![first?];
        while self.starts_operand() {
            factors.push(self.postfix()?);
        }
        match factors.len() {
            1 => factors.pop(),
            _ => juxtaposed(factors),
        }
    }

    /// An operand with its powers, factorials and degree signs.
    fn postfix(&mut self) -> Option<Expr> {
        let mut base = self.operand()?;
        loop {
            if self.eat('!') {
                base = Expr::Call(Function::Factorial, vec![value(base)?]);
            } else if self.peek() == Some(&Token::Degree) {
                self.at += 1;
            } else if self.next_is('^') {
                self.at += 1;
                let exponent = self.deeper(|p| p.exponent())?;
                base = Expr::Pow(Box::new((value(base)?, exponent)));
            } else {
                return Some(base);
            }
        }
    }

    /// A superscript: one token or a group.
    pub(crate) fn exponent(&mut self) -> Option<Expr> {
        if self.eat('{') {
            let exponent = value(self.additive()?)?;
            self.expect('}')?;
            return Some(exponent);
        }
        if self.next_is('(') {
            return value(self.operand()?);
        }
        self.single()
    }
}

/// What arithmetic may be done with: a value, or a set that braces made of one.
pub(crate) fn value(expr: Expr) -> Option<Expr> {
    match expr {
        Expr::Set(mut items) if items.len() == 1 => value(items.pop()?),
        other => other.is_value().then_some(other),
    }
}

fn as_set(expr: Expr) -> Option<Expr> {
    match expr {
        Expr::Tuple(items) => Some(Expr::Set(items)),
        other => other.is_collection().then_some(other),
    }
}

/// Operands side by side: a product, the last numbers of it a mixed number.
fn juxtaposed(mut factors: Vec<Expr>) -> Option<Expr> {
    let mut first = value(factors.pop()?)?;
    // From the last one on.
    let mut behind = Vec::new();
    while let Some(factor) = factors.pop() {
        let factor = value(factor)?;
        first = match mixed_number(&factor, &first).filter(|_| behind.is_empty()) {
            Some(number) => number,
            None => {
                behind.push(first);
                factor
            }
        };
    }
    Some(behind.into_iter().rev().fold(first, product))
}

fn mixed_number(whole: &Expr, part: &Expr) -> Option<Expr> {
    let (Expr::Number(a), Expr::Number(b)) = (whole, part) else {
        return None;
    };
    let is_mixed = !a.decimal && !b.decimal && a.value.is_integer() && b.value.is_positive();
    is_mixed.then(|| {
        let value = if a.value.is_negative() { &a.value - &b.value } else { &a.value + &b.value };
        Expr::Number(Number::exact(value))
    })
}

/// Sides and signs to a relation or a chain of relations.
fn related(sides: Vec<Vec<Expr>>, signs: &[char]) -> Option<Vec<Expr>> {
    // `x = 1 \pm 2` names two values.
    let mut plain = Vec::with_capacity(sides.len());
    let last = sides.len() - 1;
    for (i, mut side) in sides.into_iter().enumerate() {
        plain.push(match (side.len(), i == last) {
            (1, _) => side.pop()?,
            (_, true) => Expr::Set(side),
            _ => return None,
        });
    }
    let mut links: Vec<Expr> = Vec::new();
    let mut sides = plain.into_iter();
    let mut left = sides.next()?;
    for (&sign, right) in signs.iter().zip(sides) {
        let relation = match sign {
            '≈' if links.is_empty() => {
                left = if left.is_name() { right } else { left };
                continue;
            }
            // The exact value stands before the sign.
            '≈' => continue,
            '=' | '∈' => Relation::Equal,
            '<' => Relation::Less,
            '>' => Relation::Greater,
            '≤' => Relation::LessEqual,
            '≥' => Relation::GreaterEqual,
            _ => Relation::NotEqual,
        };
        if sign == '∈' && !left.is_name() && !matches!(left, Expr::Interval { .. }) {
            return None;
        }
        links.push(Expr::Relation(relation, Box::new((left, right.clone()))));
        left = right;
    }
    Some(vec![match links.len() {
        0 => left,
        1 => links.pop()?,
        _ => Expr::Chain(links),
    }])
}

/// `x = 1, 2` gives `x` a set; `x = 1, y = 2` is a set of equations.
fn named_list(groups: &[Vec<Expr>]) -> Option<Expr> {
    let (first, rest) = groups.split_first()?;
    let (Expr::Relation(Relation::Equal, pair), others) = first.split_first()? else {
        return None;
    };
    let more = !others.is_empty() || !rest.is_empty();
    let plain = others.iter().chain(rest.iter().flatten()).all(|element| !element.is_relation());
    if !more
        || !plain
        || !matches!(pair.0, Expr::Symbol(_) | Expr::Interval { .. } | Expr::Tuple(_))
    {
        return None;
    }
    let mut head = match &pair.1 {
        Expr::Set(items) if !items.is_empty() => items.clone(),
        other => vec![other.clone()],
    };
    head.extend_from_slice(others);
    let mut named = vec![head];
    named.extend_from_slice(rest);
    let relation = Box::new((pair.0.clone(), set_of(named)));
    Some(Expr::Relation(Relation::Equal, relation))
}

/// One element is itself; more are a set; groups of several are a set of tuples.
pub(crate) fn set_of(mut groups: Vec<Vec<Expr>>) -> Expr {
    if groups.len() == 1 {
        let mut group = groups.pop().unwrap_or_default();
        return match (group.len(), group.pop()) {
            (1, Some(only)) => only,
            (_, last) => Expr::Set(group.into_iter().chain(last).collect()),
        };
    }
    if groups.iter().all(|group| group.len() == 1) {
        return Expr::Set(groups.into_iter().flatten().collect());
    }
    Expr::Set(groups.into_iter().map(Expr::Tuple).collect())
}
