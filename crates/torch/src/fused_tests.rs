//! Each operation against the same in libtorch's, gradients included.

use tch::{Device, Kind, Tensor, no_grad};

use super::*;
use crate::activations::activate_reference;
use crate::{Distribution, fill_random};

const SILU: Activation = Activation::Silu;
pub(crate) const ACTIVATIONS: [Activation; 4] =
    [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::QuickGelu];
const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];
/// Channels of heads.
pub(crate) const DIMS: [i64; 6] = [64, 80, 96, 128, 192, 256];

pub(crate) fn draw(shape: &[i64], kind: Kind, key: u64) -> Tensor {
    let numbers = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    fill_random(&numbers, key, Distribution::Uniform(-2.0, 2.0)).unwrap();
    numbers.to_kind(kind)
}

/// Largest difference relative to the largest expected number.
pub(crate) fn distance(got: &Tensor, expected: &Tensor) -> f64 {
    let (got, expected) = (got.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    assert_eq!(got.size(), expected.size());
    assert_eq!(got.isfinite().all().int64_value(&[]), 1, "{got}");
    let scale = expected.abs().max().double_value(&[]).max(1e-12);
    (got - expected).abs().max().double_value(&[]) / scale
}

pub(crate) fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 2e-6 } else { 1e-2 }
}

/// The output of `f` in `kind`, and the gradients of the inputs.
fn with_gradients(inputs: &[Tensor], kind: Kind, f: &dyn Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let leaves: Vec<Tensor> =
        inputs.iter().map(|x| x.to_kind(kind).copy().set_requires_grad(true)).collect();
    let y = f(&leaves);
    let upstream = draw(&y.size(), Kind::Float, 77).to_kind(kind);
    (&y * &upstream).sum(Kind::Double).backward();
    let mut all = vec![y.detach()];
    all.extend(leaves.iter().map(Tensor::grad));
    all
}

/// Outputs and gradients of `fused` in `kind` against those of `plain` in f64.
fn compare(
    inputs: &[Tensor],
    kind: Kind,
    fused: impl Fn(&[Tensor]) -> Tensor,
    plain: impl Fn(&[Tensor]) -> Tensor,
) {
    let got = with_gradients(inputs, kind, &fused);
    let expected = with_gradients(inputs, Kind::Double, &plain);
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got.kind(), kind);
        let distance = distance(got, expected);
        assert!(distance < tolerance(kind), "{kind:?}, result {i}: {distance}");
    }
    let without = no_grad(|| fused(inputs));
    assert!(!without.requires_grad());
    assert_eq!(without.to_kind(Kind::Double), got[0].to_kind(Kind::Double));
}

/// The norm in f64.
fn plain_norm(x: &Tensor, w: &Tensor, offset: f64) -> Tensor {
    let mean = x.square().mean_dim(-1i64, true, Kind::Double);
    x * (mean + 1e-6).rsqrt() * (w + offset)
}

#[test]
fn rms_norm_as_by_libtorch() {
    for (kind, offset) in KINDS.map(|kind| [0.0, 1.0].map(|offset| (kind, offset))).concat() {
        // 300 rows: several sums of the weight's gradient, the last one short.
        for shape in [[1, 8], [3, 24], [300, 96], [5, 37]] {
            let inputs = [draw(&shape, kind, 1), draw(&shape[1..], kind, 2)];
            compare(
                &inputs,
                kind,
                |x| rms_norm(&x[0], Norm { weight: &x[1], eps: 1e-6, offset }).unwrap(),
                |x| plain_norm(&x[0], &x[1], offset),
            );
        }
    }
}

