//! Integration tests of `config`.

#[cfg(test)]
mod config;
mod deepspeed;
#[cfg(test)]
mod evaluations;
mod flags;
