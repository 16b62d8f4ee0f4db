//! The tables of docs/memory.md: what Qwen2.5-VL 3B and 7B take, by the plan's count.
//!
//!     cargo run --release -p train --example cards
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use train::plan::{Choice, Load, Ranks, Shape, Trained, completions_that_fit, memory};

const GROUP: u64 = 8;
/// A group: a prompt with an image of 640 x 480, completions of 512 tokens.
const LOAD: Load = Load {
    prompts: 1,
    completions: GROUP,
    prompt_tokens: 489,
    completion_tokens: 512,
    patches: 1564,
};
const CARDS: [u64; 5] = [16, 24, 48, 80, 141];

fn main() {
    let lora = Trained::Lora { rank: 64, dropout: true };
    println!(
        "| model | trained | moments | in host memory | peak, kept | peak, recomputed | host | largest micro-batch, recomputed: {CARDS:?} GB |"
    );
    for (name, shape) in [("3B", Shape::QWEN2_5_VL_3B), ("7B", Shape::QWEN2_5_VL_7B)] {
        for (what, trained) in
            [("all", Trained::Full), ("frozen tower", Trained::FrozenVision), ("LoRA", lora)]
        {
            for (in_8bit, offload_optimizer, offload_reference) in [
                (false, false, false),
                (true, false, false),
                (false, false, true),
                (true, false, true),
                (false, true, false),
                (false, true, true),
                (true, true, true),
            ] {
                let choice = Choice {
                    trained,
                    bf16: true,
                    recompute: true,
                    reference: true,
                    accumulates: true,
                    feature_cache: if trained == Trained::Full { 0 } else { 1 << 30 },
                    in_8bit,
                    offload_optimizer,
                    offload_reference,
                    cpu_kernels: false,
                    ranks: Ranks::ONE,
                };
                let of = |recompute| memory(&shape, Choice { recompute, ..choice }, &LOAD, &LOAD);
                let gigabytes = |bytes: u64| bytes as f64 / 1e9;
                let fits: Vec<u64> = CARDS
                    .iter()
                    .map(|card| {
                        completions_that_fit(
                            &shape,
                            choice,
                            (&LOAD, GROUP),
                            &LOAD,
                            card * 1_000_000_000,
                        )
                    })
                    .collect();
                let away = match (offload_optimizer, offload_reference) {
                    (false, false) => "nothing",
                    (true, false) => "optimizer",
                    (false, true) => "reference",
                    (true, true) => "both",
                };
                let bits = if in_8bit { "8 bits" } else { "f32" };
                println!(
                    "| {name} | {what} | {bits} | {away} | {:.1} | {:.1} | {:.1} | {fits:?} |",
                    gigabytes(of(false).peak),
                    gigabytes(of(true).peak),
                    gigabytes(of(true).host)
                );
            }
        }
    }
}
