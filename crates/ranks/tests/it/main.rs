//! Ranks that are processes: this program starts itself as each of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faults;
mod meeting;
mod rank;
mod run;
