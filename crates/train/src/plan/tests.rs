//! Parameter counts, peaks and fits of the plan beside what was counted and measured.

use super::*;

/// The model of `benchmarks/make_model.py`.
pub(super) const SHAPE_39M: Shape = Shape {
    hidden: 512,
    layers: 8,
    q_width: 512,
    kv_width: 128,
    mlp: 1408,
    normed_heads: false,
    vocab: 8192,
    vision_hidden: 320,
    vision_depth: 8,
    vision_mlp: 864,
    vision_gated: true,
    patch: 1176,
    merged: 4,
    full_blocks: 2,
    window: 64,
    features: 1,
    counts: Counts { vision: 10_320_384, merger: 2_295_872, language: 26_753_536 },
    layer_weights: 2_818_048,
    tower_weights: 10_862_080,
    adapter_channels: 72_704,
};
pub(super) const SHAPE_3B: Shape = Shape::QWEN2_5_VL_3B;
pub(super) const SHAPE_7B: Shape = Shape::QWEN2_5_VL_7B;
pub(super) const FULL: Choice = Choice {
    trained: Trained::Full,
    bf16: false,
    recompute: false,
    reference: true,
    accumulates: false,
    feature_cache: 0,
    in_8bit: false,
    offload_optimizer: false,
    offload_reference: false,
    cpu_kernels: false,
    ranks: Ranks::ONE,
};
/// Two prompts of 192 tokens with an image of 336 x 336, eight completions of 64 tokens each.
const BATCH: Load =
    Load { prompts: 2, completions: 16, prompt_tokens: 192, completion_tokens: 64, patches: 576 };

#[test]
fn parameters_are_those_of_the_models() {
    let counts = SHAPE_39M.counts;
    assert_eq!(
        (counts.vision, counts.merger, counts.language),
        (10_320_384, 2_295_872, 26_753_536)
    );
    // As their model cards count them.
    assert_eq!(SHAPE_3B.counts.all(), 3_754_622_976);
    assert_eq!(SHAPE_7B.counts.all(), 8_292_166_656);
}

/// The shapes that the tables of the docs are computed from, beside what the layers of these models take.
#[test]
fn shapes_are_those_of_the_hubs_configurations() {
    let hub: serde_json::Value = testing::read_json(testing::golden("families/hub_configs.json"));
    for (name, shape) in
        [("Qwen2.5-VL-3B-Instruct", SHAPE_3B), ("Qwen2.5-VL-7B-Instruct", SHAPE_7B)]
    {
        let value = hub["models"][name]["config"].clone();
        let file = models::config::ConfigFile::of("config.json".as_ref(), value).unwrap();
        let config = (models::qwen2_5_vl::FAMILY.read_config)(&file).unwrap();
        assert_eq!(Shape::of(&*config).unwrap(), shape, "{name}");
    }
}

#[test]
fn what_stays_is_weights_moments_and_reference() {
    let n = SHAPE_39M.counts.all();
    let plain = memory(&SHAPE_39M, FULL, &BATCH, &BATCH);
    assert_eq!((plain.weights, plain.reference), (4 * n, 4 * n));
    assert_eq!((plain.moments, plain.masters), (8 * n, 0));
    let narrow = Choice { bf16: true, ..FULL };
    let narrow = memory(&SHAPE_39M, narrow, &BATCH, &BATCH);
    assert_eq!((narrow.weights, narrow.masters), (2 * n, 2 * n));
    let rank = 16;
    let trained = Trained::Lora { rank, dropout: true };
    let lora = memory(&SHAPE_39M, Choice { trained, ..FULL }, &BATCH, &BATCH);
    let adapters = SHAPE_39M.adapters(rank);
    // 8 layers, rank 16: q and o 1024 each, k and v 640, gate, up and down 1920.
    assert_eq!(adapters, 8 * 16 * (2 * 1024 + 2 * 640 + 3 * 1920));
    assert_eq!((lora.reference, lora.moments), (0, 8 * adapters));
    assert_eq!((lora.weights, lora.adapters), (4 * n, 4 * adapters));
}

