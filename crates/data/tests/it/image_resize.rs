//! Resized samples equal torchvision's and Pillow's.

use std::collections::BTreeMap;

use data::image::{Filter, MAX_DECODED_PIXELS, ResizeBackend, RgbImage, decode_file, resize};
use proptest::prelude::*;
use serde::Deserialize;

use crate::image::{assert_all_equal, cases, input, sha256};

#[derive(Deserialize)]
struct Resized {
    file: String,
    size: [u32; 2],
    rgb_sha256: BTreeMap<String, String>,
}

fn kind(name: &str) -> (Filter, ResizeBackend) {
    match name {
        "torchvision_bilinear" => (Filter::Bilinear, ResizeBackend::Torchvision),
        "torchvision_bicubic" => (Filter::Bicubic, ResizeBackend::Torchvision),
        "pillow_bilinear" => (Filter::Bilinear, ResizeBackend::Pillow),
        "pillow_bicubic" => (Filter::Bicubic, ResizeBackend::Pillow),
        "pillow_lanczos" => (Filter::Lanczos, ResizeBackend::Pillow),
        other => panic!("unknown kind `{other}`"),
    }
}

#[test]
fn every_kind_equals_its_reference() {
    let cases: Vec<Resized> = cases("resized");
    let mut differing = Vec::new();
    let mut total = 0;
    for case in &cases {
        let image = decode_file(&input(&case.file), MAX_DECODED_PIXELS).unwrap();
        let [width, height] = case.size;
        assert_eq!(case.rgb_sha256.len(), 5);
        for (name, expected) in &case.rgb_sha256 {
            let (filter, backend) = kind(name);
            let resized = resize(&image, width, height, filter, backend);
            total += 1;
            if &sha256(resized.pixels()) != expected {
                differing.push(format!("{} to {width}x{height} by {name}", case.file));
            }
        }
    }
    assert_all_equal("resized", total, &differing);
}

fn any_kind() -> impl Strategy<Value = (Filter, ResizeBackend)> {
    prop_oneof![
        Just((Filter::Bicubic, ResizeBackend::Torchvision)),
        Just((Filter::Bilinear, ResizeBackend::Torchvision)),
        Just((Filter::Bicubic, ResizeBackend::Pillow)),
        Just((Filter::Bilinear, ResizeBackend::Pillow)),
        Just((Filter::Lanczos, ResizeBackend::Pillow)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The weights of an output sum to one, to rounding: one colour stays that colour.
    #[test]
    fn a_constant_image_stays_constant(
        sides in [1u32..90, 1u32..90, 1u32..90, 1u32..90],
        color: [u8; 3],
        (filter, backend) in any_kind(),
    ) {
        let [width, height, new_width, new_height] = sides;
        let pixels = color.repeat((width * height) as usize);
        let image = RgbImage::new(width, height, pixels);
        let resized = resize(&image, new_width, new_height, filter, backend);
        prop_assert_eq!(resized.width(), new_width);
        prop_assert_eq!(resized.height(), new_height);
        prop_assert!(resized.pixels().chunks_exact(3).all(|pixel| pixel == color));
    }
}
