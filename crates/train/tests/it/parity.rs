//! Positions, features, logits and gradients equal those of transformers 5.17, in every family.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use base::{DrawKey, Prompt};
use engine::{Generator, Request, SamplingParams};
use models::model::forward;
use models::{Checkpointing, InputsBuilder, ModelInputs, PackedAttention, VisionLanguageModel};
use serde_json::Value;
use tch::{Kind, Tensor, no_grad};
use testing::ParityCase;
use train::batch::{MicroBatch, Pass};

use crate::golden;

pub struct Case(ParityCase);

impl Deref for Case {
    type Target = ParityCase;

    fn deref(&self) -> &ParityCase {
        &self.0
    }
}

impl Case {
    fn all() -> Vec<Case> {
        ParityCase::all().into_iter().map(Case).collect()
    }

    pub fn new(name: &str) -> Case {
        Case(ParityCase::new(name))
    }

    pub fn prompt(&self) -> Prompt {
        let processor = golden::processor(&self.checkpoint);
        let images: Vec<_> = self.value["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| golden::folder("parity/images").join(name.as_str().unwrap()))
            .map(|path| Arc::new(processor.load_image(&path).unwrap()))
            .collect();
        processor.prompt(self.value["prompt"].as_str().unwrap(), &images).unwrap()
    }

    pub fn completion(&self) -> Vec<u32> {
        golden::ids(&self.value["completion_ids"])
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let tensors = torch::read_tensors(&self.folder.join("tensors.safetensors")).unwrap();
        let on_device =
            |(name, tensor): (String, Tensor)| (name, tensor.to_device(torch::device_of_tests()));
        tensors.into_iter().map(on_device).collect()
    }

    /// Prompt and completion, packed.
    fn inputs(&self, model: &dyn VisionLanguageModel) -> ModelInputs {
        let mut builder = InputsBuilder::new(model);
        let segment = builder.push_prompt(&self.prompt()).unwrap();
        builder.push_completion(segment, &self.completion());
        builder.build()
    }

    /// Logits in f32 at the positions that the case records.
    fn logits(&self, model: &dyn VisionLanguageModel, batch: &ModelInputs) -> Tensor {
        let (kind, device) = model.compute();
        let attention = PackedAttention::new(&batch.layout, true, kind, device);
        let pass = batch.pass_inputs(model);
        let mut checkpointing = Checkpointing::new(false);
        let hidden = forward(model, &mut checkpointing, batch, &pass, &attention);
        let at: Vec<i64> = serde_json::from_value(self.value["logit_positions"].clone()).unwrap();
        let rows = hidden.index_select(0, &torch::on_test_device(&at));
        model.logits(&rows, None).to_kind(Kind::Float)
    }
}

/// `[image tokens, hidden_size * (1 + levels)]`: the features of the embedding, then those of each deepstack level.
fn all_features(expected: &BTreeMap<String, Tensor>) -> Tensor {
    let mut parts = vec![expected["image_features"].shallow_clone()];
    parts.extend(expected.get("deepstack_features").iter().flat_map(|levels| levels.unbind(0)));
    Tensor::cat(&parts, 1)
}

#[test]
fn positions_features_and_logits() {
    for case in Case::all() {
        let model = golden::model(&case.checkpoint, false);
        let batch = case.inputs(model.as_ref());
        let positions: Vec<Vec<i64>> =
            serde_json::from_value(case.value["position_ids"].clone()).unwrap();
        let got: Vec<Vec<i64>> = Vec::<Vec<i64>>::try_from(&batch.position_ids).unwrap();
        assert_eq!(got, positions, "{}", case.name);

        let expected = case.tensors();
        no_grad(|| {
            if let Some(images) = &batch.images {
                let (kind, device) = model.compute();
                let pixel_values = images.pixel_values(kind, device);
                let mut checkpointing = Checkpointing::new(false);
                let tiles = images.tiles();
                let got = model.vision_stages(&mut checkpointing, &pixel_values, &tiles, None);
                let difference = golden::max_difference(&got, &all_features(&expected));
                assert!(difference < 1e-4, "{}: image features differ by {difference}", case.name);
            }
            let got = case.logits(model.as_ref(), &batch);
            let difference = golden::max_difference(&got, &expected["logits"]);
            println!("{}: logits differ by {difference:.2e}", case.name);
            assert!(difference < 1e-4, "{}: logits differ by {difference}", case.name);
        });
    }
}

/// In bf16 both sides round; ours must not lie further from f32 than transformers' does.
#[test]
fn bf16_rounds_as_transformers_does() {
    let mut checked = 0;
    for case in Case::all() {
        let expected = case.tensors();
        let Some(theirs) = expected.get("logits_bf16") else { continue };
        let exact = &expected["logits"];
        let distance = |logits: &Tensor| -> f64 {
            let difference = logits.to_kind(Kind::Float) - exact;
            f64::try_from(difference.norm() / exact.norm()).unwrap()
        };
        let model = golden::model_as(&case.checkpoint, Kind::BFloat16, false);
        let batch = case.inputs(model.as_ref());
        let ours = distance(&no_grad(|| case.logits(model.as_ref(), &batch)));
        let theirs = distance(theirs);
        println!("{}: bf16 is {ours:.4} from f32, {theirs:.4} in transformers", case.name);
        assert!(ours > 1e-4 && ours < 1.3 * theirs, "{}: {ours}, {theirs}", case.name);
        checked += 1;
    }
    assert_eq!(checked, testing::other_families().len());
}

/// What the sampler records of its tokens is what training computes of them, for completions that share their prompt.
#[test]
fn sampled_logprobs_are_those_of_training() {
    for (index, checkpoint) in testing::all_checkpoints().into_iter().enumerate() {
        let case = Case::all().into_iter().find(|case| {
            case.checkpoint == checkpoint && case.value["images"].as_array().unwrap().len() > 1
        });
        let case = case.unwrap();
        let model = golden::model(checkpoint, false);
        let prompt = case.prompt();
        let params = SamplingParams { max_new_tokens: 16, ..Default::default() };
        let key = DrawKey { seed: 5, step: 0, prompt: index as u64, completion: 0 };
        let request = Request { prompt: prompt.clone(), num_completions: 4, key };
        let generator = Generator::new(model.as_ref(), params, 8).unwrap();
        let got = generator.generate(&[request], &mut |_, _, _| {}, &|| false).unwrap();
        let completions = &got.completions[0];
        let ids = completions.iter().map(|completion| completion.ids.as_slice()).collect();
        let batch = MicroBatch::pack(model.as_ref(), &[(&prompt, ids)]).unwrap();
        let trained = batch.scores(model.as_ref(), 1.0).logprobs.to_kind(Kind::Float);
        let trained = Vec::<f32>::try_from(trained).unwrap();
        let sampled: Vec<f32> =
            completions.iter().flat_map(|completion| completion.sampled_logprobs.clone()).collect();
        assert_eq!((sampled.len(), trained.len()), (4 * 16, 4 * 16), "{checkpoint}");
        for (a, b) in sampled.iter().zip(&trained) {
            assert!((a - b).abs() < 1e-4, "{checkpoint}: sampled {a}, trained {b}");
        }
    }
}

#[test]
fn gradients_of_every_parameter() {
    let mut checked = 0;
    for case in Case::all().iter().filter(|case| case.value["has_gradients"] == Value::Bool(true)) {
        for recompute in [false, true] {
            let model = golden::model(&case.checkpoint, true);
            let (prompt, completion) = (case.prompt(), case.completion());
            let batch = MicroBatch::pack(model.as_ref(), &[(&prompt, vec![&completion])]).unwrap();
            let loss = batch.backward(model.as_ref(), Pass::new(1.0, recompute), |scores| {
                let loss = -scores.logprobs.mean(Kind::Float);
                (loss.shallow_clone(), f64::try_from(loss.detach()).unwrap())
            });
            assert!(
                (loss - case.value["loss"].as_f64().unwrap()).abs() < 1e-5,
                "{}: loss {loss}",
                case.name
            );
            let path = case.folder.join("grads.safetensors");
            let worst = golden::compare_gradients(model.as_ref(), &path, 1e-4);
            println!(
                "{} (recompute {recompute}): gradients differ by at most {worst:.2e}",
                case.name
            );
            checked += 1;
        }
    }
    assert_eq!(checked, 3 * 2 * 4, "four cases of each of three families");
}
