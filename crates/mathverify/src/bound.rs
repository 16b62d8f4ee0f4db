//! Matrices, and what runs over a variable: sums, products, integrals, limits.

use crate::expr::{Binder, Expr, Function, Relation};
use crate::lexer::Token;
use crate::parser::{Parser, value};

impl Parser<'_> {
    /// Rows of `&`-separated entries between `\begin` and `\end`.
    pub(crate) fn matrix(&mut self, determinant: bool) -> Option<Expr> {
        self.at += 1;
        let mut rows = vec![Vec::new()];
        loop {
            rows.last_mut()?.push(value(self.additive()?)?);
            if self.eat('&') {
                continue;
            }
            if self.eat('⏎') && !matches!(self.peek(), Some(Token::Matrix { .. })) {
                rows.push(Vec::new());
                continue;
            }
            let Some(Token::Matrix { begin: false, .. }) = self.peek() else {
                return None;
            };
            self.at += 1;
            break;
        }
        let width = rows[0].len();
        if rows.iter().any(|row| row.len() != width) {
            return None;
        }
        let matrix = Expr::Matrix(rows);
        Some(if determinant { Expr::Call(Function::Det, vec![matrix]) } else { matrix })
    }

    /// `\sum_{i=1}^{n} body` and `\prod`.
    pub(crate) fn bound(&mut self, binder: Binder) -> Option<Expr> {
        let mut range = None;
        let mut end = None;
        loop {
            if self.eat('_') {
                self.expect('{')?;
                let mut groups = self.groups()?;
                self.expect('}')?;
                range = groups.pop()?.pop();
            } else if self.eat('^') {
                end = Some(self.deeper(|p| p.exponent())?);
            } else {
                break;
            }
        }
        let Some(Expr::Relation(Relation::Equal, pair)) = range else {
            return None;
        };
        let (Expr::Symbol(variable), start) = *pair else {
            return None;
        };
        let body = self.deeper(|p| value(p.multiplicative()?))?;
        let ends = Box::new((start, end?));
        Some(Expr::Bound(binder, Box::new(body), variable, ends))
    }

    /// `\int_a^b body dx`: compared as written.
    pub(crate) fn integral(&mut self) -> Option<Expr> {
        let (mut from, mut to) = (Expr::Set(Vec::new()), Expr::Set(Vec::new()));
        loop {
            if self.eat('_') {
                from = self.deeper(|p| p.exponent())?;
            } else if self.eat('^') {
                to = self.deeper(|p| p.exponent())?;
            } else {
                break;
            }
        }
        let body = self.deeper(|p| value(p.additive()?))?;
        let ends = Box::new((from, to));
        Some(Expr::Bound(Binder::Integral, Box::new(body), String::new(), ends))
    }

    /// `\lim_{x \to a} body`: compared as written.
    pub(crate) fn limit(&mut self) -> Option<Expr> {
        self.expect('_')?;
        self.expect('{')?;
        let Expr::Symbol(variable) = self.single()? else {
            return None;
        };
        self.expect('→')?;
        let target = self.deeper(|p| value(p.additive()?))?;
        self.expect('}')?;
        let body = self.deeper(|p| value(p.multiplicative()?))?;
        let ends = Box::new((target, Expr::Set(Vec::new())));
        Some(Expr::Bound(Binder::Limit, Box::new(body), variable, ends))
    }
}