/// Heads of a wider tensor, as those of fused projections are.
#[test]
fn rms_norm_of_heads_as_by_libtorch() {
    for (kind, offset) in KINDS.map(|kind| [0.0, 1.0].map(|offset| (kind, offset))).concat() {
        for (dim, heads) in DIMS.into_iter().zip([1, 2, 4, 7, 8, 3]) {
            let inputs = [draw(&[33, 3, heads, dim], kind, 1), draw(&[dim], kind, 2)];
            compare(
                &inputs,
                kind,
                |x| {
                    let x = [x[0].select(1, 1), x[1].shallow_clone()];
                    rms_norm(&x[0], Norm { weight: &x[1], eps: 1e-6, offset }).unwrap()
                },
                |x| plain_norm(&x[0].select(1, 1), &x[1], offset),
            );
            let part = inputs[0].select(1, 2);
            let of = |x: &Tensor| rms_norm(x, (&inputs[1], 1e-6).into()).unwrap();
            assert_eq!(of(&part), of(&part.contiguous()), "a view, read in place");
        }
    }
}

#[test]
fn activations_as_by_libtorch() {
    for (kind, f) in KINDS.map(|kind| ACTIVATIONS.map(|f| (kind, f))).concat() {
        for shape in [[1, 5], [7, 64], [40, 1408]] {
            let inputs = [draw(&shape, kind, 3) * 3.0, draw(&shape, kind, 4)];
            compare(
                &inputs,
                kind,
                |x| gated(&x[0], &x[1], f).unwrap(),
                |x| activate_reference(&x[0], f) * &x[1],
            );
            compare(
                &inputs[..1],
                kind,
                |x| activate(&x[0], f).unwrap(),
                |x| activate_reference(&x[0], f),
            );
        }
        let far = Tensor::from_slice(&[-1e4f32, -100.0, 0.0, 100.0, 1e4, f32::NAN]);
        let got = Vec::<f32>::try_from(gated(&far, &far.ones_like(), f).unwrap()).unwrap();
        assert!(got[..2].iter().all(|x| x.abs() < 1e-30), "{f:?}: {got:?}");
        assert_eq!(got[2..5], [0.0, 100.0, 1e4], "{f:?}");
        assert!(got[5].is_nan());
        let leaf = far.copy().set_requires_grad(true);
        activate(&leaf, f).unwrap().sum(Kind::Float).backward();
        let slopes = Vec::<f32>::try_from(leaf.grad()).unwrap();
        assert!(slopes[..2].iter().all(|x| x.abs() < 1e-25), "{f:?}: {slopes:?}");
        assert_eq!(slopes[2..5], [0.5, 1.0, 1.0], "{f:?}");
    }
}

/// Of each number by itself, not of the largest: a tail keeps its digits.
#[test]
fn activations_are_exact_to_a_few_units() {
    let x = Tensor::arange_start_step(-6.0, 8.0, 0.0007, (Kind::Float, Device::Cpu));
    for f in ACTIVATIONS {
        let exact = match f {
            // libtorch's own loses the tail, in f64 as well.
            Activation::GeluTanh => {
                let x = x.to_kind(Kind::Double);
                let z = (&x * &x * &x * 0.044715 + &x) * (2.0 / std::f64::consts::PI).sqrt();
                x * (z * 2.0).sigmoid()
            }
            Activation::Gelu => {
                let x = x.to_kind(Kind::Double);
                let tail = (&x * -std::f64::consts::FRAC_1_SQRT_2).erfc() * 0.5;
                x * tail
            }
            _ => activate_reference(&x.to_kind(Kind::Double), f),
        };
        let got = activate(&x, f).unwrap().to_kind(Kind::Double);
        let worst = |got: &Tensor, near: bool| {
            let error = (got - &exact).abs() / (exact.abs() * 2f64.powi(-23) + 1e-30);
            match near {
                true => error.masked_select(&x.ge(-1.0)).max().double_value(&[]),
                false => error.max().double_value(&[]),
            }
        };
        let of_libtorch = activate_reference(&x, f).to_kind(Kind::Double);
        let [got, of_libtorch] =
            [got, of_libtorch].map(|y| [true, false].map(|near| worst(&y, near)));
        println!("{f:?}: units in the last place {got:.1?}, libtorch's {of_libtorch:.1?}");
        assert!(got[0] < 6.0 && got[1] < 40.0, "{f:?}: {got:?}");
    }
}

