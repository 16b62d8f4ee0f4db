//! Arithmetic as a programmer writes it: `-3 * (2 + 1/4)^2`, digits and signs only.

use crate::expr::{Expr, Number, product, sum};

/// Deepest nesting of parentheses, signs and powers.
const MAX_DEPTH: usize = 40;

/// The value of an arithmetic text in Python's syntax, `^` for powers; `None` where it has none.
pub(crate) fn parse_plain(text: &str) -> Option<Expr> {
    let mut reader = Reader { rest: text.trim(), depth: 0 };
    let parsed = reader.sum()?;
    reader.rest.is_empty().then_some(parsed)
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn eat(&mut self, sign: &str) -> bool {
        match self.rest.strip_prefix(sign) {
            Some(after) => {
                self.rest = after.trim_start();
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<Expr> {
        let mut left = self.product()?;
        loop {
            if self.eat("+") {
                left = sum(left, self.product()?);
            } else if self.eat("-") {
                left = left.minus(self.product()?);
            } else {
                return Some(left);
            }
        }
    }

    fn product(&mut self) -> Option<Expr> {
        let mut left = self.signed()?;
        loop {
            if self.rest.starts_with("**") {
                return None;
            } else if self.eat("*") {
                left = product(left, self.signed()?);
            } else if self.eat("/") {
                left = left.over(self.signed()?);
            } else {
                return Some(left);
            }
        }
    }

    fn signed(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let value = if self.eat("-") {
            self.signed()?.negated()
        } else if self.eat("+") {
            self.signed()?
        } else {
            self.power()?
        };
        self.depth -= 1;
        Some(value)
    }

    fn power(&mut self) -> Option<Expr> {
        let base = self.atom()?;
        if self.eat("^") || self.eat("**") {
            return Some(Expr::Pow(Box::new((base, self.signed()?))));
        }
        Some(base)
    }

    fn atom(&mut self) -> Option<Expr> {
        if self.eat("(") {
            let inside = self.sum()?;
            return self.eat(")").then_some(inside);
        }
        let digit = |c: char| c.is_ascii_digit() || c == '.';
        let end = self.rest.find(|c| !digit(c)).unwrap_or(self.rest.len());
        let digits = &self.rest[..end];
        let leading_zero = digits.len() > 1
            && digits.starts_with('0')
            && !digits.contains('.')
            && digits.bytes().any(|b| b != b'0');
        if leading_zero || digits.matches('.').count() > 1 {
            return None;
        }
        let number = Number::parse(digits)?;
        self.rest = self.rest[end..].trim_start();
        Some(Expr::Number(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{BITS, Value, constant};
    use crate::work::Work;

    fn value(text: &str) -> Option<String> {
        match constant(&parse_plain(text)?, BITS, &Work::for_reading())? {
            Value::Exact(value) => Some(value.to_string()),
            Value::Rounded(z) => Some(z.re.to_f64().to_string()),
        }
    }

    #[test]
    fn arithmetic_by_hand() {
        assert_eq!(value("1 + 2*3/4").as_deref(), Some("5/2"));
        assert_eq!(value("-2^2").as_deref(), Some("-4"));
        assert_eq!(value("2^3^2").as_deref(), Some("512"));
        assert_eq!(value("2**-1").as_deref(), Some("1/2"));
        assert_eq!(value("0.1+0.2").as_deref(), Some("3/10"));
        for bad in ["", "1 2", "2(3)", "1+", "(1", "1.2.3", "007", "1/0"] {
            assert_eq!(value(bad), None, "{bad}");
        }
    }
}