/// The most live bytes of a step as libtorch's allocator counted them on a CPU, in MB, on `BATCH` in one
/// micro-batch: the model of `benchmarks/make_model.py`, beta 0.04, adapters of rank 16 with dropout. By
/// libtorch's operations, as a GPU has them, and by CPU kernels. The former were counted when a step had all logits at once and f32
/// masters beside bf16: what 512 rows of logits and 16-bit residuals save is subtracted.
#[test]
fn peaks_are_those_measured() {
    let lora = Trained::Lora { rank: 16, dropout: true };
    let measured = [
        (Trained::Full, false, false, false, 1526 - 50),
        (Trained::FrozenVision, false, false, false, 1147 - 50),
        (lora, false, false, false, 1004 - 50),
        (Trained::Full, true, false, false, 1166 - 50 - 79),
        (Trained::FrozenVision, true, false, false, 862 - 50 - 53),
        (lora, true, false, false, 585 - 50),
        (Trained::Full, false, true, false, 846),
        (Trained::FrozenVision, false, true, false, 731),
        (Trained::Full, false, false, true, 1069),
        (Trained::FrozenVision, false, false, true, 822),
        (lora, false, false, true, 844),
        (Trained::Full, true, false, true, 772),
        (Trained::FrozenVision, true, false, true, 572),
        (lora, true, false, true, 429),
        (Trained::Full, false, true, true, 830),
        (Trained::FrozenVision, false, true, true, 700),
        (lora, false, true, true, 303),
    ];
    for (trained, bf16, recompute, cpu_kernels, megabytes) in measured {
        let choice = Choice { trained, bf16, recompute, cpu_kernels, ..FULL };
        let planned = memory(&SHAPE_39M, choice, &BATCH, &BATCH).peak as f64 / 1e6;
        let ratio = planned / f64::from(megabytes);
        assert!((ratio - 1.0).abs() < 0.05, "{choice:?}: {planned} of {megabytes}");
    }
}

#[test]
fn what_waits_in_host_memory_is_not_on_the_device() {
    let n = SHAPE_7B.counts.all();
    let plain = Choice { bf16: true, recompute: true, ..FULL };
    let offloaded = Choice { offload_optimizer: true, offload_reference: true, ..plain };
    let of = |choice| memory(&SHAPE_7B, choice, &BATCH, &BATCH);
    let (plain, both) = (of(plain), of(offloaded));
    assert_eq!(plain.host, 0);
    // Masters, moments, sums of gradients, gradients as they arrive, reference.
    assert_eq!(both.host, n * (4 + 8 + 4 + 2) + n * 2);
    // Weights, and gradients of the backward pass beside them.
    assert!(both.peak > 4 * n && both.peak < 5 * n, "{} of {n}", both.peak);
    assert!(plain.peak > both.peak + n * 14, "{}", plain.peak);
    let accumulates = Choice { accumulates: true, ..offloaded };
    assert_eq!(of(accumulates).peak, both.peak);
    let reference = Choice { offload_optimizer: false, ..offloaded };
    assert_eq!(of(reference).peak, plain.peak - 2 * n);
}

#[test]
fn moments_in_8_bits() {
    let n = SHAPE_39M.counts.all();
    let moments = |in_8bit| memory(&SHAPE_39M, Choice { in_8bit, ..FULL }, &BATCH, &BATCH).moments;
    let (exact, eight) = (moments(false), moments(true));
    assert_eq!(exact, 8 * n);
    assert!(eight > 2 * n && eight < 2 * n + n / 16, "{eight} of {n}");
}

#[test]
fn features_count_where_the_tower_is_frozen() {
    let peak = |trained, feature_cache| {
        let choice = Choice { trained, feature_cache, ..FULL };
        memory(&SHAPE_39M, choice, &BATCH, &BATCH).peak
    };
    let frozen = Trained::FrozenVision;
    assert_eq!(peak(frozen, 1000), peak(frozen, 0) + 1000);
    assert_eq!(peak(Trained::Full, 1000), peak(Trained::Full, 0));
}

