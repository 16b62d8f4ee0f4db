//! Integration tests of training: parity with the reference, exactness, resume.

#![allow(clippy::unwrap_used, clippy::print_stdout)]
mod bad_steps;
mod checkpoints;
mod chunks;
mod device;
mod evaluations;
mod features;
mod golden;
mod grpo_golden;
mod lora;
mod lora_runs;
mod memory;
mod metrics;
mod offload;
mod optimizer_golden;
mod out_of_memory;
mod parity;
mod parts;
mod plugins;
mod predictions;
mod ranks;
mod resume;
mod runs;
mod sharing;
mod variants;
