//! The loop for the CPU against libtorch's operations, which serve a GPU.

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
    let key = DrawKey {
        seed: 7,
        step: 0,
        prompt: 0,
        completion: key,
    };
    fill_random(
        &numbers,
        (key.uniform(0) * 1e15) as u64,
        Distribution::Uniform(-2.0, 2.0),
    )
    .unwrap();
    numbers.to_kind(kind)
}

/// What a run of prompts, decoding steps, departures and newcomers sees, all outputs in order.
fn run(kind: Kind, fused: bool) -> Vec<Tensor> {
    let mut cache = KvCache::new(SHAPE, kind, Device::Cpu, 64);
    cache.fused = fused;
    let mut outputs = Vec::new();
    let qkv = |tokens: i64, key: u64| {
        [(6, 0), (2, 1), (2, 2)].map(|(heads, i)| draw([tokens, heads, 12], kind, 10 * key + i))
    };
    let prefill = |cache: &mut KvCache, lens: &[usize], first_row: usize, key: u64| {
        let layout = Layout::independent(lens.iter().copied());
        let attention = PackedAttention::new(&layout, true, kind, Device::Cpu);
        let mut attend = cache.prefill(&attention, &layout, first_row);
        for layer in 0..2 {
            let [q, k, v] = qkv(layout.num_tokens() as i64, key + layer);
            let _ = attend.attend(layer as usize, &q, &k, &v);
        }
    };
    let mut decode = |cache: &mut KvCache, places: &[i64], key: u64| {
        let longest = places.iter().copied().max().unwrap() as usize;
        let ragged = places.iter().any(|&p| p as usize != longest);
        let mut attend = cache.decode(&Tensor::from_slice(places), longest, ragged);
        for layer in 0..2 {
            let [q, k, v] = qkv(places.len() as i64, key + layer);
            outputs.push(attend.attend(layer as usize, &q, &k, &v));
        }
    };
    prefill(&mut cache, &[21, 5], 0, 100);
    cache.seat(&[21, 5], &[0, 0, 1, 1, 1]);
    for step in 0..40 {
        decode(&mut cache, &[step; 5], 200 + 2 * step as u64);
    }
    // The first two slots leave, others take their places; then a longer prompt comes.
    let moves = Moves {
        from: vec![3, 4],
        to: vec![0, 1],
    };
    cache.move_slots(&moves, 40);
    prefill(&mut cache, &[33], 2, 400);
    cache.seat(&[21, 5, 33], &[1, 1, 1, 2]);
    for step in 0..20 {
        decode(
            &mut cache,
            &[40 + step, 40 + step, 40 + step, step],
            500 + 2 * step as u64,
        );
    }
    // The first prompt's row is given to the last.
    cache.move_rows(&Moves {
        from: vec![2],
        to: vec![0],
    });
    cache.seat(&[33, 5], &[1, 1, 1, 0]);
    decode(&mut cache, &[60, 60, 60, 20], 700);
    outputs
}

#[test]
fn one_loop_equals_libtorchs_operations() {
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 2e-2)] {
        let (fused, plain) = no_grad(|| (run(kind, true), run(kind, false)));
        assert_eq!(fused.len(), plain.len());
        for (i, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
            assert_eq!(fused.kind(), kind);
            let difference = (fused - plain).abs().max().double_value(&[]);
            assert!(difference < tolerance, "{kind:?}, output {i}: {difference}");
        }
    }
}
