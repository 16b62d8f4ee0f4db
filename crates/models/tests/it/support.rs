//! Copies of the tiny checkpoints, altered, and what the models in them compute.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{ImageLayout, PreparedImage, Prompt};
use models::model::forward;
use models::{
    Checkpointing, InputsBuilder, LoadOptions, ModelError, PackedAttention, TrainedParts,
    VisionLanguageModel, load_model,
};
use serde_json::Value;
use tch::{Kind, Tensor, no_grad};
use tempfile::TempDir;
pub use testing::{all_checkpoints, checkpoint};
use torch::{read_tensors, write_tensors};

/// Numbers of a patch of Qwen2.5-VL: 3 channels, 2 frames, 14 x 14 px.
pub const PATCH_DIM: usize = 3 * 2 * 14 * 14;

/// A copy to alter.
pub fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(checkpoint(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

pub fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

pub fn all_tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let files = weight_files(folder);
    let tensors = files.iter().flat_map(|file| read_tensors(file).unwrap());
    tensors.map(|(name, tensor)| (name, tensor.to_device(torch::device_of_tests()))).collect()
}

/// Passes the tensors of each weight file through `edit`.
pub fn edit_weights(folder: &Path, edit: impl Fn(&mut BTreeMap<String, Tensor>)) {
    for file in weight_files(folder) {
        let mut tensors = read_tensors(&file).unwrap();
        edit(&mut tensors);
        write_tensors(&file, &tensors.into_iter().collect::<Vec<_>>()).unwrap();
    }
}

pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(&path, value.to_string()).unwrap();
}

pub fn load_as(
    folder: &Path,
    kind: Kind,
    trainable: bool,
) -> Result<Box<dyn VisionLanguageModel>, ModelError> {
    let options = LoadOptions {
        kind,
        device: torch::device_of_tests(),
        trained: TrainedParts::all(trainable),
    };
    load_model(folder, options)
}

pub fn load(folder: &Path) -> Box<dyn VisionLanguageModel> {
    load_as(folder, Kind::Float, true).unwrap()
}

/// The message of a load that must fail.
pub fn refusal(folder: &Path) -> String {
    match load_as(folder, Kind::Float, true) {
        Ok(_) => panic!("{}: loaded", folder.display()),
        Err(error) => error.to_string(),
    }
}

pub fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

/// An image of `height x width` patches of Qwen2.5-VL whose pixels depend on `number`.
pub fn test_image(number: usize, height: usize, width: usize) -> Arc<PreparedImage> {
    image_of(PATCH_DIM, number, [height, width])
}

/// An image of `height x width` patches of `patch_dim` numbers that depend on `number`.
pub fn image_of(
    patch_dim: usize,
    number: usize,
    [height, width]: [usize; 2],
) -> Arc<PreparedImage> {
    let pixel_values = (0..height * width * patch_dim)
        .map(|i| ((i + 1) as f32 * 0.37 + number as f32).sin())
        .collect();
    let size = [14 * width as u32, 14 * height as u32];
    Arc::new(PreparedImage::new(
        pixel_values,
        ImageLayout::merged([1, height, width], 2),
        size,
        size,
    ))
}

/// `before`, the placeholders of each image with a token between them, `after`.
pub fn prompt(before: &[u32], images: &[Arc<PreparedImage>], after: &[u32]) -> Prompt {
    let mut ids = before.to_vec();
    for image in images {
        let tokens = image.layout.num_tokens();
        ids.extend(std::iter::repeat_n(548, tokens));
        ids.push(546);
    }
    ids.extend(after);
    Prompt { ids, images: images.to_vec() }
}

/// Logits of every token of packed prompts, each with its completions: `[T, vocab_size]`, f32.
pub fn logits(model: &dyn VisionLanguageModel, items: &[(Prompt, Vec<Vec<u32>>)]) -> Tensor {
    let mut builder = InputsBuilder::new(model);
    for (prompt, completions) in items {
        let segment = builder.push_prompt(prompt).unwrap();
        for completion in completions {
            builder.push_completion(segment, completion);
        }
    }
    let batch = builder.build();
    no_grad(|| {
        let (kind, device) = model.compute();
        let attention = PackedAttention::new(&batch.layout, true, kind, device);
        let pass = batch.pass_inputs(model);
        let mut checkpointing = Checkpointing::new(false);
        let hidden = forward(model, &mut checkpointing, &batch, &pass, &attention);
        model.logits(&hidden, None).to_kind(Kind::Float)
    })
}

/// Logits of one prompt with an image and a completion.
pub fn sample_logits(model: &dyn VisionLanguageModel) -> Tensor {
    let image = image_of(model.patch_dim(), 1, [6, 10]);
    let prompt = prompt(&[537, 82, 424], &[image], &[392, 198, 377]);
    logits(model, &[(prompt, vec![vec![27, 332, 29]])])
}

pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).abs().max()).unwrap()
}