#[test]
fn rotate_as_by_libtorch() {
    for (kind, table) in [
        (Kind::Float, Kind::Float),
        (Kind::BFloat16, Kind::BFloat16),
        (Kind::BFloat16, Kind::Float),
    ] {
        for [tokens, heads, dim, width] in [
            [1, 1, 2, 2],
            [5, 3, 20, 20],
            [70, 4, 64, 64],
            [9, 2, 80, 40],
            [9, 8, 96, 96],
            [9, 7, 128, 64],
            [3, 1, 192, 6],
            [7, 2, 256, 64],
        ] {
            for pairing in [Pairing::Halves, Pairing::Adjacent] {
                let half = draw(&[tokens, width / 2], Kind::Float, 5);
                let angles = Tensor::cat(&[&half, &half], 1);
                let (cos, sin) = (angles.cos().to_kind(table), angles.sin().to_kind(table));
                let [exact_cos, exact_sin] = [&cos, &sin].map(|x| x.to_kind(Kind::Double));
                // Heads of a wider tensor, as those of fused projections are.
                let wide = draw(&[tokens, 3, heads, dim], kind, 6);
                compare(
                    &[wide],
                    kind,
                    |x| rotate(&x[0].select(1, 1), [&cos, &sin], pairing).unwrap(),
                    |x| turned_by_hand(&x[0].select(1, 1), [&exact_cos, &exact_sin], pairing),
                );
            }
        }
    }
}

/// Pair by pair.
fn turned_by_hand(x: &Tensor, [cos, sin]: [&Tensor; 2], pairing: Pairing) -> Tensor {
    let half = cos.size()[1] / 2;
    let mut channels: Vec<Tensor> = x.unbind(2);
    for i in 0..half {
        let [a, b] = match pairing {
            Pairing::Halves => [i, i + half],
            Pairing::Adjacent => [2 * i, 2 * i + 1],
        };
        let [c, s] = [cos, sin].map(|table| table.select(1, i).unsqueeze(1));
        let (first, second) = (&channels[a as usize], &channels[b as usize]);
        let turned = (first * &c - second * &s, second * &c + first * &s);
        (channels[a as usize], channels[b as usize]) = turned;
    }
    Tensor::stack(&channels, 2)
}

#[test]
fn token_scores_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for [rows, vocabulary] in [[1, 3], [9, 100], [33, 1027]] {
            let targets: Vec<i64> = (0..rows).map(|row| row * 7 % vocabulary).collect();
            let targets = Tensor::from_slice(&targets);
            let logits = draw(&[rows, vocabulary], kind, 7) * 4.0;
            let plain = |x: &Tensor| (x / 0.7).log_softmax(-1, Kind::Double);
            compare(
                &[logits.shallow_clone()],
                kind,
                // In the type of the inputs for the comparison only.
                |x| token_scores(&x[0], &targets, 1.0 / 0.7).unwrap()[0].to_kind(kind),
                |x| plain(&x[0]).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1),
            );
            let [_, entropies] = token_scores(&logits, &targets, 1.0 / 0.7).unwrap();
            let all = plain(&logits.to_kind(Kind::Double));
            let expected = -(all.exp() * all).sum_dim_intlist(-1i64, false, Kind::Double);
            assert!(distance(&entropies, &expected) < 1e-5);
        }
    }
    let logits = Tensor::zeros([2, 4], (Kind::Float, Device::Cpu));
    assert!(token_scores(&logits, &Tensor::from_slice(&[0i64, 4]), 1.0).is_err());
    let broken = logits.fill(f64::NAN);
    let [logprobs, _] = token_scores(&broken, &Tensor::from_slice(&[0i64, 3]), 1.0).unwrap();
    assert_eq!(logprobs.isnan().all().int64_value(&[]), 1);
}

