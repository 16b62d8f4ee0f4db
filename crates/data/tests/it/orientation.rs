//! Images whose metadata turn them: found in every format, turned by hand-made arrays, told where they are not turned.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use base::{Example, SourceLine};
use data::image::{ImageOptions, MAX_DECODED_PIXELS, Orientation, RgbImage, decode_upright};
use data::{ImageProcessor, ResizeBackend, notices_of};
use image::ImageFormat;

/// EXIF with the orientation as its second tag.
fn exif(orientation: u16, is_little: bool) -> Vec<u8> {
    let short = |n: u16| {
        if is_little { n.to_le_bytes() } else { n.to_be_bytes() }
    };
    let long = |n: u32| {
        if is_little { n.to_le_bytes() } else { n.to_be_bytes() }
    };
    let mut bytes = if is_little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
    bytes.extend(long(8));
    bytes.extend(short(2));
    for (tag, value) in [(0x0100, 7), (0x0112, orientation)] {
        bytes.extend([short(tag), short(3)].concat());
        bytes.extend(long(1));
        bytes.extend([short(value), short(0)].concat());
    }
    bytes.extend(long(0));
    bytes
}

fn xmp(orientation: u16, is_attribute: bool) -> String {
    match is_attribute {
        true => format!("<rdf:Description tiff:Orientation=\"{orientation}\"/>"),
        false => format!("<tiff:Orientation>{orientation}</tiff:Orientation>"),
    }
}

/// An image whose red is `10 * row + column`.
fn test_image(width: u32, height: u32) -> RgbImage {
    let pixel = |i: u32| [(10 * (i / width) + i % width) as u8, 0, 200];
    RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect())
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let stored = test_image(3, 2);
    let image = image::RgbImage::from_raw(3, 2, stored.pixels().to_vec()).expect("an image");
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// A PNG with a chunk before its image, or behind it.
fn png(name: &[u8; 4], content: &[u8], is_before: bool) -> Vec<u8> {
    let named = [name.as_slice(), content].concat();
    let length = (content.len() as u32).to_be_bytes();
    let chunk = [&length[..], &named, &crc32(&named).to_be_bytes()].concat();
    let mut bytes = encoded(ImageFormat::Png);
    // Behind the header of 8 + 25 bytes, or before the 12 of the end.
    let at = if is_before { 33 } else { bytes.len() - 12 };
    bytes.splice(at..at, chunk);
    bytes
}

/// An extended WebP with chunks behind its image.
fn webp(flags: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let simple = encoded(ImageFormat::WebP);
    let mut body = b"WEBPVP8X".to_vec();
    body.extend(10u32.to_le_bytes());
    body.extend([flags, 0, 0, 0, 2, 0, 0, 1, 0, 0]);
    body.extend(&simple[12..]);
    for (name, content) in chunks {
        body.extend(*name);
        body.extend((content.len() as u32).to_le_bytes());
        body.extend(*content);
        body.extend(vec![0; content.len() % 2]);
    }
    [b"RIFF".as_slice(), &(body.len() as u32).to_le_bytes(), &body].concat()
}

/// A JPEG of these segments APP1, as far as its image.
fn jpeg(segments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2];
    for segment in segments {
        bytes.extend([0xff, 0xe1]);
        bytes.extend((segment.len() as u16 + 2).to_be_bytes());
        bytes.extend(*segment);
    }
    bytes.extend([0xff, 0xda, 0, 2, 9, 9]);
    bytes
}

fn number(bytes: &[u8]) -> Option<u8> {
    Orientation::of_bytes(bytes).map(Orientation::number)
}

#[test]
fn each_orientation_turns_as_pillow_does() {
    // Stored:  0  1  2
    //         10 11 12
    for (orientation, size, rows) in [
        (1, [3, 2], [0, 1, 2, 10, 11, 12]),
        (2, [3, 2], [2, 1, 0, 12, 11, 10]),
        (3, [3, 2], [12, 11, 10, 2, 1, 0]),
        (4, [3, 2], [10, 11, 12, 0, 1, 2]),
        (5, [2, 3], [0, 10, 1, 11, 2, 12]),
        (6, [2, 3], [10, 0, 11, 1, 12, 2]),
        (7, [2, 3], [12, 2, 11, 1, 10, 0]),
        (8, [2, 3], [2, 12, 1, 11, 0, 10]),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.png");
        fs::write(&path, png(b"eXIf", &exif(orientation, true), true)).expect("writes");
        let stored = decode_upright(&path, MAX_DECODED_PIXELS, false).expect("decodes");
        assert_eq!(stored, test_image(3, 2));
        let turned = decode_upright(&path, MAX_DECODED_PIXELS, true).expect("decodes");
        assert_eq!([turned.width(), turned.height()], size, "{orientation}");
        let red: Vec<u8> = turned.pixels().chunks_exact(3).map(|pixel| pixel[0]).collect();
        assert_eq!(red, rows, "{orientation}");
        let found = Orientation::of_file(&path);
        assert_eq!(found.map_or([3, 2], |o| o.turned_size([3, 2])), size);
    }
}

