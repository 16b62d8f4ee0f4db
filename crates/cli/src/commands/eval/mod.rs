//! `eval --compare`, and the pages of evaluations.

mod compare;
mod compare_page;
pub mod page;
mod pictures;

pub use compare::{check_comparison, compare, is_comparison};