/// With and without a bias, and with an output that nobody uses.
#[test]
fn layers_over_a_norm_or_an_activation_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let inputs = [
            draw(&[70, 24], kind, 20),
            draw(&[24], kind, 21),
            draw(&[40, 24], kind, 22),
            draw(&[24, 24], kind, 23),
            draw(&[9, 24], kind, 24),
            draw(&[24], kind, 25),
        ];
        let joined = |y: [Tensor; 3]| Tensor::cat(&[&y[0], &y[1]], 1);
        compare(
            &inputs[..5],
            kind,
            |x| {
                let layers = [(&x[2], None), (&x[3], None), (&x[4], None)];
                let [a, b, c] = normed_linears(&x[0], (&x[1], 1e-6).into(), layers).unwrap();
                Tensor::cat(&[a, b, c], 1)
            },
            |x| {
                let mean = x[0].square().mean_dim(-1i64, true, Kind::Double);
                let normed = &x[0] * (mean + 1e-6).rsqrt() * &x[1];
                let each = [2, 3, 4].map(|i| normed.linear(&x[i], None::<&Tensor>));
                Tensor::cat(&each, 1)
            },
        );
        let with_bias = [0, 1, 2, 3, 5].map(|i| inputs[i].shallow_clone());
        compare(
            &with_bias,
            kind,
            |x| {
                let layers = [(&x[2], None), (&x[3], Some(&x[4])), (&x[3], None)];
                joined(normed_linears(&x[0], (&x[1], 1e-6).into(), layers).unwrap())
            },
            |x| {
                let mean = x[0].square().mean_dim(-1i64, true, Kind::Double);
                let normed = &x[0] * (mean + 1e-6).rsqrt() * &x[1];
                let first = normed.linear(&x[2], None::<&Tensor>);
                joined([first, normed.linear(&x[3], Some(&x[4])), normed.shallow_clone()])
            },
        );
        let gated = [26, 27].map(|key| draw(&[70, 24], kind, key));
        let [gate, up] = gated;
        let inputs = [gate, up, inputs[4].shallow_clone(), draw(&[9], kind, 28)];
        compare(
            &inputs,
            kind,
            |x| gated_linear(&x[0], &x[1], SILU, (&x[2], Some(&x[3]))).unwrap(),
            |x| (x[0].silu() * &x[1]).linear(&x[2], Some(&x[3])),
        );
        compare(
            &inputs[..3],
            kind,
            |x| gated_linear(&x[0], &x[1], SILU, (&x[2], None)).unwrap(),
            |x| (x[0].silu() * &x[1]).linear(&x[2], None::<&Tensor>),
        );
        for f in ACTIVATIONS {
            compare(
                &inputs,
                kind,
                |x| gated_linear(&x[0], &x[1], f, (&x[2], Some(&x[3]))).unwrap(),
                |x| (activate_reference(&x[0], f) * &x[1]).linear(&x[2], Some(&x[3])),
            );
            let plain = [0, 2, 3].map(|i| inputs[i].shallow_clone());
            compare(
                &plain,
                kind,
                |x| activated_linear(&x[0], f, (&x[1], Some(&x[2]))).unwrap(),
                |x| activate_reference(&x[0], f).linear(&x[1], Some(&x[2])),
            );
            compare(
                &plain[..2],
                kind,
                |x| activated_linear(&x[0], f, (&x[1], None)).unwrap(),
                |x| activate_reference(&x[0], f).linear(&x[1], None::<&Tensor>),
            );
        }
        // Frozen weights: what is trained has its gradient all the same.
        let x = inputs[0].copy().set_requires_grad(true);
        let [y] =
            normed_linears(&x, (&inputs[1].get(0), 1e-6).into(), [(&inputs[2], None)]).unwrap();
        let z = gated_linear(&x, &inputs[1], SILU, (&inputs[2], None)).unwrap();
        (y.sum(kind) + z.sum(kind)).backward();
        assert_eq!(x.grad().isfinite().all().int64_value(&[]), 1);
        assert!(normed_linears(&x, (&inputs[3], 1e-6).into(), [(&inputs[2], None)]).is_err());
        assert!(gated_linear(&x, &inputs[2], SILU, (&inputs[2], None)).is_err());
        assert!(activated_linear(&x, SILU, (&inputs[0].tr(), None)).is_err());
    }
}