#[test]
fn keys_and_values_by_hand() {
    // 8 layers, 128 channels, keys and values, 4 bytes; 192 tokens a prompt, 64 a completion.
    let plan = memory(&SHAPE_39M, FULL, &BATCH, &BATCH);
    assert_eq!(plan.kv_cache, 8 * 128 * 2 * 4 * (2 * 192 + 16 * 64));
    assert_eq!(plan.logits, 3 * 4 * 8192 * 512);
}

#[test]
fn savings_save_and_batches_cost() {
    let peak = |choice: Choice, batch: &Load| memory(&SHAPE_3B, choice, batch, batch).peak;
    let frozen = Choice { trained: Trained::FrozenVision, ..FULL };
    let recomputing = Choice { recompute: true, ..FULL };
    let larger = BATCH.of_completions(32, 8);
    assert!(peak(frozen, &BATCH) < peak(FULL, &BATCH));
    assert!(peak(recomputing, &larger) < peak(FULL, &larger));
    assert!(peak(FULL, &BATCH) < peak(FULL, &larger));
}

#[test]
fn the_largest_batch_fits_and_one_more_group_does_not() {
    let choice = Choice { bf16: true, recompute: true, accumulates: true, ..FULL };
    let bytes = 80 << 30;
    let fit = completions_that_fit(&SHAPE_3B, choice, (&BATCH, 8), &BATCH, bytes);
    let peak = |n| memory(&SHAPE_3B, choice, &BATCH.of_completions(n, 8), &BATCH).peak;
    assert!(fit >= 8 && fit.is_multiple_of(8), "{fit}");
    assert!(peak(fit) <= bytes && peak(fit + 8) > bytes);
    assert_eq!(completions_that_fit(&SHAPE_3B, choice, (&BATCH, 8), &BATCH, 1 << 30), 0);
}

/// A card's shape with the numbers of a model of the hub.
fn of_hub(name: &str) -> Shape {
    let hub: serde_json::Value = testing::read_json(testing::golden("families/hub_configs.json"));
    let value = hub["models"][name]["config"].clone();
    let file = models::config::ConfigFile::of("config.json".as_ref(), value).unwrap();
    Shape::of(&*(models::qwen2_5_vl::FAMILY.read_config)(&file).unwrap()).unwrap()
}

fn on_ranks(count: u64, stage: ZeroStageSetting) -> Choice {
    Choice { bf16: true, recompute: true, ranks: Ranks { count, stage }, ..FULL }
}

/// Billions of bytes.
fn near(got: u64, expected: f64, what: &str) {
    let got = got as f64 / 1e9;
    // The expected numbers have two or three digits.
    assert!((got / expected - 1.0).abs() < 0.03, "{what}: {got}, expected {expected}");
}

