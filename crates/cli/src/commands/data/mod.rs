//! `data`: rows before a run. What is checked and converted is the matter of `data::check` and
//! `data::convert`; here are the rewards of true answers, and what is written and said.

mod check;
mod convert;

pub use check::data_check;
pub use convert::data_convert;
