//! The table of predictions in the docs is what the plan predicts:
//!
//!     UPDATE_PREDICTIONS=1 cargo test --release --workspace --test it predictions

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use train::plan::{
    CARDS, Card, Choice, Load, Phases, Ranks, Shape, Trained, Work, completions_that_fit, memory,
    predict,
};

const PAGE: &str = "docs/gpu.md";
const BEGIN: &str = "<!-- begin: predictions -->\n";
const END: &str = "<!-- end: predictions -->\n";
const GROUP: u64 = 8;
/// VLM-R1's step of REC: 16 prompts, G 8, an image of 640 x 480 (391 tokens) and 98 tokens of text.
const REC: Load = Load {
    prompts: 16,
    completions: 128,
    prompt_tokens: 489,
    completion_tokens: 256,
    patches: 1564,
};

/// How a step is best run on a card: the way and the largest micro-batch that take the least time.
struct Best {
    recompute: bool,
    micro_batch: u64,
    peak: u64,
    /// Decoding by CUDA graphs, and without.
    phases: Phases,
    eager: Phases,
}

fn choice(trained: Trained, recompute: bool, micro_batch: u64) -> Choice {
    Choice {
        trained,
        bf16: true,
        recompute,
        reference: true,
        accumulates: micro_batch < REC.completions,
        feature_cache: if trained == Trained::Full { 0 } else { 1 << 30 },
        in_8bit: false,
        offload_optimizer: false,
        offload_reference: false,
        cpu_kernels: false,
        ranks: Ranks::ONE,
    }
}

/// The largest micro-batch in whole parts of the step that fits; none where not one group does.
fn largest(shape: &Shape, trained: Trained, recompute: bool, card: &Card) -> Option<Best> {
    let group = REC.of_completions(GROUP, GROUP);
    let choice_of = |micro_batch| choice(trained, recompute, micro_batch);
    let load = (&group, GROUP);
    let fit = completions_that_fit(shape, choice_of(GROUP), load, &REC, card.usable_bytes());
    let micro_batch = [128, 64, 32, 16, 8].into_iter().find(|size| *size <= fit)?;
    let work = Work { step: REC, micro_batch, sampled: REC.completions, iterations: 1 };
    let choice = choice_of(micro_batch);
    let batch = REC.of_completions(micro_batch, GROUP);
    Some(Best {
        recompute,
        micro_batch,
        peak: memory(shape, choice, &batch, &REC).peak,
        phases: predict(shape, choice, &work, true),
        eager: predict(shape, choice, &work, false),
    })
}

fn best(shape: &Shape, trained: Trained, card: &Card) -> Option<Best> {
    let ways = [false, true].map(|recompute| largest(shape, trained, recompute, card));
    ways.into_iter().flatten().min_by(|a, b| a.phases.secs(card).total_cmp(&b.phases.secs(card)))
}

fn row(name: &str, shape: &Shape, trained: Trained, card: &Card) -> String {
    let Some(best) = best(shape, trained, card) else {
        let group = REC.of_completions(GROUP, GROUP);
        let least = memory(shape, choice(trained, true, GROUP), &group, &REC).peak as f64 / 1e9;
        let usable = card.usable_bytes() as f64 / 1e9;
        return format!(
            "| {} | {name} | does not fit: {least:.1} of {usable:.1} | | | | | | | | |\n",
            card.name
        );
    };
    let secs = best.phases.list().map(|(_, demand)| format!("{:.2}", card.secs(demand)));
    let [prefill, decoding, rest @ ..] = secs;
    format!(
        "| {} | {name} | {:.1} | {}, {} | {prefill} | {decoding} ({:.2}) | {} | **{:.1}** ({:.1}) |\n",
        card.name,
        best.peak as f64 / 1e9,
        best.micro_batch,
        if best.recompute { "recomputed" } else { "kept" },
        card.secs(best.eager.decoding),
        rest.join(" | "),
        best.phases.secs(card),
        best.eager.secs(card)
    )
}

fn table() -> String {
    let mut text = String::from(
        "| card | model, trained | peak, GB | micro-batch, activations | prefill | decoding | reference | policy forward | \
         policy backward | update | a step |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let lora = Trained::Lora { rank: 64, dropout: true };
    for card in &CARDS {
        for (name, shape, trained) in [
            ("3B, all", Shape::QWEN2_5_VL_3B, Trained::Full),
            ("7B, all", Shape::QWEN2_5_VL_7B, Trained::Full),
            ("7B, LoRA", Shape::QWEN2_5_VL_7B, lora),
        ] {
            text.push_str(&row(name, &shape, trained, card));
        }
    }
    let limits = CARDS.map(|card| {
        format!(
            "{} {:.2} TB/s, {:.0} TFLOP/s, {:.1} GB",
            card.name,
            card.bytes_per_sec() / 1e12,
            card.flop_per_sec() / 1e12,
            card.usable_bytes() as f64 / 1e9
        )
    });
    writeln!(text, "\nReached of each card: {}.", limits.join("; ")).unwrap();
    text
}

#[test]
fn the_docs_show_what_is_predicted() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(PAGE);
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect(PAGE);
    let (shown, after) = rest.split_once(END).expect(PAGE);
    let table = table();
    if std::env::var_os("UPDATE_PREDICTIONS").is_some() {
        fs::write(&page, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(shown, table, "{PAGE}: UPDATE_PREDICTIONS=1 renews it");
}