/// Recomputed, a layer norm is what it was: bit for bit, gradients included.
#[test]
fn layers_over_a_layer_norm_as_by_libtorch() {
    for (kind, has_bias) in KINDS.map(|kind| [true, false].map(|b| (kind, b))).concat() {
        let inputs = [
            draw(&[70, 24], kind, 20),
            draw(&[24], kind, 21),
            draw(&[24], kind, 22),
            draw(&[40, 24], kind, 23),
            draw(&[40], kind, 24),
        ];
        // A leaf without a use would have no gradient to compare.
        let with_all = |y: Tensor, x: &[Tensor]| match has_bias {
            true => y,
            false => y + x[2].sum(kind) * 0.0,
        };
        let norm_of = |x: &[Tensor]| (x[1].shallow_clone(), has_bias.then(|| x[2].shallow_clone()));
        let fused = |x: &[Tensor]| {
            let (weight, bias) = norm_of(x);
            let norm = LayerNorm { weight: &weight, bias: bias.as_ref(), eps: 1e-6 };
            let [y] = normed_linears(&x[0], norm.into(), [(&x[3], Some(&x[4]))]).unwrap();
            with_all(y, x)
        };
        let plain = |x: &[Tensor]| {
            let (weight, bias) = norm_of(x);
            let normed = x[0].layer_norm([24], Some(&weight), bias.as_ref(), 1e-6, false);
            let y = normed.linear(&x[3], Some(&x[4]));
            with_all(y, x)
        };
        let got = with_gradients(&inputs, kind, &fused);
        assert_eq!(got, with_gradients(&inputs, kind, &plain), "{kind:?}, bias {has_bias}");
        // What is frozen has no gradient, and what is not has its own.
        let bias = inputs[2].copy().set_requires_grad(true);
        let norm = LayerNorm { weight: &inputs[1], bias: Some(&bias), eps: 1e-6 };
        let [y] = normed_linears(&inputs[0], norm.into(), [(&inputs[3], None)]).unwrap();
        y.sum(kind).backward();
        assert!(bias.grad().abs().sum(Kind::Double).double_value(&[]) > 0.0);
        let narrow = LayerNorm { weight: &inputs[1], bias: Some(&inputs[4]), eps: 1e-6 };
        assert!(normed_linears(&inputs[0], narrow.into(), [(&inputs[3], None)]).is_err());
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = draw(&[2, 8], Kind::Float, 1);
    assert!(rms_norm(&x, (&draw(&[4], Kind::Float, 1), 1e-6).into()).is_err());
    assert!(gated(&x, &draw(&[2, 4], Kind::Float, 1), SILU).is_err());
    let (heads, table) = (draw(&[2, 2, 4], Kind::Float, 1), draw(&[3, 4], Kind::Float, 1));
    assert!(rotate(&heads, [&table, &table], Pairing::Halves).is_err());
    assert!(has_cpu_kernel(&x) && !has_cpu_kernel(&x.to_kind(Kind::Double)));
}

/// The tests of the loops run with the best instruction set; here with each other that the processor has.
#[test]
fn every_instruction_set_as_by_libtorch() {
    #[cfg(target_arch = "x86_64")]
    let sets = [
        ("baseline", true),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512", is_x86_feature_detected!("avx512dq")),
        ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let sets = [("baseline", true)];
    let mut others: Vec<&str> =
        sets.into_iter().filter(|(_, there)| *there).map(|(set, _)| set).collect();
    others.pop();
    for set in others.into_iter().chain(["of no processor"]) {
        let tests = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "fused::tests::",
                "linear::tests::",
                "decoding::tests::",
                "segment_attention::tests::",
                "--skip",
                "every_instruction_set",
            ])
            .env("VLM_R1_CPU_SET", set)
            // How work is split among threads is the same for all sets.
            .env("OMP_NUM_THREADS", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&tests.stdout);
        assert_eq!(tests.status.success(), set != "of no processor", "{set}: {said}");
        for test in [
            "rms_norm_as_by_libtorch",
            "packed_layers_as_by_libtorch",
            "any_segments_as_by_libtorch",
        ] {
            assert!(said.contains(test), "{set}: {said}");
        }
    }
}
