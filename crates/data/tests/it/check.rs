//! The doctor: everything wrong with a file is named in one pass.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use config::BoxFormat;
use data::check::{CheckOptions, CheckReport, FindingCount, Kind, SeenRow, check};
use data::image::ImageOptions;
use data::{
    DataFile, DataFiles, ImageProcessor, Processor, ProcessorOptions, PromptTemplate,
    ResizeBackend, RowChecks,
};
use image::RgbImage;
use serde_json::{Value, json};
use tempfile::TempDir;

use testing::golden;

/// An image that is told from others by `seed`.
fn test_image(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x * 8 / width, y * 8 / height);
        let level = |n: u32| ((x * 31 + y * 17 + seed * 97 + n * 53) * 40_503 / 7 % 256) as u8;
        image::Rgb([level(0), level(1), level(2)])
    })
}

fn save(dir: &Path, name: &str, image: &RgbImage) {
    fs::create_dir_all(dir.join("img")).expect("creates");
    image.save(dir.join("img").join(name)).expect("saves");
}

fn row(image: &str, question: &str, answer: Value) -> String {
    let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    json!({"image": image, "conversations": turns}).to_string()
}

fn write(dir: &Path, name: &str, rows: &[String]) -> DataFiles {
    fs::write(dir.join(name), rows.join("\n")).expect("writes");
    DataFiles {
        files: vec![DataFile {
            path: dir.join(name),
            image_folder: Some(dir.join("img")),
            reward_method: None,
        }],
    }
}

fn options() -> CheckOptions {
    let images = ImageProcessor::without_model(&ImageOptions {
        min_pixels: Some(3_136),
        max_pixels: Some(100_000),
        ..ImageOptions::new(ResizeBackend::Pillow)
    });
    CheckOptions {
        rows: RowChecks::default(),
        box_format: None,
        assumed_boxes: BoxFormat::Absolute,
        image_processor: Arc::new(images.expect("settings")),
        processor: None,
        template: PromptTemplate::resolve("rec").expect("a template"),
        probe: None,
        workers: 3,
        examples: 2,
    }
}

fn report(train: &DataFiles, test: Option<&DataFiles>, options: &CheckOptions) -> CheckReport {
    check(train, test, options, &mut |_| ControlFlow::Continue(())).expect("checks")
}

fn found(report: &CheckReport, kind: Kind) -> Option<&FindingCount> {
    report.findings.iter().find(|finding| finding.kind == kind)
}

/// Places and texts of a kind's examples, with the path of the folder taken out.
fn examples(report: &CheckReport, kind: Kind, dir: &TempDir) -> Vec<String> {
    let folder = format!("{}/", dir.path().display());
    let examples = found(report, kind).map(|found| found.examples.clone());
    let examples = examples.unwrap_or_default().into_iter();
    examples.map(|e| format!("{}: {}", e.place, e.text).replace(&folder, "")).collect()
}

