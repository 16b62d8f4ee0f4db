//! Sampling from the tiny checkpoints of `golden/parity`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod device;
mod equal;
mod golden;
mod open;
mod rules;
mod support;
