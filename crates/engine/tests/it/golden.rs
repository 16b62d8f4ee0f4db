//! 32 greedy tokens equal to transformers' for every parity case of every family.
//!
//! Images are left to `data`: the merged features that the reference recorded replace the
//! vision tower, which has its own parity test in `models`.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use base::{ImageLayout, PreparedImage, Prompt};
use engine::{Request, SamplingParams};
use models::checkpointing::Tensors;
use models::layers::attention::AttentionBackend;
use models::model::{ImageRows, PassInputs, PromptPositions, TextShape};
use models::{
    Checkpointing, Family, FeatureCache, ModelError, PackedWeights, Parameters, TowerFeatures,
    VisionLanguageModel,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use testing::ParityCase;

use crate::support::{generate, key, tiny};

/// A model whose tower looks features up; the images' pixels are their numbers.
struct RecordedVision {
    inner: Box<dyn VisionLanguageModel>,
    features: Vec<Tensor>,
}

impl VisionLanguageModel for RecordedVision {
    fn vision_stages<'a>(
        &'a self,
        _: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        grids: &[[usize; 3]],
        _: Option<&'a PackedWeights>,
    ) -> Tensor {
        let mut row = 0;
        let picked: Vec<&Tensor> = grids
            .iter()
            .map(|grid| {
                let number = pixel_values.double_value(&[row, 0]) as usize;
                row += grid.iter().product::<usize>() as i64;
                &self.features[number]
            })
            .collect();
        Tensor::cat(&picked, 0)
    }

    fn keep_features(&mut self, cache: Rc<FeatureCache>) -> Result<(), ModelError> {
        self.inner.keep_features(cache)
    }
    fn features(&self) -> Option<&TowerFeatures> {
        self.inner.features()
    }
    fn family(&self) -> &'static Family {
        self.inner.family()
    }
    fn text_shape(&self) -> &TextShape {
        self.inner.text_shape()
    }
    fn parameters(&self) -> &Parameters {
        self.inner.parameters()
    }
    fn parameters_mut(&mut self) -> &mut Parameters {
        self.inner.parameters_mut()
    }
    fn compute(&self) -> (Kind, Device) {
        self.inner.compute()
    }
    fn image_token_id(&self) -> u32 {
        self.inner.image_token_id()
    }
    /// The number of the image.
    fn patch_dim(&self) -> usize {
        1
    }
    fn prompt_positions(&self, ids: &[u32], images: &[&ImageLayout]) -> PromptPositions {
        self.inner.prompt_positions(ids, images)
    }
    fn embed_tokens(&self, input_ids: &Tensor) -> Tensor {
        self.inner.embed_tokens(input_ids)
    }
    fn feature_size(&self) -> i64 {
        self.inner.feature_size()
    }
    fn pass_inputs(&self, position_ids: &Tensor, images: Option<ImageRows>) -> PassInputs {
        self.inner.pass_inputs(position_ids, images)
    }
    fn layer(
        &self,
        index: usize,
        state: &[Tensor],
        pass: &PassInputs,
        backend: &dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensors {
        self.inner.layer(index, state, pass, backend, packed)
    }
    fn final_norm(&self, hidden: &Tensor) -> Tensor {
        self.inner.final_norm(hidden)
    }
    fn logits(&self, hidden: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        self.inner.logits(hidden, packed)
    }
}

struct Case {
    name: String,
    prompt: Prompt,
    greedy_ids: Vec<u32>,
}

fn numbers<T: TryFrom<u64, Error: std::fmt::Debug>>(value: &Value) -> Vec<T> {
    value.as_array().unwrap().iter().map(|x| T::try_from(x.as_u64().unwrap()).unwrap()).collect()
}

/// Cases by checkpoint; their images' features go to the list of that checkpoint.
fn read_cases() -> BTreeMap<String, (Vec<Case>, Vec<Tensor>)> {
    let mut by_checkpoint: BTreeMap<String, (Vec<Case>, Vec<Tensor>)> = BTreeMap::new();
    for ParityCase { name, checkpoint, folder, value: case } in ParityCase::all() {
        let tensors = torch::read_tensors(&folder.join("tensors.safetensors")).unwrap();
        let recorded = recorded_features(&tensors);
        let (cases, features) = by_checkpoint.entry(checkpoint).or_default();
        let (mut images, mut row) = (Vec::new(), 0);
        for grid in case["image_grid_thw"].as_array().unwrap() {
            let grid_thw: [usize; 3] = numbers(grid).try_into().unwrap();
            let patches = grid_thw.iter().product::<usize>();
            let all = recorded.as_ref().unwrap();
            images.push(Arc::new(PreparedImage::new(
                vec![features.len() as f32; patches],
                ImageLayout::merged(grid_thw, 2),
                [1, 1],
                [1, 1],
            )));
            features.push(all.narrow(0, row, patches as i64 / 4));
            row += patches as i64 / 4;
        }
        cases.push(Case {
            name,
            prompt: Prompt { ids: numbers(&case["prompt_ids"]), images },
            greedy_ids: numbers(&case["greedy_ids"]),
        });
    }
    by_checkpoint
}

/// `[image tokens, feature_size]`: those of the embedding, then those of each deepstack level.
fn recorded_features(tensors: &BTreeMap<String, Tensor>) -> Option<Tensor> {
    let mut parts = vec![tensors.get("image_features")?.shallow_clone()];
    parts.extend(tensors.get("deepstack_features").iter().flat_map(|levels| levels.unbind(0)));
    Some(Tensor::cat(&parts, 1).to_device(torch::device_of_tests()))
}

#[test]
fn greedy_tokens_equal_transformers() {
    let mut checked = 0;
    for (checkpoint, (cases, features)) in read_cases() {
        let model = RecordedVision { inner: tiny(&checkpoint, Kind::Float), features };
        // The reference does not stop at an end token.
        let params = SamplingParams { temperature: 0.0, max_new_tokens: 32, ..Default::default() };
        let requests: Vec<Request> = cases
            .iter()
            .map(|case| Request { prompt: case.prompt.clone(), num_completions: 2, key: key(0) })
            .collect();
        for max_concurrent in [3, 64] {
            let got = generate(&model, &params, max_concurrent, &requests).unwrap();
            assert_eq!(got.stats.boundary_draws, 0);
            for (case, group) in cases.iter().zip(&got.completions) {
                for completion in group {
                    assert_eq!(
                        completion.ids, case.greedy_ids,
                        "{} with {max_concurrent} at once",
                        case.name
                    );
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 2 * 3 * 11, "eleven cases of each of three families");
}
