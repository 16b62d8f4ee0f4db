//! Damaged and odd PNG files: what Pillow reads is read and equal, what it refuses is refused
//! (`golden/images/damaged.json`, made by `tools/golden/damaged.py`).

use std::collections::BTreeMap;

use data::image::{MAX_DECODED_PIXELS, decode};
use serde::Deserialize;

use crate::image::{assert_all_equal, sha256};

#[derive(Deserialize)]
struct Golden {
    /// Of `arithmetic.jpg`.
    arithmetic: String,
    cases: Vec<Case>,
    flips: BTreeMap<String, Vec<(usize, u8, Option<String>)>>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    bytes: String,
    rgb_sha256: Option<String>,
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let digits = self.bytes.as_bytes().chunks_exact(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        digits.map(|pair| byte(pair).expect("hex")).collect()
    }
}

fn golden() -> Golden {
    testing::read_json(testing::golden("images/damaged.json"))
}

/// Where ours and Pillow's verdicts differ, in words.
fn differing(name: &str, bytes: &[u8], pillow: Option<&str>) -> Option<String> {
    let ours = decode(bytes, MAX_DECODED_PIXELS);
    match (ours, pillow) {
        (Err(_), None) => None,
        (Ok(image), Some(pillow)) => (!sha256(image.pixels()).starts_with(pillow))
            .then(|| format!("{name}: other samples than Pillow's")),
        (Err(error), Some(_)) => Some(format!("{name}: Pillow reads it; {error}")),
        (Ok(_), None) => Some(format!("{name}: Pillow refuses it")),
    }
}

#[test]
fn damaged_files_are_read_where_pillow_reads_them() {
    let cases = golden().cases;
    let found = cases
        .iter()
        .filter_map(|case| differing(&case.name, &case.bytes(), case.rgb_sha256.as_deref()));
    assert_all_equal("damaged", cases.len(), &found.collect::<Vec<_>>());
}

#[test]
fn one_changed_byte_is_judged_as_pillow_judges_it() {
    let Golden { cases, flips, .. } = golden();
    let (mut found, mut total) = (Vec::new(), 0);
    for (name, flips) in &flips {
        let case = cases.iter().find(|case| case.name == *name);
        let good = case.expect("a file of the list").bytes();
        for (offset, xor, pillow) in flips {
            let mut bytes = good.clone();
            bytes[*offset] ^= xor;
            let name = format!("{name}: byte {offset} ^ {xor}");
            found.extend(differing(&name, &bytes, pillow.as_deref()));
            total += 1;
        }
    }
    assert_all_equal("flips", total, &found);
}

#[test]
fn arithmetic_coding_is_decoded_as_by_pillow() {
    let bytes = std::fs::read(testing::golden("images").join("arithmetic.jpg")).expect("a file");
    let image = decode(&bytes, MAX_DECODED_PIXELS).expect("an image");
    assert_eq!([image.width(), image.height()], [133, 97]);
    assert_eq!(sha256(image.pixels()), golden().arithmetic);
    for cut in [bytes.len() / 2, bytes.len() - 2] {
        assert!(decode(&bytes[..cut], MAX_DECODED_PIXELS).is_err(), "cut to {cut}");
    }
}

#[test]
fn jpegs_of_other_kinds_are_unsupported_and_not_corrupt() {
    let good = crate::image::input_bytes("444.jpg");
    let frame = good.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame");
    // The marker, two bytes of length, bits a sample, height, width, components.
    for (offset, value, cause) in [
        (1, 0xc3, "lossless coding (SOF 0xc3)"),
        (1, 0xc5, "hierarchical coding (SOF 0xc5)"),
        (1, 0xc7, "hierarchical coding (SOF 0xc7)"),
        (1, 0xcb, "lossless arithmetic coding (SOF 0xcb)"),
        (1, 0xcf, "hierarchical arithmetic coding (SOF 0xcf)"),
        (4, 12, "12 bits a sample"),
        (4, 16, "16 bits a sample"),
    ] {
        let mut bytes = good.clone();
        bytes[frame + offset] = value;
        let error = decode(&bytes, MAX_DECODED_PIXELS).expect_err(cause).to_string();
        assert!(
            error.starts_with(&format!("unsupported JPEG: {cause}\nhint: convert it")),
            "{error}"
        );
    }
    // Two of its components.
    let mut two = good[..frame + 10].to_vec();
    two[frame + 3] -= 3;
    two[frame + 9] = 2;
    two.extend(&good[frame + 10..frame + 16]);
    two.extend(&good[frame + 19..]);
    let scan = two.windows(2).position(|pair| pair == [0xff, 0xda]).expect("a scan");
    two[scan + 3] -= 2;
    two[scan + 4] = 2;
    two.drain(scan + 9..scan + 11);
    let error = decode(&two, MAX_DECODED_PIXELS).expect_err("two components").to_string();
    assert!(error.starts_with("unsupported JPEG: "), "{error}");
    let mut corrupt = good.clone();
    corrupt[frame + 3] += 1;
    let error = decode(&corrupt, MAX_DECODED_PIXELS).expect_err("a wrong length").to_string();
    assert!(error.starts_with("corrupt JPEG: "), "{error}");
}
