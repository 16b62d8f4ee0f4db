//! Recomputation changes memory, not gradients.

use std::cell::Cell;

use models::Checkpointing;
use tch::{Kind, Tensor};

const NAMES: [&str; 4] = ["embedding", "first", "second", "head"];

fn weight(seed: f64, rows: i64, columns: i64) -> Tensor {
    let steps = Tensor::arange(rows * columns, (Kind::Float, torch::device_of_tests()));
    ((steps * 0.71 + seed).sin() * 0.5).view([rows, columns])
}

/// Embedding, two layers (the second uses the first's weight too) and a loss with a head of its own;
/// returns the loss and the gradients of the weights named in `trained`.
fn run(recompute: bool, trained: [bool; 4], runs: &[Cell<usize>; 3]) -> (f64, Vec<Option<Tensor>>) {
    let leaves: Vec<Tensor> = [(0.1, 7, 5), (0.2, 5, 5), (0.3, 5, 5), (0.4, 5, 3)]
        .iter()
        .zip(trained)
        .map(|(&(seed, rows, columns), trained)| {
            weight(seed, rows, columns).set_requires_grad(trained)
        })
        .collect();
    let count = |stage: usize| runs[stage].set(runs[stage].get() + 1);
    let ids = Tensor::from_slice(&[3i64, 1, 3, 6]).to_device(torch::device_of_tests());
    let mut checkpointing = Checkpointing::new(recompute);
    let x = checkpointing.run(&ids, |ids| {
        count(0);
        Tensor::embedding(&leaves[0], ids, -1, false, false)
    });
    let x = checkpointing.run(&x, |x| {
        count(1);
        x + x.matmul(&leaves[1]).tanh()
    });
    let x = checkpointing.run(&x, |x| {
        count(2);
        x * x.matmul(&leaves[2]).sigmoid() + x.matmul(&leaves[1])
    });
    let loss = checkpointing.backward(&x, |x| {
        let loss = x.matmul(&leaves[3]).square().mean(Kind::Float);
        let value = f64::try_from(loss.detach()).unwrap();
        (loss, value)
    });
    let gradients = leaves.iter().map(|leaf| leaf.grad().defined().then(|| leaf.grad())).collect();
    (loss, gradients)
}

#[test]
fn gradients_are_those_of_one_graph_whatever_is_frozen() {
    for choice in 1..16 {
        let trained = [0, 1, 2, 3].map(|i| choice >> i & 1 == 1);
        let counts = || [0, 0, 0].map(Cell::new);
        let (plain_loss, plain) = run(false, trained, &counts());
        let (loss, recomputed) = run(true, trained, &counts());
        assert_eq!(loss, plain_loss);
        for (i, (a, b)) in plain.iter().zip(&recomputed).enumerate() {
            assert_eq!(a.is_some(), trained[i], "{}", NAMES[i]);
            assert_eq!(b.is_some(), trained[i], "{}", NAMES[i]);
            if let (Some(a), Some(b)) = (a, b) {
                let difference = f64::try_from((a - b).abs().max()).unwrap();
                assert!(difference < 1e-6, "{}: {difference}", NAMES[i]);
                assert!(f64::try_from(a.abs().max()).unwrap() > 1e-6);
            }
        }
    }
}

#[test]
fn frozen_stages_at_the_beginning_run_once() {
    for (trained, expected) in [
        ([true; 4], [2, 2, 2]),
        ([false, true, true, true], [1, 2, 2]),
        ([false, false, true, true], [1, 1, 2]),
        ([false, false, false, true], [1, 1, 1]),
        ([true, false, false, false], [2, 2, 2]),
    ] {
        let counts = [0, 0, 0].map(Cell::new);
        run(true, trained, &counts);
        assert_eq!(counts.map(Cell::into_inner), expected, "{trained:?}");
    }
}

/// A chain whose second stage takes a feature that the third and the fourth add, as deepstack does.
fn with_features(recompute: bool, trained: [bool; 3]) -> Vec<Option<Tensor>> {
    let leaves: Vec<Tensor> = [(0.1, 5, 5), (0.2, 5, 5), (0.3, 5, 5)]
        .iter()
        .zip(trained)
        .map(|(&(seed, rows, columns), trained)| {
            weight(seed, rows, columns).set_requires_grad(trained)
        })
        .collect();
    let mut checkpointing = Checkpointing::new(recompute);
    let x = checkpointing.run(&weight(0.5, 4, 5), |x| x.matmul(&leaves[0]).tanh());
    let state = checkpointing.run_all(&[x], |state| {
        let x = state[0].matmul(&leaves[1]);
        vec![&x + 1.0, x.tanh(), x.sigmoid()]
    });
    let state = checkpointing.run_all(&state, |state| {
        let x = state[0].matmul(&leaves[2]).tanh() + &state[1];
        vec![x, state[2].shallow_clone()]
    });
    let state = checkpointing.run_all(&state, |state| vec![state[0].tanh() * &state[1]]);
    checkpointing.backward(&state[0], |x| (x.square().sum(Kind::Float), ()));
    leaves.iter().map(|leaf| leaf.grad().defined().then(|| leaf.grad())).collect()
}

#[test]
fn features_that_later_stages_add_have_gradients() {
    for choice in 1..8 {
        let trained = [0, 1, 2].map(|i| choice >> i & 1 == 1);
        let (plain, recomputed) = (with_features(false, trained), with_features(true, trained));
        for (i, (a, b)) in plain.iter().zip(&recomputed).enumerate() {
            assert_eq!((a.is_some(), b.is_some()), (trained[i], trained[i]), "{trained:?} {i}");
            if let (Some(a), Some(b)) = (a, b) {
                let difference = f64::try_from((a - b).abs().max()).unwrap();
                assert!(difference < 1e-6, "{trained:?} {i}: {difference}");
                assert!(f64::try_from(a.abs().max()).unwrap() > 1e-6);
            }
        }
    }
}