#[test]
fn everything_wrong_is_named_in_one_pass() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(100, 80, 1));
    save(dir.path(), "tiny.png", &test_image(20, 40, 2));
    save(dir.path(), "huge.png", &test_image(500, 400, 3));
    let whole = fs::read(dir.path().join("img/a.png")).expect("reads");
    fs::write(dir.path().join("img/cut.png"), &whole[..whole.len() / 2]).expect("writes");
    fs::write(dir.path().join("img/not.png"), "<html>").expect("writes");
    let rows = [
        row("a.png", "<image>Where?", json!("[10, 10, 50, 60]")),
        row("b.png", "<image>Where?", json!("[10, 10, 50, 60]")),
        row("cut.png", "Where?", json!("[10, 10, 50, 60]")),
        row("not.png", "Where?", json!("[10, 10, 50, 60]")),
        row("tiny.png", "Where?", json!("x")),
        row("huge.png", "Where?", json!("x")),
        "{\"image\": ".to_owned(),
        row("a.png", "<image><image>Where?", json!("x")),
        row("a.png", "Where is <|image_pad|>?", json!("x")),
        row("a.png", "Out?", json!("[10, 10, 104, 60]")),
        row("a.png", "Empty?", json!("[50, 10, 10, 60]")),
        row("a.png", "Where?", json!("[10, 10, 50, 60]")),
        row("a.png", "Where?", json!("[11, 10, 50, 60]")),
        row("../a.png", "Where?", json!("x")),
        row("a.png", "Edge?", json!("[0, 0, 102, 82]")),
    ];
    let train = write(dir.path(), "train.jsonl", &rows);
    let report = report(&train, None, &options());
    let kinds: Vec<(Kind, u64)> = report.findings.iter().map(|f| (f.kind, f.count)).collect();
    assert_eq!(
        kinds,
        [
            (Kind::BadRow, 1),
            (Kind::ImageMarks, 1),
            (Kind::ReservedToken, 1),
            (Kind::ImageMissing, 1),
            (Kind::ImageOutside, 1),
            (Kind::BrokenImage, 2),
            (Kind::EmptyBox, 1),
            (Kind::BoxOutside, 1),
            (Kind::TinyImage, 1),
            (Kind::HugeImage, 1),
            (Kind::DuplicateRow, 1),
            (Kind::Contradiction, 1),
        ]
    );
    assert_eq!((report.errors, report.warnings), (9, 4));
    assert_eq!((report.files[0].rows, report.files[0].good), (15, 6));
    let told = |kind| examples(&report, kind, &dir);
    assert_eq!(told(Kind::ImageMissing), ["train.jsonl:2: image `b.png` is not in `img`"]);
    let broken = told(Kind::BrokenImage);
    assert!(broken[0].starts_with("train.jsonl:3: img/cut.png: truncated PNG"), "{broken:?}");
    assert!(broken[1].contains("train.jsonl:4: img/not.png: not an image"), "{broken:?}");
    let outside = "train.jsonl:10: [10, 10, 104, 60] in an image of 100 x 80";
    assert_eq!(told(Kind::BoxOutside), [outside]);
    assert_eq!(
        told(Kind::TinyImage),
        ["train.jsonl:5: img/tiny.png: 20x40 px: a side under 28 px"]
    );
    let again = "train.jsonl:12: images, question and answer are those of train.jsonl:1";
    assert_eq!(told(Kind::DuplicateRow), [again]);
    assert!(told(Kind::Contradiction)[0].starts_with("train.jsonl:13: answer `[11, 10, 50, 60]`"));
    assert_eq!(report.answers.boxes_per_row[..2], [2, 8]);
}

#[test]
fn a_file_that_is_not_there_or_empty_does_not_hide_the_others() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(100, 80, 1));
    let mut train = write(dir.path(), "good.jsonl", &[row("a.png", "Where?", json!("x"))]);
    for name in ["none.jsonl", "empty.jsonl"] {
        train.files.insert(0, DataFile { path: dir.path().join(name), ..train.files[0].clone() });
    }
    fs::write(dir.path().join("empty.jsonl"), "\n").expect("writes");
    let report = report(&train, None, &options());
    let unreadable = examples(&report, Kind::UnreadableFile, &dir);
    assert_eq!(unreadable.len(), 2);
    assert!(unreadable[0].starts_with("empty.jsonl: no rows"), "{unreadable:?}");
    assert!(unreadable[1].starts_with("none.jsonl: "), "{unreadable:?}");
    assert_eq!((report.errors, report.files[2].good), (2, 1));
}

#[test]
fn conventions_of_a_whole_file_are_suspected() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(640, 480, 1));
    let rows = |of: fn(u32) -> Value| -> Vec<String> {
        (0..30).map(|i| row("a.png", &format!("Number {i}?"), of(i))).collect()
    };
    let shares = rows(|i| json!(format!("[0.1, 0.2, 0.{}, 0.9]", 30 + i)));
    let thousandths = rows(|i| json!(format!("[10, 20, {}, 900]", 300 + 20 * i)));
    let sizes = rows(|i| json!(format!("[{}, 300, 80, 90]", 200 + i)));
    let pixels = rows(|i| json!(format!("[{i}, 20, {}, 400]", 300 + i)));
    for (rows, kind, hint) in [
        (shares, Some(Kind::BoxUnits), "relative_1`"),
        (thousandths.clone(), Some(Kind::BoxUnits), "relative_1000`"),
        (sizes, Some(Kind::BoxCorners), "x + width"),
        (pixels, None, ""),
    ] {
        let train = write(dir.path(), "train.jsonl", &rows);
        let report = report(&train, None, &options());
        let suspected: Vec<_> = report
            .findings
            .iter()
            .filter(|f| [Kind::BoxUnits, Kind::BoxCorners].contains(&f.kind))
            .collect();
        assert_eq!(suspected.iter().map(|f| f.kind).next(), kind);
        assert!(suspected.iter().all(|f| f.examples[0].text.contains(hint)), "{suspected:?}");
    }
    // Said to be thousandths, they are in order.
    let train = write(dir.path(), "train.jsonl", &thousandths);
    let named = CheckOptions { box_format: Some(BoxFormat::Relative1000), ..options() };
    assert_eq!(report(&train, None, &named).errors, 0);
    assert!(report(&train, None, &options()).errors > 0);
}

