//! Tiny checkpoints of `golden/parity`: loaded, broken, saved; attention against a naive one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod attention;
mod checkpointing;
mod config;
mod contradictions;
mod device;
mod features;
mod files;
mod inputs;
mod names;
mod patterns;
mod save;
mod support;
mod weights;
