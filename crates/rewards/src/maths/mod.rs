//! Whether two answers in LaTeX or plain text mean the same, in the role of math-verify 0.9.
//!
//! An answer is found in the text (`extract`), made plain (`normalize`), read (`lexer`, `parser`,
//! `operand`, `bound`, `plain`) and compared (`compare`, `equal`, `value`). Fractions are exact;
//! other numbers are complex with a bound on their error (`real`, `complex`), and expressions with
//! variables are compared at fixed points.
//! Length, depth, size of numbers and work are bounded: beyond a bound an answer has no meaning
//! and equals only the same text. Where it parts from math-verify is listed in `docs/maths.md`.

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
mod solution;
mod value;
mod work;

/// `verify(parse(gold), parse(target))` of math-verify: whether the answer in `target` equals that
/// in `gold`, whose form counts where the two differ in form.
pub fn verify(gold: &str, target: &str) -> bool {
    let (gold, target) = (extract::parse(gold), extract::parse(target));
    let meanings = gold.meaning.as_ref().zip(target.meaning.as_ref());
    if meanings.is_some_and(|(gold, target)| compare::equivalent(gold, target)) {
        return true;
    }
    let texts = gold.text.as_deref().zip(target.text.as_deref());
    texts.is_some_and(|(gold, target)| {
        let gold = gold.trim();
        !gold.is_empty() && gold == target.trim()
    })
}
