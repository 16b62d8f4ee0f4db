//! Decoded samples equal Pillow's; what Pillow refuses is refused, with file and cause.

use std::path::Path;

use data::image::{ImageCause, ImageError, MAX_DECODED_PIXELS, check_magic, decode, decode_file};
use serde::Deserialize;

use crate::image::{Decoded, assert_all_equal, cases, input, input_bytes, sha256};

#[test]
fn every_format_equals_pillow() {
    let cases: Vec<Decoded> = cases("decoded");
    let mut differing = Vec::new();
    for case in &cases {
        match decode_file(&input(&case.file), MAX_DECODED_PIXELS) {
            Ok(image) => {
                assert_eq!([image.width(), image.height()], case.size, "{}", case.file);
                if sha256(image.pixels()) != case.rgb_sha256 {
                    differing.push(format!("{} ({})", case.file, case.mode));
                }
            }
            Err(error) => differing.push(error.to_string()),
        }
    }
    assert_all_equal("decoded", cases.len(), &differing);
}

#[derive(Deserialize)]
struct Cut {
    file: String,
    keep: usize,
    rgb_sha256: Option<String>,
}

/// What Pillow cannot decode is an error here too; what both decode is equal.
#[test]
fn cut_files_fail_where_pillow_fails() {
    let cases: Vec<Cut> = cases("truncated");
    let mut differing = Vec::new();
    for case in &cases {
        let decoded = decode(&input_bytes(&case.file)[..case.keep], MAX_DECODED_PIXELS);
        let ours = decoded.map(|image| sha256(image.pixels()));
        let agree = match (&ours, &case.rgb_sha256) {
            (Ok(ours), Some(pillow)) => ours == pillow,
            // Stricter than Pillow is fine: the file is damaged.
            (Err(_), _) => true,
            (Ok(_), None) => false,
        };
        if !agree {
            differing.push(format!("{} cut to {} bytes", case.file, case.keep));
        }
    }
    assert_all_equal("cut", cases.len(), &differing);
}

#[test]
fn a_cut_file_is_called_truncated() {
    for (file, format) in [
        ("rgb_31x29.png", "PNG"),
        ("420.jpg", "JPEG"),
        ("lossless.webp", "WebP"),
        ("palette.gif", "GIF"),
        ("rgb.bmp", "BMP"),
    ] {
        let bytes = input_bytes(file);
        let error = decode(&bytes[..bytes.len() / 2], MAX_DECODED_PIXELS)
            .err()
            .unwrap_or_else(|| panic!("{file}: half a file was decoded"));
        let text = error.to_string();
        assert!(text.starts_with(&format!("truncated {format}")), "{file}: {text}");
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let files = [
        "rgb_31x29.png",
        "420.jpg",
        "progressive_420.jpg",
        "lossy.webp",
        "palette.gif",
        "rle8.bmp",
    ];
    for file in files {
        let good = input_bytes(file);
        for step in 1..60 {
            let mut bad = good.clone();
            let at = step * bad.len() / 60;
            bad[at] ^= 0x5a;
            // Either result will do.
            let _ = decode(&bad, 1 << 20);
        }
    }
}

#[test]
fn a_text_named_jpg_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("note.jpg");
    std::fs::write(&path, b"hello, this is no image").unwrap();
    let error = decode_file(&path, MAX_DECODED_PIXELS).unwrap_err();
    assert!(matches!(
        &error,
        ImageError::File { cause: ImageCause::NotAnImage { magic }, .. } if magic == "the text `hello, this is n`"
    ));
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.png");
    std::fs::write(&empty, b"").unwrap();
    let cause = |path: &Path| match decode_file(path, MAX_DECODED_PIXELS) {
        Err(ImageError::File { cause, .. }) => cause,
        other => panic!("{other:?}"),
    };
    assert!(check_magic(&empty).is_err());
    assert!(check_magic(&input("png_named.jpg")).is_ok());
    assert!(matches!(cause(&empty), ImageCause::Empty));
    assert!(matches!(cause(&dir.path().join("none.png")), ImageCause::Missing));
    assert!(matches!(cause(dir.path()), ImageCause::NotAFile));
}

#[test]
fn declared_sizes_are_checked_before_decoding() {
    let mut png = input_bytes("rgb_31x29.png");
    png[16..20].copy_from_slice(&100_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&100_000u32.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    assert!(matches!(
        decode(&png, MAX_DECODED_PIXELS),
        Err(ImageCause::TooLarge { width: 100_000, height: 100_000, .. })
    ));
    for file in ["420.jpg", "lossy.webp", "palette.gif", "rgb.bmp", "rgba.png"] {
        let bytes = input_bytes(file);
        let image = decode(&bytes, MAX_DECODED_PIXELS).unwrap();
        let pixels = u64::from(image.width()) * u64::from(image.height());
        assert!(decode(&bytes, pixels).is_ok(), "{file}");
        let error = decode(&bytes, pixels - 1).err();
        assert!(matches!(error, Some(ImageCause::TooLarge { .. })), "{file}: {error:?}");
    }
}

pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let with = |crc: u32, &byte: &u8| (0..8).fold(crc ^ u32::from(byte), step);
    !bytes.iter().fold(!0, with)
}
