//! What must equal CPython: `json.loads` and `json.dumps`, `repr` and `str`, white space and digits
//! of texts, `random.shuffle`, and pickles of plain data.
//!
//! VLM-R1, transformers and the data sets of both were written in Python. The same row must give
//! the same prompt here, and the same completion the same reward. No Python is needed or started.

pub mod json;
pub mod json_dumps;
pub mod pickle;
pub mod random;
pub mod repr;
pub mod text;