#[test]
fn images_of_train_and_test_are_compared_by_content_and_by_looks() {
    let dir = tempfile::tempdir().expect("a folder");
    let shared = test_image(160, 120, 7);
    for (name, image) in [
        ("same.png", &shared),
        ("renamed.png", &shared),
        ("own.png", &test_image(160, 120, 8)),
        ("other.png", &test_image(160, 120, 9)),
        ("shrunk.png", &test_image(160, 120, 10)),
    ] {
        save(dir.path(), name, image);
    }
    let grown = image::imageops::resize(
        &test_image(160, 120, 10),
        400,
        300,
        image::imageops::FilterType::Triangle,
    );
    grown.save(dir.path().join("img/grown.jpg.png")).expect("saves");
    let rows = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| row(name, &format!("{name}?"), json!("x"))).collect()
    };
    let train = write(dir.path(), "train.jsonl", &rows(&["same.png", "own.png", "shrunk.png"]));
    let test = rows(&["renamed.png", "other.png", "grown.jpg.png"]);
    let test = write(dir.path(), "test.jsonl", &test);
    let report = report(&train, Some(&test), &options());
    let equal = examples(&report, Kind::TestImage, &dir);
    assert_eq!(equal, ["train.jsonl:1: shows the same image file as test.jsonl:1"]);
    let alike = examples(&report, Kind::TestLookalike, &dir);
    assert_eq!(alike, ["train.jsonl:3: shows an image that looks like that of test.jsonl:3"]);
    assert_eq!((report.images, report.test_images, report.errors), (3, 3, 0));
}

#[test]
fn prompts_are_counted_as_training_counts_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden("parity/checkpoints/nested");
    let bounds = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: Some(3_136),
        max_pixels: Some(100_000),
        apply_exif: false,
        max_prompt_length: Some(110),
    };
    let processor = Arc::new(Processor::from_dir(&model, &bounds).expect("a processor"));
    for (name, width, height) in [("a.png", 120, 90), ("tiny.png", 9, 30), ("wide.png", 400, 300)] {
        save(dir.path(), name, &test_image(width, height, 1));
    }
    let rows = ["a.png", "tiny.png", "wide.png"].map(|name| row(name, "Where?", json!("x")));
    let train = write(dir.path(), "train.jsonl", &rows);
    let with_model = CheckOptions {
        image_processor: Arc::new(processor.image_processor().clone()),
        processor: Some(Arc::clone(&processor)),
        ..options()
    };
    let mut counted = Vec::new();
    let mut visit = |row: &SeenRow| {
        counted.extend(row.prompt_tokens);
        ControlFlow::Continue(())
    };
    let report = check(&train, None, &with_model, &mut visit).expect("checks");
    assert_eq!(report.prompt_tokens.map(|t| t.max), counted.iter().max().copied());
    // The same as with the pixels, where the prompt is not too long.
    let unlimited = ProcessorOptions { max_prompt_length: None, ..bounds };
    let processor = Processor::from_dir(&model, &unlimited).expect("a processor");
    for (name, counted) in ["a.png", "tiny.png", "wide.png"].iter().zip(&counted) {
        let image = processor.load_image(&dir.path().join("img").join(name)).expect("an image");
        let text = options().template.apply("Where?");
        let prompt = processor.prompt(&text, &[Arc::new(image)]).expect("a prompt");
        assert_eq!(prompt.ids.len(), *counted as usize, "{name}");
    }
    let long = found(&report, Kind::PromptTooLong).expect("too long");
    assert!(long.examples.iter().any(|e| e.place.ends_with(":3")), "{long:?}");
}

