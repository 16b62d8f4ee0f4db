//! Forms of few launches against the reference, gradients included, on the CPU.

use tch::Device;

use super::*;
use crate::fused::tests::{distance, draw};
use crate::linear::{LinearWeights, residual_linear, residual_linear_by_product};
use crate::{rms_norm_reference, rotate_reference};

/// Of the reference's type, which rounds more often than the forms of few launches.
fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 2e-6 } else { 2e-2 }
}

/// Values and gradients of `few` in each type against those of `reference` in the same type, and of f64.
fn compare(
    inputs: &[Tensor],
    few: impl Fn(&[Tensor]) -> Tensor,
    reference: impl Fn(&[Tensor]) -> Tensor,
) {
    let run = |kind: Kind, f: &dyn Fn(&[Tensor]) -> Tensor| {
        let leaves: Vec<Tensor> =
            inputs.iter().map(|x| x.to_kind(kind).copy().set_requires_grad(true)).collect();
        let y = f(&leaves);
        let upstream = draw(&y.size(), Kind::Float, 77).to_kind(kind);
        (&y * upstream).sum(Kind::Double).backward();
        let mut all = vec![y.detach()];
        all.extend(leaves.iter().map(Tensor::grad));
        all
    };
    let exact = run(Kind::Double, &reference);
    for kind in [Kind::Float, Kind::BFloat16] {
        let (got, expected) = (run(kind, &few), run(kind, &reference));
        for (i, got) in got.iter().enumerate() {
            assert_eq!(got.kind(), kind);
            assert_eq!(got.size(), expected[i].size());
            let [far, limit] = [distance(got, &exact[i]), tolerance(kind)];
            assert!(far < limit, "{kind:?}, result {i}: {far}");
            let [plain, apart] = [distance(&expected[i], &exact[i]), distance(got, &expected[i])];
            assert!(far <= 1.5 * plain + 1e-6, "{kind:?}, result {i}: {far}, reference {plain}");
            assert!(apart < limit, "{kind:?}, result {i}: {apart} apart");
        }
    }
}

#[test]
fn the_norm_is_one_operation() {
    for shape in [[1, 8], [3, 24], [300, 96]] {
        let inputs = [draw(&shape, Kind::Float, 1), draw(&shape[1..], Kind::Float, 2)];
        compare(
            &inputs,
            |x| rms_norm(&x[0], (&x[1], 1e-6).into()),
            |x| rms_norm_reference(&x[0], (&x[1], 1e-6)),
        );
    }
}

/// Cosines and sines of `T` tokens and `width` channels.
fn tables(tokens: i64, width: i64, kind: Kind) -> [Tensor; 2] {
    let half = draw(&[tokens, width / 2], Kind::Float, 5) * 3.0;
    let angles = Tensor::cat(&[&half, &half], 1);
    [angles.cos().to_kind(kind), angles.sin().to_kind(kind)]
}

const PAIRINGS: [Pairing; 2] = [Pairing::Halves, Pairing::Adjacent];

#[test]
fn rotation_is_three_operations() {
    let inputs = [draw(&[9, 3, 8], Kind::Float, 1)];
    for (pairing, width) in PAIRINGS.into_iter().flat_map(|p| [(p, 8), (p, 4)]) {
        // In the type of `x` as for text, and in f32 as for patches.
        for in_f32 in [false, true] {
            let tables = |x: &Tensor| {
                // The same numbers whatever the type.
                let [cos, sin] = tables(9, width, Kind::BFloat16);
                let kind = match (in_f32, x.kind()) {
                    (true, Kind::BFloat16) => Kind::Float,
                    (_, kind) => kind,
                };
                [cos.to_kind(kind), sin.to_kind(kind)]
            };
            let turn = |x: &[Tensor], f: &dyn Fn(&Tensor, [&Tensor; 2]) -> Tensor| {
                let [cos, sin] = tables(&x[0]);
                f(&x[0], [&cos, &sin])
            };
            compare(
                &inputs,
                |x| turn(x, &|x, tables| rotate(x, tables, pairing).unwrap()),
                |x| turn(x, &|x, tables| rotate_reference(x, tables, pairing)),
            );
        }
        let [cos, sin] = tables(9, width, Kind::Float);
        let view = draw(&[9, 3, 2, 8], Kind::Float, 3).select(2, 1);
        let got = rotate(&view, [&cos, &sin], pairing).unwrap();
        assert!(distance(&got, &rotate_reference(&view, [&cos, &sin], pairing)) < 1e-6);
        let few = [cos.narrow(0, 0, 8), sin.narrow(0, 0, 8)];
        assert!(rotate(&view, few.each_ref(), pairing).is_err());
    }
}

#[test]
fn rotation_by_matrices_rounds_once() {
    for (kind, pairing) in
        [Kind::Float, Kind::BFloat16].into_iter().flat_map(|k| PAIRINGS.map(|p| (k, p)))
    {
        for width in [16, 12] {
            let x = draw(&[7, 5, 16], kind, 1);
            let [cos, sin] = tables(7, width, kind);
            let exact = |x: &Tensor| x.to_kind(Kind::Double);
            let [exact_cos, exact_sin] = [exact(&cos), exact(&sin)];
            let expected = rotate_reference(&exact(&x), [&exact_cos, &exact_sin], pairing);
            let got = x.bmm(&rotation_matrices([&cos, &sin], 16, pairing));
            let limit = if kind == Kind::Float { 1e-6 } else { 0.0 };
            assert!(distance(&got, &expected.to_kind(kind)) <= limit, "{kind:?} {pairing:?}");
        }
    }
}

#[test]
fn the_sum_is_part_of_the_product() {
    let inputs = [[5, 12], [5, 8], [12, 8]].map(|shape| draw(&shape, Kind::Float, shape[0] as u64));
    compare(
        &inputs,
        |x| residual_linear_by_product(&x[0], &x[1], &x[2]),
        |x| {
            residual_linear(&x[0], &x[1], LinearWeights { weight: &x[2], bias: None, packed: None })
        },
    );
}

#[test]
fn nothing_on_the_cpu_takes_them() {
    for path in FastPath::ALL {
        assert!(!takes(path, &Tensor::zeros([1], (Kind::BFloat16, Device::Cpu))));
    }
}
