//! Golden files of the image path: `golden/images`, made by `tools/golden/images.py`.

use std::path::PathBuf;

use data::image::RgbImage;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use testing::golden;

pub fn input(name: &str) -> PathBuf {
    golden("images/inputs").join(name)
}

pub fn input_bytes(name: &str) -> Vec<u8> {
    let path = input(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A list of the manifest; a missing or empty one fails the test.
pub fn cases<T: DeserializeOwned>(list: &str) -> Vec<T> {
    let cases: Vec<T> = serde_json::from_value(manifest()[list].take()).expect(list);
    assert!(!cases.is_empty(), "no cases in `{list}`");
    cases
}

pub fn manifest() -> Value {
    testing::read_json(golden("images/manifest.json"))
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image of pseudo-random samples.
pub fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = 1u32;
    let samples = (0..3 * width * height).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    RgbImage::new(width, height, samples.collect())
}

/// Reports all that differ, after all were tried.
pub fn assert_all_equal(what: &str, total: usize, differing: &[String]) {
    assert!(
        differing.is_empty(),
        "{what}: {} of {total} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}

#[derive(Deserialize)]
pub struct Decoded {
    pub file: String,
    pub mode: String,
    pub size: [u32; 2],
    pub rgb_sha256: String,
}
