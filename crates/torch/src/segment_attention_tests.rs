//! Outputs and gradients against softmax over a dense mask in f64.

use proptest::prelude::*;
use tch::{Kind, Tensor, no_grad};

use super::*;
use crate::fused::tests::draw;

type Segments = [(usize, Option<usize>)];

/// A layout with its sizes.
#[derive(Debug)]
struct Case<'a> {
    segments: &'a Segments,
    causal: bool,
    heads: [i64; 2],
    head_dim: i64,
    kind: Kind,
}

impl Case<'_> {
    fn tokens(&self) -> usize {
        self.segments.iter().map(|s| s.0).sum()
    }

    /// q, k, v of the case as leaves; q and v are parts of wider tensors, as fused projections give them.
    fn leaves(&self) -> [Tensor; 3] {
        let tokens = self.tokens() as i64;
        let [heads, kv_heads] = self.heads;
        let q = draw(&[tokens, 2, heads, self.head_dim], self.kind, 1);
        let k = draw(&[tokens, kv_heads, self.head_dim], self.kind, 2);
        let v = draw(&[kv_heads, tokens, self.head_dim], self.kind, 3);
        [q, k, v].map(|x| x.set_requires_grad(true))
    }

    /// Output, and the gradients of the leaves, in the type of `attend`'s result.
    fn run(&self, kind: Kind, attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) -> Vec<Tensor> {
        let leaves = self.leaves().map(|x| x.detach().to_kind(kind).copy().set_requires_grad(true));
        let [q, k, v] = &leaves;
        let output = attend(&q.select(1, 1), k, &v.transpose(0, 1));
        assert_eq!(output.kind(), kind);
        let upstream = draw(&output.size(), self.kind, 4).to_kind(kind);
        (&output * upstream).sum(Kind::Double).backward();
        let mut all = vec![output.detach()];
        all.extend(leaves.iter().map(Tensor::grad));
        all
    }

    fn fused(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let table = SegmentTable::new(self.segments).unwrap();
        segment_attention([q, k, v], &table, self.causal).unwrap()
    }

    /// Which tokens attend to which, `[T, T]`.
    fn visible(&self) -> Tensor {
        let total = self.tokens();
        let mut seen = vec![false; total * total];
        let mut starts = Vec::new();
        let mut start = 0;
        for &(len, prefix) in self.segments {
            starts.push(start);
            for i in 0..len {
                let row = (start + i) * total;
                if let Some(p) = prefix {
                    seen[row + starts[p]..row + starts[p] + self.segments[p].0].fill(true);
                }
                let upto = if self.causal { i + 1 } else { len };
                seen[row + start..row + start + upto].fill(true);
            }
            start += len;
        }
        Tensor::from_slice(&seen).view([total as i64, total as i64])
    }

    fn dense(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let repeats = self.heads[0] / self.heads[1];
        let expand = |x: &Tensor| x.repeat_interleave_self_int(repeats, 1, None).transpose(0, 1);
        let scores = q.transpose(0, 1).matmul(&expand(k).transpose(1, 2));
        (scores / (self.head_dim as f64).sqrt())
            .masked_fill(&self.visible().logical_not(), f64::NEG_INFINITY)
            .softmax(-1, Kind::Double)
            .matmul(&expand(v))
            .transpose(0, 1)
    }

    /// The largest difference from f64, relative to the largest number; exact equality of repeats.
    fn check(&self) -> Result<(), TestCaseError> {
        let got = self.run(self.kind, |q, k, v| self.fused(q, k, v));
        let expected = self.run(Kind::Double, |q, k, v| self.dense(q, k, v));
        let tolerance = if self.kind == Kind::Float { 4e-6 } else { 1.5e-2 };
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let got = got.to_kind(Kind::Double);
            prop_assert_eq!(got.size(), expected.size());
            prop_assert_eq!(got.isfinite().all().int64_value(&[]), 1);
            let scale = expected.abs().max().double_value(&[]).max(1.0);
            let distance = (got - expected).abs().max().double_value(&[]) / scale;
            prop_assert!(distance < tolerance, "result {i}: {distance} of {self:?}");
        }
        let [q, k, v] = self.leaves();
        let without = no_grad(|| self.fused(&q.select(1, 1), &k, &v.transpose(0, 1)));
        prop_assert!(!without.requires_grad());
        prop_assert!(without == got[0], "another output without gradient");
        Ok(())
    }
}

const PROMPTS: &Segments = &[
    (37, None),
    (5, Some(0)),
    (1, Some(0)),
    (19, Some(0)),
    (16, None),
    (1, None),
    (33, Some(4)),
    (2, Some(5)),
];

#[test]
fn segment_attention_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for head_dim in [1, 8, 20, 32, 33, 64, 80, 128] {
            for (heads, causal) in [([4, 2], true), ([3, 3], false), ([7, 1], true)] {
                let case = Case { segments: PROMPTS, causal, heads, head_dim, kind };
                case.check().unwrap();
            }
        }
    }
}

/// Several blocks of keys and tasks of rows, whose borders fall within tiles.
#[test]
fn long_segments_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (segments, causal) in [
            (&[(300, None), (150, Some(0)), (290, Some(0))][..], true),
            (&[(300, None), (64, None), (129, None)], false),
            (&[(530, None)], true),
        ] {
            let case = Case { segments, causal, heads: [6, 2], head_dim: 24, kind };
            case.check().unwrap();
        }
    }
}

