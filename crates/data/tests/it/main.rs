//! Integration tests of the crate `data`: one binary.

mod chat_bounds;
mod check;
mod contradictions;
mod convert;
mod image;
mod image_bombs;
mod image_damaged;
mod image_decode;
mod image_folder;
mod image_processor;
mod image_resize;
mod loading;
mod model_folder;
mod odd_rows;
mod orientation;
mod prompts;
mod rows;

use std::path::PathBuf;

/// A folder of golden files. A missing one fails the test that asks for it.
fn golden(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name);
    assert!(path.exists(), "golden files missing: {}", path.display());
    path
}
