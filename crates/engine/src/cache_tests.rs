//! The CPU kernel and attention by sequences against libtorch's products over padded blocks, in exact sizes and in rounded ones.

use base::DrawKey;
use tch::no_grad;
use torch::{DecodeKernel, Distribution, fill_random};

use super::*;

/// Flash attention takes multiples of 8 channels; the others any number.
fn head_dim() -> i64 {
    if torch::device_of_tests().is_cuda() { 16 } else { 12 }
}

fn shape() -> AttentionShape {
    AttentionShape { heads: 6, kv_heads: 2, head_dim: head_dim(), window: None, keys_of: None }
}

fn draw(shape: [i64; 3], kind: Kind, key: u64) -> Tensor {
    let numbers = Tensor::empty(shape, (Kind::Float, torch::device_of_tests()));
    let key = DrawKey { seed: 7, step: 0, prompt: 0, completion: key };
    fill_random(&numbers, (key.uniform(0) * 1e15) as u64, Distribution::Uniform(-2.0, 2.0))
        .unwrap();
    numbers.to_kind(kind)
}

/// The ways of decoding attention.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    CpuKernel,
    Eager,
    StaticShapes,
    Sequences,
    StaticSequences,
}

impl Way {
    fn kernel(self) -> DecodeKernel {
        match self {
            Way::CpuKernel => DecodeKernel::Cpu,
            Way::Eager | Way::StaticShapes => DecodeKernel::Products,
            Way::Sequences | Way::StaticSequences => DecodeKernel::Sequences,
        }
    }

    fn is_of_this_device(&self) -> bool {
        *self != Way::CpuKernel || !torch::device_of_tests().is_cuda()
    }

    fn is_static(self) -> bool {
        matches!(self, Way::StaticShapes | Way::StaticSequences)
    }
}

/// Binds the batch; the shape is for static ways.
fn bind(cache: &mut KvCache, way: Way, lens: &[usize], prompts: &[usize]) -> StepShape {
    if way.is_static() {
        return cache.bind_batch_static(lens, prompts);
    }
    cache.bind_batch(lens, prompts);
    StepShape::default()
}

/// What a run of prompts, decoding steps, departures and newcomers sees, all outputs in order.
fn run(kind: Kind, way: Way) -> Vec<Tensor> {
    let mut cache = KvCache::with_kernel(2, shape(), kind, torch::device_of_tests(), way.kernel());
    cache.expect_completions(64);
    cache.reserve_completions(6, 1);
    let mut outputs = Vec::new();
    let qkv = |tokens: i64, key: u64| {
        [(6, 0), (2, 1), (2, 2)]
            .map(|(heads, i)| draw([tokens, heads, head_dim()], kind, 10 * key + i))
    };
    let prefill = |cache: &mut KvCache, lens: &[usize], first_prompt: usize, key: u64| {
        let layout = Layout::independent(lens.iter().copied());
        let attention = PackedAttention::new(&layout, true, kind, torch::device_of_tests());
        let backend = cache.prefill(&attention, &layout, first_prompt);
        for layer in 0..2 {
            let [q, k, v] = qkv(layout.num_tokens() as i64, key + layer);
            let _ = backend.attend(layer as usize, &q, &k, &v);
        }
    };
    let mut decode = |cache: &mut KvCache, mut shape: StepShape, lens: &[i64], key: u64| {
        let slots = lens.len() as i64;
        let longest = lens.iter().copied().max().unwrap() as usize;
        let ragged = lens.iter().any(|&len| len as usize != longest);
        let mut lens = Tensor::from_slice(lens).to_device(torch::device_of_tests());
        let backend = if way.is_static() {
            shape.completion_width = cache.reserve_static(longest);
            lens = lens.constant_pad_nd([0, shape.slots - slots]);
            cache.decode_static(&lens, &shape)
        } else {
            cache.decode(&lens, longest, ragged)
        };
        for layer in 0..2 {
            // Padding slots bring numbers of their own.
            let [q, k, v] = qkv(slots, key + layer);
            let [q, k, v] =
                [q, k, v].map(|x| x.constant_pad_nd([0, 0, 0, 0, 0, lens.size()[0] - slots]));
            let output = backend.attend(layer as usize, &q, &k, &v);
            outputs.push(output.narrow(0, 0, slots));
        }
    };
    prefill(&mut cache, &[21, 5], 0, 100);
    let shape = bind(&mut cache, way, &[21, 5], &[0, 0, 1, 1, 1]);
    for step in 0..40 {
        decode(&mut cache, shape, &[step; 5], 200 + 2 * step as u64);
    }
    // The first two slots leave, others take their places; then a longer prompt comes.
    let moves = Moves { from: vec![3, 4], to: vec![0, 1] };
    cache.move_slots(&moves, 40);
    prefill(&mut cache, &[33], 2, 400);
    let shape = bind(&mut cache, way, &[21, 5, 33], &[1, 1, 1, 2]);
    for step in 0..20 {
        decode(&mut cache, shape, &[40 + step, 40 + step, 40 + step, step], 500 + 2 * step as u64);
    }
    // The last prompt moves to the place of the first.
    cache.move_prompts(&Moves { from: vec![2], to: vec![0] });
    let shape = bind(&mut cache, way, &[33, 5], &[1, 1, 1, 0]);
    decode(&mut cache, shape, &[60, 60, 60, 20], 700);
    outputs
}