#[test]
fn the_pass_can_be_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(100, 80, 1));
    let rows: Vec<_> = (0..50).map(|i| row("a.png", &format!("{i}?"), json!("x"))).collect();
    let train = write(dir.path(), "train.jsonl", &rows);
    let mut seen = 0;
    let mut visit = |_: &SeenRow| {
        seen += 1;
        match seen < 10 {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    let report = check(&train, Some(&train), &options(), &mut visit).expect("checks");
    assert!(report.stopped);
    assert_eq!((seen, report.files.len(), report.files[0].rows), (10, 1, 10));
}

#[test]
fn an_image_bomb_is_refused_before_it_is_decoded() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(100, 80, 1));
    let mut bomb = fs::read(dir.path().join("img/a.png")).expect("reads");
    // Width and height of the header chunk, with its checksum.
    bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let checksum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    fs::write(dir.path().join("img/bomb.png"), bomb).expect("writes");
    let train = write(dir.path(), "train.jsonl", &[row("bomb.png", "Where?", json!("x"))]);
    let report = report(&train, None, &options());
    let told = examples(&report, Kind::BrokenImage, &dir);
    assert!(told[0].contains("65536x65536 px is over the bound"), "{told:?}");
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn what_is_read_otherwise_than_meant_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(100, 80, 1));
    let odd = |key: &str, value: Value| {
        let mut row: Value =
            serde_json::from_str(&row("a.png", key, json!("[10, 10, 50, 60]"))).expect("a row");
        row[key] = value;
        row.to_string()
    };
    let turns = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    let rows = [
        json!({"images": ["a.png"], "conversations": turns}).to_string(),
        json!({"image_path": "a.png", "conversations": turns}).to_string(),
        odd("image_2", json!("b.png")),
        odd("accu_reward_methods", json!("math")),
        odd("system", json!("Be brief.")),
        odd("id", json!(7)),
        row("a.png", "<ref-object>?", json!("<bbox>")),
    ];
    let train = write(dir.path(), "train.jsonl", &rows);
    let report = report(&train, None, &options());
    let kinds: Vec<(Kind, u64)> = report.findings.iter().map(|f| (f.kind, f.count)).collect();
    let expected = [(Kind::HiddenMedia, 2), (Kind::UnreadKey, 3), (Kind::Placeholder, 2)];
    assert_eq!(kinds, expected);
    assert_eq!((report.errors, report.warnings), (2, 5));
    let told = examples(&report, Kind::UnreadKey, &dir);
    assert_eq!(
        told[0],
        "train.jsonl:3: `image_2` holds other images than `image`, and is not read"
    );
}

#[test]
fn images_that_their_metadata_turn_are_told_once_and_not_taken_for_other_units() {
    let dir = tempfile::tempdir().expect("a folder");
    save(dir.path(), "a.png", &test_image(100, 80, 1));
    let path = dir.path().join("img/a.png");
    // `eXIf` of orientation 6, before the image.
    let chunk = b"\0\0\0\x1aeXIfMM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0\xd6\x67\x4b\x69";
    let mut bytes = fs::read(&path).expect("reads");
    bytes.splice(33..33, chunk.iter().copied());
    fs::write(&path, bytes).expect("writes");
    let rows = [
        row("a.png", "Where?", json!("[10, 10, 50, 95]")),
        row("a.png", "And?", json!("[20, 20, 70, 99]")),
    ];
    let train = write(dir.path(), "train.jsonl", &rows);
    let stored = report(&train, None, &options());
    let kinds: Vec<(Kind, u64)> = stored.findings.iter().map(|f| (f.kind, f.count)).collect();
    assert_eq!(kinds, [(Kind::BoxOutside, 2), (Kind::OrientedImage, 1)]);
    let told = examples(&stored, Kind::OrientedImage, &dir);
    assert_eq!(
        told,
        [
            "train.jsonl:1: img/a.png: stored 100 x 80, orientation 6: viewers and annotation tools show it 80 x 100"
        ]
    );
    let outside = &examples(&stored, Kind::BoxOutside, &dir)[0];
    assert!(
        outside.ends_with(
            "in an image of 100 x 80 (80 x 100 as its orientation 6 turns it, which is not applied)"
        ),
        "{outside}"
    );
    let images = ImageProcessor::clone(&options().image_processor).with_apply_exif(true);
    let turning = CheckOptions { image_processor: Arc::new(images), ..options() };
    let turned = report(&train, None, &turning);
    assert!(turned.findings.is_empty(), "{:?}", turned.findings);
}
