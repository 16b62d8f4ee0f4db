//! Predictions beside numbers by hand, beside the count of `benchmarks/flop.py`, and beside one another.

use super::super::tests::{FULL, SHAPE_3B, SHAPE_7B, SHAPE_39M};
use super::super::{CARDS, Trained, memory};
use super::*;

/// VLM-R1's step of REC: 16 prompts with an image of 640 x 480, eight completions each.
const REC: Load = Load {
    prompts: 16,
    completions: 128,
    prompt_tokens: 489,
    completion_tokens: 256,
    patches: 1564,
};
const BF16: Choice = Choice { bf16: true, ..FULL };
const LORA: Trained = Trained::Lora { rank: 64, dropout: true };

fn work(step: Load, micro_batch: u64) -> Work {
    Work { step, micro_batch, sampled: step.completions, iterations: 1 }
}

fn near(got: f64, expected: f64, part: f64) {
    assert!((got / expected - 1.0).abs() < part, "{got}, expected {expected}");
}

/// One layer of hidden size 2, one head, MLP of 3, vocabulary of 5; one prompt of 3 tokens, two completions of 2.
#[test]
fn a_small_step_by_hand() {
    let shape = Shape {
        hidden: 2,
        layers: 1,
        q_width: 2,
        kv_width: 2,
        mlp: 3,
        vocab: 5,
        vision_depth: 0,
        full_blocks: 0,
        layer_weights: 34,
        ..SHAPE_39M
    };
    let step =
        Load { prompts: 1, completions: 2, prompt_tokens: 3, completion_tokens: 2, patches: 0 };
    let phases = predict(&shape, FULL, &work(step, 1), false);
    // Queries, keys, values, outputs 4 each; gate, up, down 6 each: 34 weights, and 10 of the head.
    let (layer, head, tokens) = (34.0, 10.0, 7.0);
    // In the prompt 1 + 2 + 3 pairs, in each completion 2 x 3 + 1 + 2; 4 FLOP for each of two channels.
    let attention = 4.0 * 2.0 * (6.0 + 2.0 * 9.0);
    let forward = 2.0 * layer * tokens + attention + 2.0 * head * 4.0;
    assert_eq!(phases.forward.flop, forward);
    assert_eq!(phases.reference, phases.forward);
    assert_eq!(phases.backward.flop, 2.0 * forward);
    assert_eq!(phases.prefill.flop, 2.0 * layer * 3.0 + 4.0 * 2.0 * 6.0);
    // Two micro-batches read 44 weights of 4 bytes each.
    assert_eq!(phases.forward.bytes, 2.0 * 44.0 * 4.0);
    assert_eq!(phases.forward.launches, 2.0 * launches::PER_LAYER_TRAINING_FORWARD as f64);
    // Two passes read the weights, and keys and values of 3 + 2 x 1 tokens, two channels each.
    assert_eq!(phases.decoding.bytes, 2.0 * 4.0 * (44.0 + 2.0 * 2.0 * 5.0));
    assert_eq!(phases.decoding.flop, 2.0 * 44.0 * 4.0 + 4.0 * 2.0 * 18.0);
    let launches = launches::PER_LAYER_DECODING + launches::PER_TOKEN_DECODING;
    assert_eq!(phases.decoding.launches, 2.0 * launches as f64);
    let graphs = predict(&shape, FULL, &work(step, 1), true);
    assert_eq!(graphs.decoding.launches, 2.0);
    let trained = num_trained(&shape, Trained::Full);
    assert_eq!(phases.update.bytes, (trained * (UPDATE_BYTES + 2 * SUM_BYTES)) as f64);
    let twice = Work { iterations: 2, ..work(step, 1) };
    assert_eq!(predict(&shape, FULL, &twice, false).backward.flop, 4.0 * forward);
}

