//! Tokens a second of the generator on a model folder, text prompts:
//! `cargo run --release -p engine --example sampling_speed -- DIR [prompts] [group_size] [prompt_tokens] [new_tokens] [max_concurrent] [float32|bfloat16] [eager|static|graphs]`.
//!
//! Every completion has `new_tokens` tokens, so that the work is the same whatever the weights.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement, not the program")]

use std::path::Path;
use std::time::Instant;

use base::{DrawKey, Prompt};
use engine::{Decoding, Generator, Request, SamplingParams};
use models::checkpoint::parse_kind;
use models::{LoadOptions, TrainedParts, load_model};
use tch::{Device, Kind};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |i: usize, default: usize| arguments.get(i).and_then(|x| x.parse().ok()).unwrap_or(default);
    let folder = arguments.first().ok_or("usage: sampling_speed DIR ...")?;
    let (prompts, group_size, prompt_tokens) = (number(1, 32), number(2, 8), number(3, 50));
    let (new_tokens, max_concurrent) = (number(4, 40), number(5, 256));
    let kind = arguments.get(6).and_then(|name| parse_kind(name)).unwrap_or(Kind::Float);
    let decoding = match arguments.get(7).map(String::as_str) {
        None | Some("eager") => Decoding::Eager,
        Some("static") => Decoding::StaticShapes,
        Some("graphs") => Decoding::CudaGraphs,
        Some(other) => {
            return Err(format!("expected eager, static or graphs, got {other}").into());
        }
    };
    torch::load_cuda();
    let options =
        LoadOptions { kind, device: Device::cuda_if_available(), trained: TrainedParts::NONE };
    let model = load_model(Path::new(folder), options)?;
    let text_ids = u64::from(model.image_token_id().min(500));
    let request = |prompt: u64| {
        let key = DrawKey { seed: 1, step: 0, prompt, completion: 0 };
        let ids = (0..prompt_tokens).map(|i| (key.uniform(i) * text_ids as f64) as u32).collect();
        Request { prompt: Prompt { ids, images: Vec::new() }, num_completions: group_size, key }
    };
    let requests: Vec<Request> = (0..prompts as u64).map(request).collect();
    let params = SamplingParams { max_new_tokens: new_tokens, ..Default::default() };
    let generator =
        Generator::new(model.as_ref(), params, max_concurrent)?.with_decoding(decoding)?;
    for _ in 0..3 {
        let start = Instant::now();
        let got = generator.generate(&requests, &mut |_, _, _| {}, &|| false)?;
        let secs = start.elapsed().as_secs_f64();
        let stats = got.stats;
        println!("{:.3} s, {:.0} tokens/s, {stats:?}", secs, stats.tokens as f64 / secs);
    }
    Ok(())
}
