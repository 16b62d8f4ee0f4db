//! What is called takes the kernel where there is one, and each kernel gives what its reference gives.

use super::*;
use crate::activations::{activate, activate_reference, gated, gated_reference};
use crate::fused::tests::{ACTIVATIONS, distance, draw, tolerance};
use crate::norms::{rms_norm, rms_norm_reference};

const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Double];

/// In f32 and bf16 `called` is bit for bit `by_kernel`, and close to `reference`; in f64, of which there is no kernel, it is `reference`.
fn check(
    kind: Kind,
    called: &Tensor,
    by_kernel: impl FnOnce() -> Result<Tensor, crate::TorchError>,
    reference: &Tensor,
) {
    assert_eq!(called.kind(), reference.kind());
    match by_kernel() {
        Ok(by_kernel) => {
            assert_ne!(kind, Kind::Double);
            assert_eq!(*called, by_kernel, "{kind:?}");
            let distance = distance(called, reference);
            assert!(distance < tolerance(kind), "{kind:?}: {distance}");
        }
        Err(_) => {
            assert_eq!(kind, Kind::Double);
            assert_eq!(called, reference);
        }
    }
}

#[test]
fn operations_take_their_kernel() {
    for kind in KINDS {
        let (x, w) = (draw(&[9, 24], kind, 1), draw(&[24], kind, 2));
        let up = draw(&[9, 24], kind, 3);
        check(
            kind,
            &rms_norm(&x, (&w, 1e-6)),
            || fused::rms_norm(&x, (&w, 1e-6).into()),
            &rms_norm_reference(&x, (&w, 1e-6)),
        );
        for f in ACTIVATIONS {
            check(
                kind,
                &gated(&x, &up, f),
                || fused::gated(&x, &up, f),
                &gated_reference(&x, &up, f),
            );
            check(kind, &activate(&x, f), || fused::activate(&x, f), &activate_reference(&x, f));
        }
        let heads = draw(&[9, 3, 8], kind, 4);
        for table in [kind, Kind::Float] {
            let half = draw(&[9, 4], Kind::Float, 5);
            let angles = Tensor::cat(&[&half, &half], 1);
            let (cos, sin) = (angles.cos().to_kind(table), angles.sin().to_kind(table));
            for pairing in [Pairing::Halves, Pairing::Adjacent] {
                let tables = [&cos, &sin];
                check(
                    kind,
                    &rotate(&heads, tables, pairing),
                    || fused::rotate(&heads, tables, pairing),
                    &rotate_reference(&heads, tables, pairing),
                );
            }
        }
    }
}

#[test]
fn scores_take_their_kernel() {
    for kind in KINDS {
        let logits = draw(&[5, 40], kind, 6) * 4.0;
        let targets = Tensor::from_slice(&[0i64, 39, 7, 7, 20]);
        for temperature in [1.0, 0.7] {
            let called = token_scores(&logits, &targets, temperature);
            let reference = token_scores_reference(&logits, &targets, temperature);
            let kernel = fused::token_scores(&logits, &targets, 1.0 / temperature);
            assert_eq!(kernel.is_ok(), kind != Kind::Double);
            let expected = kernel.as_ref().unwrap_or(&reference);
            for i in 0..2 {
                assert_eq!(called[i], expected[i], "{kind:?}");
                assert_eq!(called[i].kind(), Kind::Float);
                assert!(distance(&called[i], &reference[i]) < 1e-5, "{kind:?}");
            }
        }
    }
}

/// Gradients by either way, where the reference computes in the type of its inputs.
#[test]
fn gradients_are_those_of_the_reference() {
    let leaves = || [1, 2, 3].map(|key| draw(&[6, 24], Kind::Float, key).set_requires_grad(true));
    let gradients = |f: &dyn Fn(&[Tensor; 3]) -> Tensor| {
        let leaves = leaves();
        (f(&leaves) * draw(&[6, 24], Kind::Float, 9)).sum(Kind::Float).backward();
        leaves.map(|leaf| leaf.grad())
    };
    let called = gradients(&|[x, gate, up]| {
        rms_norm(x, (&up.get(0), 1e-6)) + gated(gate, up, ACTIVATIONS[0])
    });
    let expected = gradients(&|[x, gate, up]| {
        rms_norm_reference(x, (&up.get(0), 1e-6)) + gated_reference(gate, up, ACTIVATIONS[0])
    });
    for (called, expected) in called.iter().zip(&expected) {
        assert!(distance(called, expected) < 1e-5);
    }
}

#[test]
fn attention_kernels_by_type_and_device() {
    let of = |kind, device| AttentionKernel::of(kind, device);
    for kind in [Kind::Float, Kind::BFloat16] {
        assert_eq!(of(kind, Device::Cpu), AttentionKernel::Segments);
        assert!(has_cpu_kernel(&draw(&[1], kind, 1)));
    }
    assert_eq!(of(Kind::Double, Device::Cpu), AttentionKernel::Padded);
    assert_eq!(of(Kind::BFloat16, Device::Cuda(0)), AttentionKernel::VariableLength);
    assert_eq!(of(Kind::Float, Device::Cuda(0)), AttentionKernel::Padded);
}
