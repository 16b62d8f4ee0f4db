//! Each operation against the same in libtorch's, gradients included.

use tch::{Device, Kind, Tensor, no_grad};

use super::*;
use crate::{Distribution, fill_random};

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

/// Outputs and gradients of `fused` in `kind` against those of `plain` in f64.
fn compare(
    inputs: &[Tensor],
    kind: Kind,
    fused: impl Fn(&[Tensor]) -> Tensor,
    plain: impl Fn(&[Tensor]) -> Tensor,
) {
    let run = |kind: Kind, f: &dyn Fn(&[Tensor]) -> Tensor| {
        let leaves: Vec<Tensor> =
            inputs.iter().map(|x| x.to_kind(kind).copy().set_requires_grad(true)).collect();
        let y = f(&leaves);
        let upstream = draw(&y.size(), Kind::Float, 77).to_kind(kind);
        (&y * &upstream).sum(Kind::Double).backward();
        let mut all = vec![y.detach()];
        all.extend(leaves.iter().map(Tensor::grad));
        all
    };
    let got = run(kind, &fused);
    let expected = run(Kind::Double, &plain);
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got.kind(), kind);
        let distance = distance(got, expected);
        assert!(distance < tolerance(kind), "{kind:?}, result {i}: {distance}");
    }
    let without = no_grad(|| fused(inputs));
    assert!(!without.requires_grad());
    assert_eq!(without.to_kind(Kind::Double), got[0].to_kind(Kind::Double));
}

#[test]
fn rms_norm_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        // 300 rows: several sums of the weight's gradient, the last one short.
        for shape in [[1, 8], [3, 24], [300, 96], [5, 37]] {
            let inputs = [draw(&shape, kind, 1), draw(&shape[1..], kind, 2)];
            compare(
                &inputs,
                kind,
                |x| rms_norm(&x[0], &x[1], 1e-6).unwrap(),
                |x| {
                    let mean = x[0].square().mean_dim(-1i64, true, Kind::Double);
                    &x[0] * (mean + 1e-6).rsqrt() * &x[1]
                },
            );
        }
    }
}

#[test]
fn swiglu_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for shape in [[1, 5], [7, 64], [40, 1408]] {
            let inputs = [draw(&shape, kind, 3) * 3.0, draw(&shape, kind, 4)];
            compare(&inputs, kind, |x| swiglu(&x[0], &x[1]).unwrap(), |x| x[0].silu() * &x[1]);
        }
    }
    let far = Tensor::from_slice(&[-1e4f32, -100.0, 0.0, 100.0, 1e4, f32::NAN]);
    let got = Vec::<f32>::try_from(swiglu(&far, &far.ones_like()).unwrap()).unwrap();
    assert!(got[..2].iter().all(|x| x.abs() < 1e-30), "{got:?}");
    assert_eq!(got[2..5], [0.0, 100.0, 1e4]);
    assert!(got[5].is_nan());
}

#[test]
fn rotate_as_by_libtorch() {
    for (kind, table) in [
        (Kind::Float, Kind::Float),
        (Kind::BFloat16, Kind::BFloat16),
        (Kind::BFloat16, Kind::Float),
    ] {
        for [tokens, heads, dim] in [[1, 1, 2], [5, 3, 20], [70, 4, 64]] {
            let half = draw(&[tokens, dim / 2], Kind::Float, 5);
            let angles = Tensor::cat(&[&half, &half], 1);
            let (cos, sin) = (angles.cos().to_kind(table), angles.sin().to_kind(table));
            // Heads of a wider tensor, as those of fused projections are.
            let wide = draw(&[tokens, 3, heads, dim], kind, 6);
            compare(
                &[wide],
                kind,
                |x| rotate(&x[0].select(1, 1), &cos, &sin).unwrap(),
                |x| {
                    let x = x[0].select(1, 1);
                    let (cos, sin) = (
                        cos.to_kind(Kind::Double).unsqueeze(1),
                        sin.to_kind(Kind::Double).unsqueeze(1),
                    );
                    let turned = Tensor::cat(
                        &[x.narrow(2, dim / 2, dim / 2).neg(), x.narrow(2, 0, dim / 2)],
                        2,
                    );
                    x * cos + turned * sin
                },
            );
        }
    }
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
                let [a, b, c] = normed_linears(&x[0], (&x[1], 1e-6), layers).unwrap();
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
                joined(normed_linears(&x[0], (&x[1], 1e-6), layers).unwrap())
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
            |x| gated_linear(&x[0], &x[1], (&x[2], Some(&x[3]))).unwrap(),
            |x| (x[0].silu() * &x[1]).linear(&x[2], Some(&x[3])),
        );
        compare(
            &inputs[..3],
            kind,
            |x| gated_linear(&x[0], &x[1], (&x[2], None)).unwrap(),
            |x| (x[0].silu() * &x[1]).linear(&x[2], None::<&Tensor>),
        );
        // Frozen weights: what is trained has its gradient all the same.
        let x = inputs[0].copy().set_requires_grad(true);
        let [y] = normed_linears(&x, (&inputs[1].get(0), 1e-6), [(&inputs[2], None)]).unwrap();
        let z = gated_linear(&x, &inputs[1], (&inputs[2], None)).unwrap();
        (y.sum(kind) + z.sum(kind)).backward();
        assert_eq!(x.grad().isfinite().all().int64_value(&[]), 1);
        assert!(normed_linears(&x, (&inputs[3], 1e-6), [(&inputs[2], None)]).is_err());
        assert!(gated_linear(&x, &inputs[2], (&inputs[2], None)).is_err());
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = draw(&[2, 8], Kind::Float, 1);
    assert!(rms_norm(&x, &draw(&[4], Kind::Float, 1), 1e-6).is_err());
    assert!(swiglu(&x, &draw(&[2, 4], Kind::Float, 1)).is_err());
    let (heads, table) = (draw(&[2, 2, 4], Kind::Float, 1), draw(&[3, 4], Kind::Float, 1));
    assert!(rotate(&heads, &table, &table).is_err());
    assert!(has_cpu_kernel(&x) && !has_cpu_kernel(&x.to_kind(Kind::Double)));
}

/// The tests of the loops run with the best instruction set; here with each that the processor has.
#[test]
fn every_instruction_set_as_by_libtorch() {
    #[cfg(target_arch = "x86_64")]
    let sets = [
        ("baseline", true),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512", is_x86_feature_detected!("avx512dq")),
        ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
        ("of no processor", true),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let sets = [("baseline", true), ("of no processor", true)];
    for (set, _) in sets.into_iter().filter(|(_, there)| *there) {
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
