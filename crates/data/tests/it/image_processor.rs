//! `pixel_values` and grids equal transformers'; settings are read as its folders have them.

use std::collections::HashMap;
use std::sync::Arc;

use data::image::{
    ImageCause, ImageError, ImageOptions, ImageProcessor, ImageProcessorConfig, QwenImages,
    ResizeBackend, RgbImage, patchify, smart_resize,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use crate::image::{assert_all_equal, cases, input, manifest, noise, sha256};

#[derive(Deserialize)]
struct Prepared {
    file: String,
    config: String,
    backend: String,
    enlarge_tiny: bool,
    grid_thw: [usize; 3],
    shape: [usize; 2],
    sha256: String,
}

fn backend(name: &str) -> ResizeBackend {
    match name {
        "torchvision" => ResizeBackend::Torchvision,
        "pillow" => ResizeBackend::Pillow,
        other => panic!("unknown backend `{other}`"),
    }
}

fn processor(
    config: ImageProcessorConfig,
    options: &ImageOptions,
) -> Result<ImageProcessor, ImageError> {
    Ok(ImageProcessor::new(Arc::new(QwenImages::new(config, options)?)))
}

/// The default settings.
fn default(backend: ResizeBackend) -> ImageProcessor {
    ImageProcessor::without_model(&ImageOptions::new(backend)).expect("settings")
}

/// The first value of a black image: that of a red sample of 0.
fn black(processor: &ImageProcessor) -> f32 {
    let image = RgbImage::new(64, 64, vec![0; 3 * 64 * 64]);
    processor.prepare(&image).expect("an image").pixel_values[0]
}

#[test]
fn pixel_values_equal_transformers() {
    let configs: HashMap<String, ImageProcessorConfig> =
        serde_json::from_value(manifest()["configs"].take()).unwrap();
    let cases: Vec<Prepared> = cases("prepared");
    let mut differing = Vec::new();
    for case in &cases {
        let config = configs[&case.config].clone();
        let options = ImageOptions {
            enlarge_tiny: case.enlarge_tiny,
            ..ImageOptions::new(backend(&case.backend))
        };
        let processor = processor(config, &options).unwrap();
        let image = processor.load(&input(&case.file)).unwrap();
        let name = format!("{} {} {}", case.file, case.config, case.backend);
        assert_eq!(image.layout.tiles, [case.grid_thw], "{name}");
        assert_eq!(image.pixel_values.len(), case.shape[0] * case.shape[1], "{name}");
        let bytes: Vec<u8> = image.pixel_values.iter().flat_map(|v| v.to_le_bytes()).collect();
        if sha256(&bytes) != case.sha256 {
            differing.push(name);
        }
    }
    assert_all_equal("pixel_values", cases.len(), &differing);
}

#[test]
fn a_processor_serves_many_threads() {
    fn assert_shared<T: Send + Sync>() {}
    assert_shared::<ImageProcessor>();
}

#[test]
fn sizes_are_those_of_the_file_and_of_the_model() {
    let processor = default(ResizeBackend::Torchvision);
    let image = processor.load(&input("rgb_20x50.png")).unwrap();
    assert_eq!(image.original_size, [20, 50]);
    // 28 x 70 after enlarging: 1960 pixels are under the 3136 asked for.
    assert_eq!(image.input_size, [56, 112]);
    assert_eq!(image.layout.tiles, [[1, 8, 4]]);
}

#[test]
fn a_strip_is_refused_before_it_is_enlarged() {
    let processor = default(ResizeBackend::Pillow);
    let cause = processor.prepare(&noise(201, 1)).unwrap_err();
    assert!(matches!(cause, ImageCause::ExtremeAspectRatio { width: 201, height: 1 }));
    assert!(processor.prepare(&noise(200, 1)).is_ok());
}

#[test]
fn without_resizing_patches_must_fill_the_sides() {
    let config = ImageProcessorConfig { do_resize: false, ..ImageProcessorConfig::default() };
    let processor = processor(config, &ImageOptions::new(ResizeBackend::Torchvision)).unwrap();
    assert_eq!(processor.prepare(&noise(56, 28)).unwrap().layout.tiles, [[1, 2, 4]]);
    let cause = processor.prepare(&noise(56, 30)).unwrap_err();
    assert!(matches!(cause, ImageCause::NotDivisible { factor: 28, .. }));
}

/// Reads a model folder that holds the given files.
fn processor_of(files: &[(&str, &serde_json::Value)]) -> Result<ImageProcessor, ImageError> {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (file, content) in files {
        std::fs::write(dir.path().join(file), content.to_string()).expect("temporary file");
    }
    ImageProcessor::from_dir(dir.path(), &ImageOptions::new(ResizeBackend::Torchvision))
}

#[test]
fn settings_are_read_from_either_file() {
    let flat = json!({
        "min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"
    });
    let nested = json!({
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor": {
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "do_pad": null,
            "resample": 3, "size": {"shortest_edge": 100, "longest_edge": 20000}
        }
    });
    let processor = processor_of(&[("preprocessor_config.json", &flat)]).unwrap();
    assert_eq!(processor.kind().pixel_bounds().longest_edge, 12_845_056);
    // Mean 0.1, deviation 0.4.
    assert!((black(&processor) + 0.25).abs() < 1e-6);

    let with_flat = |other: &serde_json::Value| {
        processor_of(&[("preprocessor_config.json", &flat), ("processor_config.json", other)])
    };
    let processor = with_flat(&nested).unwrap();
    assert_eq!(processor.kind().patch_size(), 8);
    assert_eq!(processor.kind().pixel_bounds().shortest_edge, 100);

    // A `processor_config.json` of older versions speaks of other things.
    let processor = with_flat(&json!({"processor_class": "Qwen2_5_VLProcessor"})).unwrap();
    assert!((black(&processor) + 0.25).abs() < 1e-6);
}

