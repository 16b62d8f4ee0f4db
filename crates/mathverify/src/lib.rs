//! Whether two mathematical answers mean the same, in the role of Python's math-verify 0.9.
//!
//! Answers are LaTeX or plain text, usually the whole text of a language model:
//!
//! ```
//! use mathverify::{parse, verify};
//!
//! assert!(verify(r"So the answer is $\boxed{0.5}$.", r"$\frac{1}{2}$"));
//! assert!(verify("$x = 5$", "5"));
//! assert!(!verify("$[0, 1)$", "$[0, 1]$"));
//!
//! // Reading the gold answer once:
//! let gold = parse(r"$\{1, 2\}$");
//! assert!(gold.matches(&parse("the roots are $2, 1$")));
//! ```
//!
//! An answer is found in the text (`extract`), stripped of units and styling (`normalize`), parsed
//! (`lexer`, `parser`, `operand`, `bound`, `plain`) and compared (`compare`, `equal`, `value`).
//! Fractions are exact. Other numbers are complex with a bound on their error (`real`, `complex`).
//! Expressions with variables are compared at fixed points.
//!
//! Length, depth, size of numbers and work are bounded, so hostile text takes milliseconds. An
//! answer beyond a bound equals only the same text. Differences from math-verify are listed in
//! `docs/maths.md`.

mod bound;
mod compare;
mod complex;
mod environment;
mod equal;
mod expr;
mod extract;
mod lexer;
mod matrix;
mod normalize;
mod operand;
mod parser;
mod plain;
mod real;
mod same_latex;
mod solution;
mod value;
mod work;

pub use extract::{Answer, parse};
pub use same_latex::same_latex;

/// Whether the answer in `target` equals that in `gold`: math-verify's
/// `verify(parse(gold), parse(target))`. Where the two differ in form, the form of `gold` counts.
pub fn verify(gold: &str, target: &str) -> bool {
    parse(gold).matches(&parse(target))
}
