//! Integration tests of training: parity with the reference, exactness, resume.

#![allow(clippy::unwrap_used)]

mod chunks;
mod golden;
mod grpo_golden;
mod optimizer_golden;
mod parity;
mod plugins;
mod runs;
mod sharing;
