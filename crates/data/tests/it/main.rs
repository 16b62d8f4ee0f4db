//! Integration tests of the crate `data`: one binary.
