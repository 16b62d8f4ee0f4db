//! `eval --compare`.

mod compare;

pub use compare::{check_comparison, compare, is_comparison};