proptest! {
    // Nothing is written down: with the instruction set of no processor all cases fail.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn any_segments_as_by_libtorch(
        groups in prop::collection::vec((1usize..50, prop::collection::vec(1usize..40, 0..4)), 1..4),
        late: bool,
        causal: bool,
        heads in prop::sample::select(vec![[1, 1], [4, 2], [6, 2], [5, 1]]),
        head_dim in prop::sample::select(vec![8, 20, 32, 64, 80]),
        kind in prop::sample::select(vec![Kind::Float, Kind::BFloat16]),
    ) {
        let mut segments = Vec::new();
        let mut prompts = Vec::new();
        for (prompt, completions) in &groups {
            prompts.push(segments.len());
            segments.push((*prompt, None));
            if !late {
                let prompt = segments.len() - 1;
                segments.extend(completions.iter().map(|&len| (len, Some(prompt))));
            }
        }
        for turn in 0..if late { 4 } else { 0 } {
            for (&prompt, (_, completions)) in prompts.iter().zip(&groups) {
                segments.extend(completions.get(turn).map(|&len| (len, Some(prompt))));
            }
        }
        Case { segments: &segments, causal, heads, head_dim, kind }.check()?;
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let segments = [(150, None), (70, Some(0)), (65, Some(0)), (90, None)];
    for kind in [Kind::Float, Kind::BFloat16] {
        let case = Case { segments: &segments, causal: true, heads: [8, 2], head_dim: 64, kind };
        let of = |threads| {
            tch::set_num_threads(threads);
            case.run(kind, |q, k, v| case.fused(q, k, v))
        };
        let before = tch::get_num_threads();
        let (one, two) = (of(1), of(2));
        tch::set_num_threads(before);
        for (one, two) in one.iter().zip(&two) {
            assert_eq!(one, two);
        }
    }
}

#[test]
fn a_nan_stays_where_it_is_seen() {
    // The second token of a completion: it and later ones attend to the NaN, other segments do not.
    let table = SegmentTable::new(&[(20, None), (4, Some(0)), (3, Some(0))]).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = draw(&[27, 2, 16], kind, 5);
        let broken = x.copy();
        let _ = broken.get(21).get(1).fill_(f64::NAN);
        let rows = |x: Tensor| {
            let nan = x.isnan().any_dim(2, false).any_dim(1, false);
            (0..27).filter(|&i| nan.int64_value(&[i]) == 1).collect::<Vec<_>>()
        };
        let with_key = segment_attention([&x, &broken, &x], &table, true).unwrap();
        assert_eq!(rows(with_key), [21, 22, 23]);
        let with_query = segment_attention([&broken, &x, &x], &table, true).unwrap();
        assert_eq!(rows(with_query), [21]);
        let leaf = x.copy().set_requires_grad(true);
        segment_attention([&leaf, &broken, &x], &table, true).unwrap().sum(kind).backward();
        // Token 20 has a weight of 0 for the key behind it, which a NaN does not respect.
        let rows = rows(leaf.grad());
        assert!(rows.ends_with(&[21, 22, 23]) && rows[0] >= 20, "{rows:?}");
    }
}

/// Scores far apart: no weight overflows, and what is far below the largest counts nothing.
#[test]
fn large_scores_are_softened() {
    let table = SegmentTable::new(&[(2, None)]).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let q = Tensor::from_slice(&[1f32, 1.0]).view([2, 1, 1]);
        let k = Tensor::from_slice(&[-3e4f32, 3e4]).view([2, 1, 1]);
        let v = Tensor::from_slice(&[5f32, 7.0]).view([2, 1, 1]);
        let [q, k, v] = [q, k, v].map(|x| x.to_kind(kind));
        let got = segment_attention([&q, &k, &v], &table, true).unwrap();
        let got = Vec::<f32>::try_from(got.view(-1).to_kind(Kind::Float)).unwrap();
        assert_eq!(got, [5.0, 7.0]);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    for broken in [
        &[][..],
        &[(0, None)],
        &[(2, Some(0))],
        &[(2, None), (1, Some(2))],
        &[(2, None), (1, Some(0)), (1, Some(1))],
        &[(usize::MAX, None)],
        &[(i64::MAX as usize, None), (1, None)],
    ] {
        assert!(SegmentTable::new(broken).is_err(), "{broken:?}");
    }
    let table = SegmentTable::new(&[(3, None), (2, Some(0))]).unwrap();
    let of = |shape: &[i64]| draw(shape, Kind::Float, 1);
    let [q, k] = [of(&[5, 4, 8]), of(&[5, 2, 8])];
    let refused = |q: &Tensor, k: &Tensor, v: &Tensor| segment_attention([q, k, v], &table, true);
    assert!(refused(&q, &k, &k).is_ok());
    for broken in [
        of(&[4, 2, 8]),
        of(&[5, 3, 8]),
        of(&[5, 0, 8]),
        of(&[5, 2, 7]),
        of(&[5, 16]),
        k.to_kind(Kind::Double),
        k.to_kind(Kind::BFloat16),
    ] {
        assert!(refused(&q, &broken, &broken).is_err(), "{broken:?}");
        assert!(refused(&q, &k, &broken).is_err(), "{broken:?}");
        assert!(refused(&broken, &q, &q).is_err(), "{broken:?}");
    }
    let said = refused(&of(&[6, 4, 8]), &k, &k).unwrap_err().to_string();
    assert!(said.contains("[6, 4, 8]") && said.contains("5 tokens"), "{said}");
}