/// `flop.py` counts the passes of this step by itself, from the shapes of `benchmarks/shapes.py`.
#[test]
fn the_arithmetic_is_that_of_the_benchmarks() {
    for (shape, text, vision, decoded) in [
        (&SHAPE_3B, 15_714_646_654_976.0, 2_067_303_383_040.0, 6_171_394_048.0),
        (&SHAPE_7B, 35_790_553_128_960.0, 2_073_453_281_280.0, 14_140_571_648.0),
    ] {
        let phases = predict(shape, BF16, &work(REC, 128), true);
        near(phases.forward.flop, 16.0 * (text + vision), 0.01);
        let no_image = predict(shape, BF16, &work(Load { patches: 0, ..REC }, 128), true);
        near(phases.forward.flop - no_image.forward.flop, 16.0 * vision, 0.005);
        // The reading of keys and values comes on top.
        let passes = phases.decoding.bytes / 256.0;
        assert!(passes > decoded && passes < 1.25 * decoded, "{passes}");
    }
}

#[test]
fn what_costs_more_and_what_less() {
    let phases = |choice| predict(&SHAPE_3B, choice, &work(REC, 64), true);
    let plain = phases(BF16);
    let recomputed = phases(Choice { recompute: true, ..BF16 });
    // Of the forward pass all but the head, which is recomputed either way.
    near(recomputed.backward.flop - plain.backward.flop, plain.forward.flop, 0.1);
    assert_eq!(recomputed.forward, plain.forward);
    let frozen = phases(Choice { trained: Trained::FrozenVision, feature_cache: 1, ..BF16 });
    assert!(frozen.forward.flop < plain.forward.flop);
    assert!(frozen.backward.flop < plain.backward.flop);
    assert_eq!(frozen.prefill, plain.prefill);
    let lora = phases(Choice { trained: LORA, feature_cache: 1, ..BF16 });
    assert!(lora.backward.flop < 0.7 * frozen.backward.flop);
    assert!(lora.update.bytes < 0.1 * frozen.update.bytes);
    assert!(lora.forward.flop > lora.reference.flop, "the reference has no adapters");
    assert_eq!(phases(Choice { reference: false, ..BF16 }).reference, Demand::default());
    let offloaded = phases(Choice { offload_optimizer: true, ..BF16 });
    assert_eq!(offloaded.update, Demand::default());
    let in_turns = Work { sampled: 64, ..work(REC, 64) };
    let in_turns = predict(&SHAPE_3B, BF16, &in_turns, true);
    assert!(in_turns.decoding.bytes > 1.5 * plain.decoding.bytes);
    assert_eq!(in_turns.decoding.flop, plain.decoding.flop);
}

#[test]
fn a_better_card_is_never_slower_and_every_phase_takes_time() {
    for trained in [Trained::Full, LORA] {
        for graphs in [false, true] {
            let choice = Choice { trained, ..BF16 };
            let phases = predict(&SHAPE_7B, choice, &work(REC, 64), graphs);
            for (name, demand) in phases.list() {
                let secs = CARDS.map(|card| card.secs(demand));
                assert!(secs.is_sorted() && secs[0] > 0.0, "{name}: {secs:?}");
            }
            let secs = CARDS.map(|card| phases.secs(&card));
            assert!(secs[3] > 2.0 * secs[0], "{secs:?}");
        }
    }
}

#[test]
fn the_whole_of_7b_fits_no_rtx_4090_and_its_adapters_fit_an_h200() {
    let group = REC.of_completions(8, 8);
    let peak = |trained| {
        let choice = Choice { trained, recompute: true, accumulates: true, ..BF16 };
        memory(&SHAPE_7B, choice, &group, &REC).peak
    };
    let usable = |name| Card::named(name).unwrap().usable_bytes();
    // Weights, masters, moments and reference alone take 2 + 2 + 8 + 2 bytes a number.
    assert!(peak(Trained::Full) > 14 * SHAPE_7B.counts.all());
    assert!(peak(Trained::Full) > 4 * usable("RTX4090"));
    assert!(peak(LORA) < usable("H200") / 2);
}