#[test]
fn cpu_kernel_equals_libtorch() {
    assert_equal(Way::CpuKernel, Way::Eager);
}

#[test]
fn static_shapes_equal_exact_sizes() {
    assert_equal(Way::StaticShapes, Way::Eager);
}

#[test]
fn sequences_equal_products() {
    assert_equal(Way::Sequences, Way::Eager);
    assert_equal(Way::StaticSequences, Way::Eager);
}

#[test]
fn many_prompts_of_any_lengths_in_any_order() {
    let (kind, prompts) = (Kind::Float, 13);
    let lens: Vec<usize> = (0..prompts).map(|i| 1 + 7 * i % 29).collect();
    let of_slot: Vec<usize> = (0..31).map(|i| (i * 5 + i / 7) % prompts).collect();
    let before: Vec<i64> = (0..31).map(|i| i * 3 % 17).collect();
    let run = |way: Way| {
        let mut cache =
            KvCache::with_kernel(2, shape(), kind, torch::device_of_tests(), way.kernel());
        cache.reserve_completions(31, 17);
        let layout = Layout::independent(lens.iter().copied());
        let attention = PackedAttention::new(&layout, true, kind, torch::device_of_tests());
        let qkv = |tokens: i64, key: u64| {
            [(6, 0), (2, 1), (2, 2)]
                .map(|(heads, i)| draw([tokens, heads, head_dim()], kind, key + i))
        };
        let [q, k, v] = qkv(layout.num_tokens() as i64, 10);
        let _ = cache.prefill(&attention, &layout, 0).attend(0, &q, &k, &v);
        // Tokens so far, as if all completions were as long as the longest.
        cache.bind_batch(&lens, &of_slot);
        for step in 0..17 {
            let [q, k, v] = qkv(31, 100 + 10 * step as u64);
            let lens = Tensor::full([31], step, (Kind::Int64, torch::device_of_tests()));
            let _ = cache.decode(&lens, step as usize, false).attend(0, &q, &k, &v);
        }
        let [q, k, v] = qkv(31, 500);
        let lens = Tensor::from_slice(&before).to_device(torch::device_of_tests());
        cache.decode(&lens, 16, true).attend(0, &q, &k, &v)
    };
    let expected = no_grad(|| run(Way::Eager));
    for way in [Way::CpuKernel, Way::Sequences].into_iter().filter(Way::is_of_this_device) {
        let difference = (no_grad(|| run(way)) - &expected).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
    }
}

fn assert_equal(way: Way, other: Way) {
    if !way.is_of_this_device() {
        println!("skipped: a kernel for the CPU");
        return;
    }
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