#[test]
fn bounds_can_be_overridden() {
    let new = |min_pixels, max_pixels| {
        let options = ImageOptions::new(ResizeBackend::Torchvision);
        ImageProcessor::without_model(&ImageOptions { min_pixels, max_pixels, ..options })
    };
    let processor = new(None, Some(3136)).unwrap();
    let image = processor.prepare(&noise(640, 480)).unwrap();
    assert!(image.input_size[0] * image.input_size[1] <= 3136);
    let error = new(Some(10), Some(9)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image processor: `max_pixels`: got 9, expected at least `min_pixels`"
    );
}

#[test]
fn a_kind_that_there_is_not_is_told_with_those_there_are() {
    for (file, settings) in [
        ("preprocessor_config.json", json!({"image_processor_type": "GotOcr2ImageProcessor"})),
        (
            "processor_config.json",
            json!({"image_processor": {"image_processor_type": "GotOcr2ImageProcessor"}}),
        ),
    ] {
        let text = processor_of(&[(file, &settings)]).unwrap_err().to_string();
        for part in ["got `GotOcr2ImageProcessor`", "`Qwen2VLImageProcessorFast`"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    for name in ["Qwen2VLImageProcessorFast", "Qwen2_5_VLImageProcessor"] {
        let settings = json!({"image_processor_type": name, "patch_size": 16});
        let processor = processor_of(&[("preprocessor_config.json", &settings)]).unwrap();
        assert_eq!(processor.kind().token_side(), 32);
    }
}

/// VLM-R1's trainer enlarges to 28 px, whatever the model's patches.
#[test]
fn tiny_images_are_enlarged_to_28_pixels_whatever_the_patches() {
    let config = ImageProcessorConfig {
        patch_size: 16,
        min_pixels: Some(1),
        ..ImageProcessorConfig::default()
    };
    let processor = processor(config, &ImageOptions::new(ResizeBackend::Torchvision)).unwrap();
    for (size, seen) in [
        // Of 28 x 84, rounded to tokens of 32.
        ([14, 42], [32, 96]),
        // Large enough for VLM-R1.
        ([28, 100], [32, 96]),
        ([27, 100], [32, 96]),
    ] {
        let shape = processor.kind().shape(size[0], size[1]).unwrap();
        let image = processor.prepare(&noise(size[0], size[1])).unwrap();
        assert_eq!((image.input_size, shape.input_size), (seen, seen), "{size:?}");
        assert_eq!(image.layout, shape.layout, "{size:?}");
    }
}

#[test]
fn settings_that_cannot_be_obeyed_are_refused() {
    for (name, settings, named) in [
        ("type", json!({"image_processor_type": "CLIPImageProcessor"}), "image_processor_type"),
        ("filter", json!({"resample": 1}), "resample"),
        ("patch", json!({"patch_size": 0}), "patch_size"),
        ("std", json!({"image_std": [0.5, 0.0, 0.5]}), "image_std"),
        ("rgb", json!({"do_convert_rgb": false}), "do_convert_rgb"),
        ("size", json!({"size": {"height": 224, "width": 224}}), "height"),
        ("mean", json!({"image_mean": [0.5, 0.5]}), "length"),
    ] {
        let error = processor_of(&[("preprocessor_config.json", &settings)]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(named), "{name}: {text}");
    }
    let error = processor_of(&[]).unwrap_err();
    assert!(matches!(error, ImageError::NoConfig { .. }));
}

#[test]
fn smart_resize_has_hand_computed_results() {
    let resize = |h, w| smart_resize(h, w, 28, 3136, 1_003_520).unwrap();
    // 42 / 28 = 1.5 and 70 / 28 = 2.5 both round to the even 2.
    assert_eq!(resize(42, 70), (56, 56));
    assert_eq!(resize(480, 640), (476, 644));
    // sqrt(3136 / 784) = 2.
    assert_eq!(resize(28, 28), (56, 56));
    // sqrt(4e6 / 1003520) = 1.9965: 2000 / 1.9965 / 28 = 35.78.
    assert_eq!(resize(2000, 2000), (980, 980));
}

proptest! {
    #[test]
    fn smart_resize_keeps_its_bounds(
        height in 1u32..5000,
        width in 1u32..5000,
        factor in prop_oneof![Just(16u32), Just(28), Just(32)],
        min_tokens in 1u64..20,
        more_tokens in 4u64..2000,
    ) {
        let token = u64::from(factor * factor);
        let (min, max) = (min_tokens * token, (min_tokens + more_tokens) * token);
        let too_long = f64::from(height.max(width)) / f64::from(height.min(width)) > 200.0;
        match smart_resize(height, width, factor, min, max) {
            Err(_) => prop_assert!(too_long),
            Ok((new_height, new_width)) => {
                prop_assert!(!too_long);
                prop_assert!(new_height >= factor && new_height % factor == 0);
                prop_assert!(new_width >= factor && new_width % factor == 0);
                let pixels = u64::from(new_height) * u64::from(new_width);
                // Shrinking rounds down, below the least where the two bounds lie close together.
                let rounded = |side: u32| {
                    (f64::from(side) / f64::from(factor)).round_ties_even() * f64::from(factor)
                };
                let shrunk = rounded(height) * rounded(width) > max as f64;
                prop_assert!(pixels >= min || shrunk, "{new_height}x{new_width}");
                // A side of one token cannot shrink further.
                let thin = new_height == factor || new_width == factor;
                prop_assert!(pixels <= max || thin, "{new_height}x{new_width}");
            }
        }
    }

    /// Every sample appears once per frame, at the place the layout names.
    #[test]
    fn patchify_is_a_permutation(
        blocks in [1u32..4, 1u32..4],
        patch in 1u32..6,
        merge in 1u32..4,
        temporal in 1usize..3,
    ) {
        let block = patch * merge;
        let image = noise(blocks[0] * block, blocks[1] * block);
        let table = [std::array::from_fn(|sample| sample as f32); 3];
        let values = patchify(&image, &table, patch as usize, merge as usize, temporal);
        let (width, height) = (image.width(), image.height());
        prop_assert_eq!(values.len(), image.pixels().len() * temporal);
        let mut restored = vec![None; image.pixels().len()];
        let mut values = values.into_iter();
        // [height / block, width / block, merge, merge, 3, temporal, patch, patch]
        for index in Indices::new([
            height / block, width / block, merge, merge, 3, temporal as u32, patch, patch,
        ]) {
            let [block_y, block_x, merge_y, merge_x, channel, frame, y, x] = index;
            let row = block_y * block + merge_y * patch + y;
            let column = block_x * block + merge_x * patch + x;
            let sample = values.next().map(|value| value as u8);
            let slot = &mut restored[(3 * (row * width + column) + channel) as usize];
            let fits = if frame == 0 { slot.is_none() } else { *slot == sample };
            prop_assert!(fits, "at {index:?}");
            *slot = sample;
        }
        let restored: Option<Vec<u8>> = restored.into_iter().collect();
        prop_assert_eq!(restored.as_deref(), Some(image.pixels()));
    }
}

/// All indices of a shape, the last axis fastest.
struct Indices {
    shape: [u32; 8],
    next: u32,
}

impl Indices {
    fn new(shape: [u32; 8]) -> Self {
        Self { shape, next: 0 }
    }
}

impl Iterator for Indices {
    type Item = [u32; 8];

    fn next(&mut self) -> Option<[u32; 8]> {
        let mut rest = self.next;
        self.next += 1;
        let mut index = [0; 8];
        for (axis, &length) in self.shape.iter().enumerate().rev() {
            index[axis] = rest % length;
            rest /= length;
        }
        (rest == 0).then_some(index)
    }
}

#[test]
fn a_size_in_part_takes_the_other_bound_from_the_default() {
    let bounds = |settings: serde_json::Value| {
        let processor = processor_of(&[("preprocessor_config.json", &settings)]).unwrap();
        let bounds = processor.kind().pixel_bounds();
        [bounds.shortest_edge, bounds.longest_edge]
    };
    for (settings, expected) in [
        (json!({"size": {"longest_edge": 50_000}}), [3136, 50_000]),
        (json!({"size": {"shortest_edge": 1000}}), [1000, 1_003_520]),
        (json!({"size": {}}), [3136, 1_003_520]),
        (json!({"size": {"longest_edge": 50_000}, "min_pixels": 784}), [784, 50_000]),
        (json!({"size": {"min_pixels": 784, "longest_edge": 50_000}}), [784, 50_000]),
        (
            json!({"size": {"min_pixels": 784, "shortest_edge": 1000, "max_pixels": 9000}}),
            [1000, 9000],
        ),
        (json!({"size": {"shortest_edge": null, "longest_edge": 9000}}), [3136, 9000]),
    ] {
        assert_eq!(bounds(settings.clone()), expected, "{settings}");
    }
    for settings in
        [json!({"size": {"height": 3, "width": 3}}), json!({"size": 3}), json!({"size": [3, 3]})]
    {
        let error = processor_of(&[("preprocessor_config.json", &settings)]).unwrap_err();
        assert!(error.to_string().contains("preprocessor_config.json"), "{error}");
    }
}
