//! Decoding by sequences against the CPU kernel, on the CPU, where attention is slow.

use tch::{Device, no_grad};

use super::*;
use crate::decoding::tests::{FORMS, Form};
use crate::decoding::{KvView, decode_layer_reference};
use crate::device::rotation_matrices;
use crate::fused::tests::{distance, draw};

const KV_HEADS: i64 = 2;
const DIM: i64 = 8;
const PROMPT_WIDTH: i64 = 16;
const WIDTH: i64 = 12;
/// Prompt and tokens so far of each slot.
const SLOTS: [(i64, i64); 6] = [(2, 0), (0, 3), (0, 11), (1, 1), (2, 5), (0, 0)];
const PROMPT_LENS: [i64; 3] = [16, 1, 7];

fn ints(numbers: impl IntoIterator<Item = i64>) -> Tensor {
    Tensor::from_slice(&numbers.into_iter().map(|x| x as i32).collect::<Vec<_>>())
}

/// For each slot and each head of keys.
fn of_sequences(number: impl Fn((i64, i64), i64, i64) -> i64) -> Vec<i64> {
    let slots = (0i64..).zip(SLOTS);
    let heads = |(slot, of)| (0..KV_HEADS).map(move |head| (slot, of, head));
    slots.flat_map(heads).map(|(slot, of, head)| number(of, slot, head)).collect()
}

fn ranges(starts: Vec<i64>, lens: Vec<i64>) -> KeyRanges {
    let longest = lens.iter().copied().max().unwrap();
    KeyRanges { starts: ints(starts.into_iter().chain([0])), lens: ints(lens), longest }
}

#[test]
fn a_layer_equals_that_of_the_cpu() {
    for form in FORMS {
        for (bias, matrices) in [(true, true), (false, true), (true, false)] {
            no_grad(|| a_layer_with(form, bias, matrices));
        }
    }
}

fn a_layer_with(form: Form, bias: bool, by_matrices: bool) {
    let kind = Kind::Float;
    let slots = SLOTS.len() as i64;
    let [hidden, heads, inner] = [24, 6, 40];
    let sizes = [
        [heads * DIM, hidden],
        [KV_HEADS * DIM, hidden],
        [KV_HEADS * DIM, hidden],
        [hidden, heads * DIM],
        [inner, hidden],
        [inner, hidden],
        [hidden, inner],
    ];
    let weights: Vec<Tensor> =
        (10..).zip(sizes).map(|(key, size)| draw(&size, kind, key) * 0.2).collect();
    let biases: Vec<Tensor> =
        (20..).zip(sizes).map(|(key, [out, _])| draw(&[out], kind, key)).collect();
    let norms = [draw(&[hidden], kind, 30), draw(&[hidden], kind, 31)];
    let post_norms = [draw(&[hidden], kind, 32), draw(&[hidden], kind, 33)];
    let head_norms = [draw(&[DIM], kind, 34), draw(&[DIM], kind, 35)];
    let linear =
        |i| LinearWeights { weight: &weights[i], bias: bias.then_some(&biases[i]), packed: None };
    let layer =
        DecodeLayer::new([(&norms[0], 1e-6), (&norms[1], 1e-5)], std::array::from_fn(linear), DIM);
    let layer = form.applied(layer, &head_norms, &post_norms);
    let x = draw(&[slots, hidden], kind, 1);
    let half = draw(&[slots, DIM / form.rotated / 2], kind, 2);
    let angles = Tensor::cat(&[&half, &half], 1);
    let [cos, sin] = [angles.cos(), angles.sin()];
    // What padding and gaps hold must not show.
    let prompts = draw(&[2, 3, KV_HEADS, PROMPT_WIDTH, DIM], kind, 3);
    let completions = draw(&[2, slots + 1, KV_HEADS, WIDTH, DIM], kind, 4);
    let longs = |f: fn((i64, i64)) -> i64| Tensor::from_slice(&SLOTS.map(f));
    let own = completions.copy();
    let expected = decode_layer_reference(
        &x,
        &layer,
        [&cos, &sin],
        &KvView {
            prompt_keys: &prompts.get(0).transpose(2, 3).contiguous(),
            prompt_values: &prompts.get(1),
            completion_keys: &own.get(0),
            completion_values: &own.get(1),
            prompt_indices: &longs(|(prompt, _)| prompt),
            prompt_lens: &longs(|(prompt, _)| PROMPT_LENS[prompt as usize]),
            completion_lens: &longs(|(_, len)| len),
            first_visible: None,
        },
    );
    let rows = (slots + 1) * KV_HEADS * WIDTH;
    let new_rows = of_sequences(|(_, len), slot, head| (slot * KV_HEADS + head) * WIDTH + len);
    let both: Vec<i64> =
        new_rows.iter().copied().chain(new_rows.iter().map(|r| r + rows)).collect();
    let matrices = rotation_matrices([&cos, &sin], DIM, form.pairing);
    let got = decode_layer_by_sequences(
        &x,
        &layer,
        [&cos, &sin],
        by_matrices.then_some(&matrices),
        &SequenceKv {
            prompts: [&prompts.get(0), &prompts.get(1)],
            completions: &completions.view([2, -1, DIM]),
            new_rows: &Tensor::from_slice(&both),
            query_ends: &ints((0..=slots * KV_HEADS).map(|i| i * heads / KV_HEADS)),
            prompt_ranges: &ranges(
                of_sequences(|(prompt, _), _, head| (prompt * KV_HEADS + head) * PROMPT_WIDTH),
                of_sequences(|(prompt, _), _, _| PROMPT_LENS[prompt as usize]),
            ),
            completion_ranges: &ranges(
                of_sequences(|_, slot, head| (slot * KV_HEADS + head) * WIDTH),
                of_sequences(|(_, len), _, _| len + 1),
            ),
        },
    );
    assert!(distance(&got, &expected) < 1e-5, "{form:?}: {}", distance(&got, &expected));
    // The new keys and values lie where the kernel puts them, and all others stay.
    assert!(distance(&completions, &own) < 1e-6);
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let x = Tensor::zeros([1, 2, DIM], (Kind::Float, Device::Cpu));
    let new = Tensor::zeros([2, 1, 1, DIM], (Kind::Float, Device::Cpu));
    let range = || ranges(vec![0], vec![1]);
    let kv = SequenceKv {
        prompts: [&x, &x],
        completions: &new,
        new_rows: &Tensor::from_slice(&[0i64]),
        query_ends: &ints([0, 2]),
        prompt_ranges: &range(),
        completion_ranges: &range(),
    };
    assert!(kv.attend(&x, &new, None).is_err());
}