/// bf16 on 8 ranks, before activations. By hand, bytes of each number: weights 2 and what a pass leaves of gradients 2;
/// exact halves 2, moments 8, sums 4 and reference 2, of which stage 2 has an eighth. And seconds to send sums in f32 and
/// weights in bf16 once, seven eighths of them, at 350 and 25 GB/s.
#[test]
fn ranks_of_3b_to_72b() {
    for (name, stage_0, stage_2, nvlink, ethernet) in [
        ("Qwen2.5-VL-3B-Instruct", 75.0, 22.5, 0.056, 0.79),
        ("Qwen2.5-VL-7B-Instruct", 166.0, 49.8, 0.124, 1.74),
        ("Qwen2.5-VL-32B-Instruct", 670.0, 201.0, 0.50, 7.0),
        ("Qwen2.5-VL-72B-Instruct", 1468.0, 440.0, 1.1, 15.4),
    ] {
        let shape = of_hub(name);
        let before_activations = |stage| {
            let plan = memory(&shape, on_ranks(8, stage), &BATCH, &BATCH);
            let arriving = 2 * shape.counts.all();
            plan.weights + plan.masters + plan.moments + plan.gradients + plan.reference + arriving
        };
        near(before_activations(ZeroStageSetting::Zero), stage_0, name);
        near(before_activations(ZeroStageSetting::One), stage_2, name);
        near(before_activations(ZeroStageSetting::Auto), stage_2, name);
        let work = Work { step: BATCH, micro_batch: BATCH.completions, sampled: 1, iterations: 1 };
        let of_policy = Choice { reference: false, ..on_ranks(8, ZeroStageSetting::Two) };
        let sent = bytes_sent(&shape, of_policy, &work);
        for (network, expected) in NETWORKS.iter().zip([nvlink, ethernet]) {
            let secs = network.secs(sent);
            assert!((secs / expected - 1.0).abs() < 0.03, "{name}, {}: {secs}", network.name);
        }
    }
}

#[test]
fn what_is_sent_by_hand() {
    let n = SHAPE_39M.counts.all();
    let work = |micro_batch, iterations| Work { step: BATCH, micro_batch, sampled: 1, iterations };
    let sent = |choice, work| bytes_sent(&SHAPE_39M, choice, &work);
    let two = on_ranks(2, ZeroStageSetting::Two);
    // Half of: two rounds of f32 sums and the weights in bf16, twice; the reference once.
    assert_eq!(sent(two, work(8, 2)), (2 * (2 * 4 * n + 2 * n) + 2 * n) / 2);
    assert_eq!(sent(on_ranks(2, ZeroStageSetting::Zero), work(8, 2)), 2 * 2 * 4 * n / 2);
    assert_eq!(sent(on_ranks(1, ZeroStageSetting::Two), work(8, 2)), 0);
    let trained = Trained::Lora { rank: 16, dropout: true };
    let lora = Choice { trained, ..on_ranks(4, ZeroStageSetting::Auto) };
    // Adapters alone, stage 0.
    assert_eq!(sent(lora, work(16, 1)), 2 * 4 * SHAPE_39M.adapters(16) / 4 * 3);
}

#[test]
fn peaks_of_ranks() {
    let peak = |choice| memory(&SHAPE_7B, choice, &BATCH, &BATCH).peak;
    let n = SHAPE_7B.counts.all();
    let one = peak(on_ranks(1, ZeroStageSetting::Two));
    let zero = peak(on_ranks(8, ZeroStageSetting::Zero));
    let two = peak(on_ranks(8, ZeroStageSetting::Two));
    // Stage 0 adds a bucket in f32 to what one rank has. What one rank adds in f32 at an update is larger or as large.
    assert!(zero >= one && zero - one <= 4 * BUCKET, "{zero} {one}");
    // Seven eighths of 12 bytes of state and 2 of the reference are elsewhere, and of 4 of the sums.
    assert!(one - two > 7 * n / 8 * 12, "{one} {two}");
    assert!(two > 4 * n + 16 * n / 8, "{two}");
    // More ranks need less of each.
    assert!(peak(on_ranks(16, ZeroStageSetting::Two)) < two);
    // The reference is whole in its passes, when no gradient exists: it does not add to the peak.
    let without = peak(Choice { reference: false, ..on_ranks(8, ZeroStageSetting::Two) });
    assert_eq!(two - without, (2 * n).div_ceil(8));
    // Host memory is one rank's: masters, moments, sums and arriving gradients, and the reference.
    let both = Choice {
        offload_optimizer: true,
        offload_reference: true,
        ..on_ranks(8, ZeroStageSetting::Two)
    };
    let host = memory(&SHAPE_7B, both, &BATCH, &BATCH).host;
    assert!(host.abs_diff(n * (4 + 8 + 4 + 2 + 2) / 8) < 8, "{host}");
    assert!(peak(both) < two);
}
