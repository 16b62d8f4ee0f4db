//! The expression tree that the parser builds and the comparison walks.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;

/// A number as written: its exact value, and whether it had a decimal point.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Number {
    pub(crate) value: BigRational,
    /// Decimals are compared after rounding, fractions and integers exactly.
    pub(crate) decimal: bool,
}

impl Number {
    pub(crate) fn integer(n: i64) -> Self {
        Self::exact(BigRational::from_integer(n.into()))
    }

    pub(crate) fn exact(value: BigRational) -> Self {
        Self { value, decimal: false }
    }

    /// Digits, at most one `.`, an exponent within bounds: `-12`, `.5`, `1.5E-3`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['E', 'e']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || digits.len() > MAX_DIGITS || exponent.unsigned_abs() > 400 {
            return None;
        }
        let mut value = BigRational::from_integer(BigInt::parse_bytes(digits.as_bytes(), 10)?);
        let shift = exponent - i32::try_from(fraction.len()).ok()?;
        let power = BigRational::from_integer(BigInt::from(10).pow(shift.unsigned_abs()));
        if shift < 0 {
            value /= power;
        } else {
            value *= power;
        }
        Some(Self {
            value: if negative { -value } else { value },
            decimal: mantissa.contains('.') || text.contains(['E', 'e']),
        })
    }
}

/// Longest number that is read, in digits.
const MAX_DIGITS: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constant {
    Pi,
    E,
    I,
    Infinity,
    EulerGamma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Log,
    Exp,
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Asin,
    Acos,
    Atan,
    Acot,
    Asec,
    Acsc,
    Sinh,
    Cosh,
    Tanh,
    Asinh,
    Acosh,
    Atanh,
    Abs,
    Floor,
    Ceil,
    Factorial,
    Binomial,
    Gcd,
    Lcm,
    Max,
    Min,
    Mod,
    Det,
}

/// What runs over a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binder {
    Sum,
    Product,
    Integral,
    Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Relation {
    /// The relation that holds with the sides swapped; `NotEqual` has none here, as in the reference.
    pub(crate) fn flipped(self) -> Option<Self> {
        match self {
            Self::Equal => Some(Self::Equal),
            Self::NotEqual => None,
            Self::Less => Some(Self::Greater),
            Self::LessEqual => Some(Self::GreaterEqual),
            Self::Greater => Some(Self::Less),
            Self::GreaterEqual => Some(Self::LessEqual),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetOp {
    Union,
    Intersection,
    Minus,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Number(Number),
    /// A variable or a word, in lower case.
    Symbol(String),
    Constant(Constant),
    /// Hundredths of what is inside.
    Percent(Box<Expr>),
    Add(Vec<Expr>),
    Mul(Vec<Expr>),
    Pow(Box<(Expr, Expr)>),
    Call(Function, Vec<Expr>),
    /// A function of which only the name is known.
    Apply(String, Vec<Expr>),
    /// Body, variable, from, to.
    Bound(Binder, Box<Expr>, String, Box<(Expr, Expr)>),
    Matrix(Vec<Vec<Expr>>),
    Relation(Relation, Box<(Expr, Expr)>),
    /// `a < b < c`: at least two relations.
    Chain(Vec<Expr>),
    Set(Vec<Expr>),
    Tuple(Vec<Expr>),
    Interval {
        ends: Box<(Expr, Expr)>,
        open: (bool, bool),
    },
    SetOp(SetOp, Box<(Expr, Expr)>),
    /// `N`, `Z`, `Q`, `R`, `C`, `P`.
    NamedSet(char),
}

impl Expr {
    pub(crate) fn integer(n: i64) -> Self {
        Self::Number(Number::integer(n))
    }

    pub(crate) fn negated(self) -> Self {
        match self {
            Self::Number(n) => Self::Number(Number { value: -n.value, ..n }),
            other => product(Self::integer(-1), other),
        }
    }

    pub(crate) fn over(self, below: Self) -> Self {
        if let (Self::Number(a), Self::Number(b)) = (&self, &below)
            && !a.decimal
            && !b.decimal
            && a.value.is_integer()
            && b.value.is_integer()
            && !b.value.is_zero()
        {
            return Self::Number(Number::exact(&a.value / &b.value));
        }
        product(self, Self::Pow(Box::new((below, Self::integer(-1)))))
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        sum(self, other.negated())
    }

    /// Sets, intervals and tuples.
    pub(crate) fn is_collection(&self) -> bool {
        matches!(
            self,
            Self::Set(_)
                | Self::Tuple(_)
                | Self::Interval { .. }
                | Self::SetOp(..)
                | Self::NamedSet(_)
        )
    }

    /// A relation or a chain of them.
    pub(crate) fn is_relation(&self) -> bool {
        matches!(self, Self::Relation(..) | Self::Chain(_))
    }

    /// What arithmetic may be done with.
    pub(crate) fn is_value(&self) -> bool {
        !self.is_collection() && !self.is_relation()
    }

    /// Nothing but symbols, products and quotients of them: what may stand left of `=` as a name.
    pub(crate) fn is_name(&self) -> bool {
        match self {
            Self::Symbol(_) => true,
            Self::Add(parts)
            | Self::Mul(parts)
            | Self::Tuple(parts)
            | Self::Apply(_, parts)
            | Self::Call(_, parts) => !parts.is_empty() && parts.iter().all(Self::is_name),
            Self::Pow(pair) => {
                pair.0.is_name() && (pair.1 == Self::integer(-1) || pair.1.is_name())
            }
            _ => false,
        }
    }
}

/// `a + b`, sums within it laid flat.
pub(crate) fn sum(a: Expr, b: Expr) -> Expr {
    Expr::Add(joined(a, b, |side| match side {
        Expr::Add(parts) => Ok(parts),
        other => Err(other),
    }))
}

/// `a * b`, products within it laid flat.
pub(crate) fn product(a: Expr, b: Expr) -> Expr {
    Expr::Mul(joined(a, b, |side| match side {
        Expr::Mul(parts) => Ok(parts),
        other => Err(other),
    }))
}

/// The parts of both in order; those of the first are not copied, as sums and products grow at the end.
fn joined(a: Expr, b: Expr, parts: fn(Expr) -> Result<Vec<Expr>, Expr>) -> Vec<Expr> {
    let [mut a, b] = [a, b].map(|side| parts(side).unwrap_or_else(|other| vec![other]));
    a.extend(b);
    a
}
