//! Integration tests of `config`.

#[cfg(test)]
mod config;
#[cfg(test)]
mod evaluations;
mod flags;
