//! Integration tests of training: parity with the reference, exactness, resume.

mod golden;
mod grpo_golden;
mod parity;
