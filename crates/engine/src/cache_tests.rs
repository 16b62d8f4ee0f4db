//! The loop for the CPU against libtorch's operations, which serve a GPU, and against those in sizes that are rounded up.

use base::DrawKey;
use tch::no_grad;
use torch::{Distribution, fill_random};

use super::*;

const SHAPE: TextShape = TextShape {
    num_layers: 2,
    num_heads: 6,
    num_kv_heads: 2,
    head_dim: 12,
    hidden_size: 72,
    vocab_size: 10,
};

fn draw(shape: [i64; 3], kind: Kind, key: u64) -> Tensor {
    let numbers = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    let key = DrawKey { seed: 7, step: 0, prompt: 0, completion: key };
    fill_random(&numbers, (key.uniform(0) * 1e15) as u64, Distribution::Uniform(-2.0, 2.0))
        .unwrap();
    numbers.to_kind(kind)
}

/// How decoding attends.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Fused,
    Plain,
    Fixed,
}

/// Seats as one of the ways does; the shape is that of `Way::Fixed`.
fn seat(cache: &mut KvCache, way: Way, lens: &[usize], rows: &[usize]) -> StepShape {
    if way == Way::Fixed {
        return cache.seat_fixed(lens, rows);
    }
    cache.seat(lens, rows);
    StepShape::default()
}

/// What a run of prompts, decoding steps, departures and newcomers sees, all outputs in order.
fn run(kind: Kind, way: Way) -> Vec<Tensor> {
    let mut cache = KvCache::new(SHAPE, kind, Device::Cpu, 64);
    cache.fused = way == Way::Fused;
    cache.reserve_answers(6, 1);
    let mut outputs = Vec::new();
    let qkv = |tokens: i64, key: u64| {
        [(6, 0), (2, 1), (2, 2)].map(|(heads, i)| draw([tokens, heads, 12], kind, 10 * key + i))
    };
    let prefill = |cache: &mut KvCache, lens: &[usize], first_row: usize, key: u64| {
        let layout = Layout::independent(lens.iter().copied());
        let attention = PackedAttention::new(&layout, true, kind, Device::Cpu);
        let mut backend = cache.prefill(&attention, &layout, first_row);
        for layer in 0..2 {
            let [q, k, v] = qkv(layout.num_tokens() as i64, key + layer);
            let _ = backend.attend(layer as usize, &q, &k, &v);
        }
    };
    let mut decode = |cache: &mut KvCache, mut shape: StepShape, places: &[i64], key: u64| {
        let slots = places.len() as i64;
        let longest = places.iter().copied().max().unwrap() as usize;
        let ragged = places.iter().any(|&p| p as usize != longest);
        let mut columns = Tensor::from_slice(places);
        let mut backend = if way == Way::Fixed {
            shape.columns = cache.fixed_columns(longest);
            columns = columns.constant_pad_nd([0, shape.slots - slots]);
            cache.decode_fixed(&columns, &shape)
        } else {
            cache.decode(&columns, longest, ragged)
        };
        for layer in 0..2 {
            // Those beyond the batch bring numbers of their own.
            let [q, k, v] = qkv(slots, key + layer);
            let [q, k, v] =
                [q, k, v].map(|x| x.constant_pad_nd([0, 0, 0, 0, 0, columns.size()[0] - slots]));
            let seen = backend.attend(layer as usize, &q, &k, &v);
            outputs.push(seen.narrow(0, 0, slots));
        }
    };
    prefill(&mut cache, &[21, 5], 0, 100);
    let shape = seat(&mut cache, way, &[21, 5], &[0, 0, 1, 1, 1]);
    for step in 0..40 {
        decode(&mut cache, shape, &[step; 5], 200 + 2 * step as u64);
    }
    // The first two slots leave, others take their places; then a longer prompt comes.
    let moves = Moves { from: vec![3, 4], to: vec![0, 1] };
    cache.move_slots(&moves, 40);
    prefill(&mut cache, &[33], 2, 400);
    let shape = seat(&mut cache, way, &[21, 5, 33], &[1, 1, 1, 2]);
    for step in 0..20 {
        decode(&mut cache, shape, &[40 + step, 40 + step, 40 + step, step], 500 + 2 * step as u64);
    }
    // The first prompt's row is given to the last.
    cache.move_rows(&Moves { from: vec![2], to: vec![0] });
    let shape = seat(&mut cache, way, &[33, 5], &[1, 1, 1, 0]);
    decode(&mut cache, shape, &[60, 60, 60, 20], 700);
    outputs
}

#[test]
fn one_loop_equals_libtorchs_operations() {
    assert_equal(Way::Fused, Way::Plain);
}

#[test]
fn rounded_sizes_equal_those_of_the_batch() {
    assert_equal(Way::Fixed, Way::Plain);
}

fn assert_equal(way: Way, other: Way) {
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 2e-2)] {
        let (got, expected) = no_grad(|| (run(kind, way), run(kind, other)));
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.kind(), kind);
            let difference = (got - expected).abs().max().double_value(&[]);
            assert!(difference < tolerance, "{kind:?}, output {i}: {difference}");
        }
    }
}
