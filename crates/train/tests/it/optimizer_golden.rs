//! AdamW, clipping and schedules equal PyTorch's and transformers'.

use tch::{Kind, Tensor};
use torch::{AdamWOptions, fused_adamw};
use train::schedule::{Schedule, ScheduleKind};

use crate::golden;

#[test]
fn adamw_over_six_steps() {
    let golden = golden::json("grpo/optimizer.json");
    for (name, case) in golden["adamw"].as_object().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let betas = golden::floats(&case["betas"]);
        let options = AdamWOptions {
            lr: number("lr"),
            beta1: betas[0],
            beta2: betas[1],
            eps: number("eps"),
            weight_decay: number("weight_decay"),
        };
        let vector = |values: Vec<f64>| torch::on_test_device(&values).to_kind(Kind::Float);
        let weight = [vector(golden::floats(&case["initial"]))];
        let (m, v) = ([weight[0].zeros_like()], [weight[0].zeros_like()]);
        let steps = [Tensor::zeros([], (Kind::Float, torch::device_of_tests()))];
        for (i, gradient) in case["gradients"].as_array().unwrap().iter().enumerate() {
            fused_adamw(&weight, &[vector(golden::floats(gradient))], &m, &v, &steps, options)
                .unwrap();
            for (tensor, key) in
                [(&weight[0], "parameters"), (&m[0], "exp_avg"), (&v[0], "exp_avg_sq")]
            {
                let expected = vector(golden::floats(&case[key][i]));
                let difference = ((tensor - &expected).abs() / expected.abs().clamp_min(1.0)).max();
                assert!(f64::try_from(difference).unwrap() < 1e-6, "{name} {key} step {i}");
            }
        }
    }
}

#[test]
fn schedules() {
    let golden = golden::json("grpo/optimizer.json");
    let mut checked = 0;
    for case in golden["schedules"].as_array().unwrap() {
        let warmup = case["num_warmup_steps"].as_u64().unwrap();
        let kind = match case["name"].as_str().unwrap() {
            "linear" => ScheduleKind::Linear,
            "cosine" => ScheduleKind::Cosine,
            // transformers' `constant` knows no warm-up; the settings pass 0 then.
            "constant" | "constant_with_warmup" => ScheduleKind::Constant,
            other => panic!("{other}"),
        };
        let warmup_steps = if case["name"] == "constant" { 0 } else { warmup };
        let total_steps = case["num_training_steps"].as_u64().unwrap();
        let schedule = Schedule { kind, peak: 1.0, warmup_steps, total_steps, least: 0.0 };
        for (done, factor) in golden::floats(&case["factors"]).into_iter().enumerate() {
            assert!((schedule.learning_rate(done as u64) - factor).abs() < 1e-12, "{case} {done}");
            checked += 1;
        }
    }
    assert!(checked > 20);
}
