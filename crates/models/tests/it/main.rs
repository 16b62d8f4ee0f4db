//! Tiny checkpoints of `golden/parity`: loaded, broken, saved; attention against a naive one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod attention;
mod batch;
mod config;
mod contradictions;
mod features;
mod files;
mod patterns;
mod save;
mod support;
mod tape;
mod weights;
