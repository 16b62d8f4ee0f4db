//! Ranks that are processes: this program starts itself as each of them.

mod faults;
mod meeting;
mod rank;
mod run;