#[test]
fn orientations_are_found_where_each_format_has_them() {
    let exif_segment =
        |orientation, is_little| [b"Exif\0\0".as_slice(), &exif(orientation, is_little)].concat();
    let xmp_segment =
        [b"http://ns.adobe.com/xap/1.0/\0".as_slice(), xmp(8, true).as_bytes()].concat();
    let [six, three] = [exif_segment(6, true), exif_segment(3, false)];
    assert_eq!(number(&jpeg(&[&six])), Some(6));
    assert_eq!(number(&jpeg(&[&three])), Some(3));
    assert_eq!(number(&jpeg(&[b"other", &xmp_segment])), Some(8));
    assert_eq!(number(&jpeg(&[&xmp_segment, &six])), Some(6), "EXIF comes first");
    assert_eq!(number(&jpeg(&[&exif_segment(1, true), &xmp_segment])), None);
    assert_eq!(number(&jpeg(&[&exif_segment(9, true)])), None);
    assert_eq!(number(&jpeg(&[])), None);

    assert_eq!(number(&png(b"eXIf", &exif(5, false), true)), Some(5));
    assert_eq!(number(&png(b"eXIf", &exif(5, false), false)), Some(5), "behind the image");
    let text = [b"XML:com.adobe.xmp\0\0\0\0\0".as_slice(), xmp(4, false).as_bytes()].concat();
    assert_eq!(number(&png(b"iTXt", &text, true)), Some(4));
    assert_eq!(number(&encoded(ImageFormat::Png)), None);

    let (seven, two) = (exif(7, true), xmp(2, true));
    assert_eq!(number(&webp(0x08, &[(b"EXIF", &seven)])), Some(7));
    assert_eq!(number(&webp(0x08, &[(b"EXIF", &six)])), Some(6), "with a mark before it");
    assert_eq!(number(&webp(0x04, &[(b"XMP ", two.as_bytes())])), Some(2));
    assert_eq!(number(&webp(0, &[(b"EXIF", &seven)])), None, "a chunk that is not announced");
    assert_eq!(number(&encoded(ImageFormat::WebP)), None);
    assert_eq!(number(b"GIF89a______________"), None);
}

#[test]
fn broken_metadata_are_none() {
    let whole = jpeg(&[&[b"Exif\0\0".as_slice(), &exif(6, true)].concat()]);
    for keep in 0..whole.len() {
        number(&whole[..keep]);
    }
    for at in 8..whole.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            number(&bytes);
        }
    }
    let webp = webp(0x08, &[(b"EXIF", &exif(6, true))]);
    let png = png(b"eXIf", &exif(6, true), false);
    for (keep, bytes) in [(webp.len() - 5, &webp), (png.len() - 30, &png)] {
        number(&bytes[..keep]);
    }
}

fn example(path: &Path, line: usize) -> Example {
    Example {
        source: SourceLine::new("train.jsonl", line),
        images: vec![path.to_owned()],
        problem: "q".to_owned(),
        solution: "<answer> a </answer>".to_owned(),
        answer: "a".to_owned(),
        accu_reward_method: None,
        columns: serde_json::Map::new(),
    }
}

#[test]
fn a_processor_turns_where_it_is_told_to_and_all_sizes_follow() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.png");
    let tall = RgbImage::new(56, 28, vec![90; 56 * 28 * 3]);
    let mut bytes = Cursor::new(Vec::new());
    let image = image::RgbImage::from_raw(56, 28, tall.pixels().to_vec()).expect("an image");
    image.write_to(&mut bytes, ImageFormat::Png).expect("encodes");
    let mut bytes = bytes.into_inner();
    let chunk = png(b"eXIf", &exif(6, true), true);
    let added = chunk.len() - encoded(ImageFormat::Png).len();
    bytes.splice(33..33, chunk[33..33 + added].iter().copied());
    fs::write(&path, bytes).expect("writes");
    let options = ImageOptions::new(ResizeBackend::Pillow);
    let processor = ImageProcessor::without_model(&options).expect("settings");
    let stored = processor.load(&path).expect("loads");
    let turned = processor.with_apply_exif(true).load(&path).expect("loads");
    assert_eq!((stored.original_size, turned.original_size), ([56, 28], [28, 56]));
    assert_eq!(stored.layout.tiles[0][1], turned.layout.tiles[0][2]);
    assert_ne!(stored.digest(), turned.digest());

    let rows = [example(&path, 1), example(&path, 2)];
    let said = notices_of(&rows, false).join("\n");
    assert!(
        said.starts_with("warning: 1 of 1 images") && said.contains("(orientation 6)"),
        "{said}"
    );
    assert!(said.contains("hint: `--apply_exif true`"), "{said}");
    assert!(notices_of(&rows, true).is_empty());
}
