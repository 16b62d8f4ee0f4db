//! `data`: rows before a run. What is checked is `data::check`'s matter; here are the rewards of true
//! answers, and the text, the file and the page.

mod check;

pub use check::data_check;
