//! Integration tests of `base`.

mod config;
