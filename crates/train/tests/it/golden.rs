//! Golden files: read, never skipped.

use std::path::Path;

use data::Processor;
use data::image::ResizeBackend;
use data::processor::ProcessorOptions;
use models::{LoadOptions, TrainedParts, VisionLanguageModel, load_model};
use serde_json::Value;
use tch::{Kind, Tensor};
pub use testing::{checkpoint, golden as folder};

pub fn json(path: &str) -> Value {
    testing::read_json(folder(path))
}

pub fn model(name: &str, trainable: bool) -> Box<dyn VisionLanguageModel> {
    model_as(name, Kind::Float, trainable)
}

pub fn model_as(name: &str, kind: Kind, trainable: bool) -> Box<dyn VisionLanguageModel> {
    let options = LoadOptions {
        kind,
        device: torch::device_of_tests(),
        trained: TrainedParts::all(trainable),
    };
    load_model(&checkpoint(name), options).unwrap()
}

pub fn processor(name: &str) -> Processor {
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        apply_exif: false,
        max_prompt_length: None,
    };
    Processor::from_dir(&checkpoint(name), &options).unwrap()
}

/// Largest difference of two tensors.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).abs().max()).unwrap()
}

pub fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Compares every parameter's gradient with the golden one: norm of the difference relative to that of the gradient, or to a
/// millionth of the largest, below which gradients are noise. Returns the worst.
pub fn compare_gradients(model: &dyn VisionLanguageModel, golden: &Path, tolerance: f64) -> f64 {
    let expected = torch::read_tensors(golden).unwrap();
    let norm = |t: &Tensor| f64::try_from(t.norm()).unwrap();
    let floor = 1e-6 * expected.values().map(norm).fold(0.0, f64::max);
    let mut worst: f64 = 0.0;
    for parameter in &model.parameters().list {
        let gradient = parameter.value.grad();
        let Some(expected) = expected.get(&parameter.name) else {
            assert!(
                !gradient.defined(),
                "{} has a gradient, the reference has none",
                parameter.name
            );
            continue;
        };
        assert!(gradient.defined(), "{} has no gradient", parameter.name);
        let expected = &expected.to_device(gradient.device());
        let difference = gradient.view(expected.size().as_slice()) - expected;
        let relative = norm(&difference) / norm(expected).max(floor);
        assert!(relative < tolerance, "{}: relative difference {relative}", parameter.name);
        worst = worst.max(relative);
    }
    worst
}
