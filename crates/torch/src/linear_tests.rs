//! Which way linear layers take, and that all ways agree.

use tch::Kind;

use super::*;
use crate::fused::tests::{distance, draw, tolerance};

struct Layers {
    weights: [Tensor; 2],
    bias: Tensor,
    copies: [PackedCopy; 2],
}

impl Layers {
    fn new(kind: Kind) -> Self {
        Layers {
            weights: [1, 2].map(|key| draw(&[24, 24], kind, key) / 5.0),
            bias: draw(&[24], kind, 3),
            copies: Default::default(),
        }
    }

    fn parts(&self, pack: bool) -> [LinearWeights<'_>; 2] {
        let part = |i: usize| LinearWeights {
            weight: &self.weights[i],
            bias: (i == 1).then_some(&self.bias),
            packed: pack.then_some(&self.copies[i]),
        };
        [part(0), part(1)]
    }

    fn num_packed(&self) -> usize {
        self.copies.iter().filter(|copy| copy.0.get().is_some()).count()
    }
}

/// The operations over `x`, one after another.
fn all(x: &Tensor, layers: &Layers, pack: bool) -> Vec<Tensor> {
    let w = draw(&[24], x.kind(), 4);
    let [a, b] = linears(x, layers.parts(pack));
    let [c, d] = normed_linears(x, (&w, 1e-6), layers.parts(pack));
    let e = gated_linear(x, &a, Activation::Silu, layers.parts(pack)[1]);
    let f = activated_linear(x, Activation::GeluTanh, layers.parts(pack)[1]);
    vec![a, b, c, d, e, f]
}

#[test]
fn few_rows_take_packed_weights_where_there_is_a_place_for_them() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        for rows in [1, MOST_PACKED_ROWS, MOST_PACKED_ROWS + 1] {
            let (x, layers) = (draw(&[rows, 24], kind, 5), Layers::new(kind));
            let plain = all(&x, &layers, false);
            assert_eq!(layers.num_packed(), 0, "without a place nothing is packed");
            let got = all(&x, &layers, true);
            let expects_copies = rows <= MOST_PACKED_ROWS && kind != Kind::Double;
            assert_eq!(layers.num_packed(), if expects_copies { 2 } else { 0 }, "{kind:?} {rows}");
            for (got, plain) in got.iter().zip(&plain) {
                let distance = distance(got, plain);
                assert!(distance < tolerance(kind) * 10.0, "{kind:?} {rows}: {distance}");
            }
        }
    }
}

/// Packed or not, weights are found by the place that the caller names, not by where they lie in memory.
#[test]
fn a_new_place_holds_the_weight_of_now() {
    let layers = Layers::new(Kind::Float);
    let x = draw(&[2, 24], Kind::Float, 5);
    let [before, _] = linears(&x, layers.parts(true));
    let _ = layers.weights[0].shallow_clone().g_mul_scalar_(2.0);
    let [kept, _] = linears(&x, layers.parts(true));
    assert_eq!(kept, before, "the copy is of the weight as it was");
    let copies = [PackedCopy::default(), PackedCopy::default()];
    let renewed = Layers { copies, ..layers };
    let [after, _] = linears(&x, renewed.parts(true));
    assert!(distance(&after, &(before * 2.0)) < 1e-6);
}
