//! Prompt ids, pixels, logits and gradients equal those of transformers 5.17.

use std::fs;
use std::sync::Arc;

use base::Prompt;
use models::model::forward;
use models::{Checkpointing, InputsBuilder, PackedAttention};
use serde_json::Value;
use tch::{Kind, Tensor, no_grad};
use train::batch::{MicroBatch, Pass};

use crate::golden;

pub struct Case {
    pub name: String,
    pub value: Value,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut names: Vec<String> = fs::read_dir(golden::folder("parity/cases"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(names.len() >= 11, "{names:?}");
        names.into_iter().map(Case::new).collect()
    }

    pub fn new(name: impl Into<String>) -> Case {
        let name = name.into();
        let value = golden::json(&format!("parity/cases/{name}/case.json"));
        Case { name, value }
    }

    fn checkpoint(&self) -> &str {
        self.value["checkpoint"].as_str().unwrap()
    }

    pub fn prompt(&self) -> Prompt {
        let processor = golden::processor(self.checkpoint());
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

    fn tensors(&self) -> std::collections::BTreeMap<String, Tensor> {
        let path = format!("parity/cases/{}/tensors.safetensors", self.name);
        let tensors = torch::read_tensors(&golden::folder(&path)).unwrap();
        let on_device =
            |(name, tensor): (String, Tensor)| (name, tensor.to_device(torch::device_of_tests()));
        tensors.into_iter().map(on_device).collect()
    }
}

#[test]
fn prompts_and_pixels() {
    for case in Case::all() {
        let prompt = case.prompt();
        assert_eq!(prompt.ids, golden::ids(&case.value["prompt_ids"]), "{}", case.name);
        let grids: Vec<Vec<u64>> =
            serde_json::from_value(case.value["image_grid_thw"].clone()).unwrap();
        let got: Vec<Vec<u64>> =
            prompt.images.iter().map(|i| i.layout.tiles[0].map(|d| d as u64).to_vec()).collect();
        assert_eq!(got, grids, "{}", case.name);
        let pixels: Vec<f32> = prompt.images.iter().flat_map(|i| i.pixel_values.clone()).collect();
        let golden_pixels = &case.value["pixel_values"];
        if golden_pixels.is_null() {
            assert!(pixels.is_empty());
            continue;
        }
        let stride = golden_pixels["stride"].as_u64().unwrap() as usize;
        let got: Vec<f64> = pixels.iter().step_by(stride).map(|&x| f64::from(x)).collect();
        assert_eq!(got, golden::floats(&golden_pixels["strided"]), "{}", case.name);
        let first: Vec<f64> = pixels[..64].iter().map(|&x| f64::from(x)).collect();
        assert_eq!(first, golden::floats(&golden_pixels["first"]), "{}", case.name);
    }
}

#[test]
fn positions_features_and_logits() {
    for case in Case::all() {
        let model = golden::model(case.checkpoint(), false);
        let (prompt, completion) = (case.prompt(), case.completion());
        let mut builder = InputsBuilder::new(model.as_ref());
        let segment = builder.push_prompt(&prompt).unwrap();
        builder.push_completion(segment, &completion);
        let batch = builder.build();
        let positions: Vec<Vec<i64>> =
            serde_json::from_value(case.value["position_ids"].clone()).unwrap();
        let got: Vec<Vec<i64>> = Vec::<Vec<i64>>::try_from(&batch.position_ids).unwrap();
        assert_eq!(got, positions, "{}", case.name);

        let expected = case.tensors();
        no_grad(|| {
            if let Some(images) = &batch.images {
                let (kind, device) = model.compute();
                let pixel_values = images.pixel_values(kind, device);
                let got = model.vision_stages(
                    &mut Checkpointing::new(false),
                    &pixel_values,
                    &images.tiles(),
                    None,
                );
                let difference = golden::max_difference(&got, &expected["image_features"]);
                assert!(difference < 1e-4, "{}: image features differ by {difference}", case.name);
            }
            let (kind, device) = model.compute();
            let attention = PackedAttention::new(&batch.layout, true, kind, device);
            let pass = batch.pass_inputs(model.as_ref());
            let hidden =
                forward(model.as_ref(), &mut Checkpointing::new(false), &batch, &pass, &attention);
            let at: Vec<i64> =
                serde_json::from_value(case.value["logit_positions"].clone()).unwrap();
            let got = model.logits(&hidden.index_select(0, &torch::on_test_device(&at)), None);
            let difference = golden::max_difference(&got, &expected["logits"]);
            println!("{}: logits differ by {difference:.2e}", case.name);
            assert!(difference < 1e-4, "{}: logits differ by {difference}", case.name);
        });
    }
}

#[test]
fn gradients_of_every_parameter() {
    let mut checked = 0;
    for case in Case::all().iter().filter(|case| case.value["has_gradients"].as_bool().unwrap()) {
        for recompute in [false, true] {
            let model = golden::model(case.checkpoint(), true);
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
            let path = format!("parity/cases/{}/grads.safetensors", case.name);
            let worst = golden::compare_gradients(model.as_ref(), &path, 1e-4);
            println!(
                "{} (recompute {recompute}): gradients differ by at most {worst:.2e}",
                case.name
            );
            checked += 1;
        }
    }
    assert!(checked >= 6);
}
