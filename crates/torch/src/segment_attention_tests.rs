//! Outputs and gradients against softmax over a dense mask in f64.

use proptest::prelude::*;
use tch::{Kind, Tensor, no_grad};

use super::*;
use crate::fused::tests::draw;

type Segments = [SegmentLens];

/// Which tokens are seen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Causal,
    All,
    /// [`Rule::Causal`] by intervals.
    CausalIntervals,
    Window(usize),
    /// Every other run of 23 tokens sees itself whole, with a window or without.
    Runs(Option<usize>),
    /// Intervals without an order.
    Any,
}

impl Rule {
    /// `None` where there are no intervals.
    fn intervals(self, segments: &Segments) -> Option<Vec<Range<usize>>> {
        match self {
            Rule::Causal | Rule::All => None,
            Rule::CausalIntervals => Some(causal_intervals(segments, None, &[])),
            Rule::Window(window) => Some(causal_intervals(segments, Some(window), &[])),
            Rule::Runs(window) => Some(causal_intervals(segments, window, &runs(segments))),
            Rule::Any => Some(any_intervals(segments)),
        }
    }
}

fn runs(segments: &Segments) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    for &(len, _) in segments {
        let end = start + len;
        runs.extend((start + 3..end).step_by(46).map(|from| from..(from + 23).min(end)));
        start = end;
    }
    runs
}

fn any_intervals(segments: &Segments) -> Vec<Range<usize>> {
    let mut number = 1u64;
    let mut below = |n: usize| {
        number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (number >> 33) as usize % n
    };
    let mut intervals = Vec::new();
    for &(len, prefix) in segments {
        let end = len + prefix.map_or(0, |p| segments[p].0);
        for _ in 0..len {
            let from = below(end);
            intervals.push(from..from + 1 + below(end - from));
        }
    }
    intervals
}

/// A layout with its sizes.
#[derive(Debug)]
struct Case<'a> {
    segments: &'a Segments,
    rule: Rule,
    heads: [i64; 2],
    head_dim: i64,
    scale: Option<f64>,
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
        let table = match self.rule.intervals(self.segments) {
            Some(intervals) => SegmentTable::with_intervals(self.segments, &intervals),
            None => SegmentTable::new(self.segments, self.rule == Rule::Causal),
        };
        segment_attention([q, k, v], &table.unwrap(), self.scale).unwrap()
    }

    /// Which tokens attend to which, `[T, T]`.
    fn visible(&self) -> Tensor {
        let total = self.tokens();
        let mut seen = vec![false; total * total];
        let intervals = self.rule.intervals(self.segments);
        let runs = runs(self.segments);
        let mut starts = Vec::new();
        let mut start = 0;
        for &(len, prefix) in self.segments {
            starts.push(start);
            let before = prefix.map_or(0, |p| self.segments[p].0);
            for i in 0..len {
                for place in 0..before + len {
                    let key = match prefix {
                        Some(p) if place < before => starts[p] + place,
                        _ => start + place - before,
                    };
                    let (own, distance) = (before + i, (before + i).wrapping_sub(place));
                    let same_run =
                        || runs.iter().any(|r| r.contains(&(start + i)) && r.contains(&key));
                    let sees = match self.rule {
                        Rule::All => true,
                        Rule::Causal | Rule::CausalIntervals => place <= own,
                        Rule::Window(window) => distance < window,
                        Rule::Runs(None) => place <= own || same_run(),
                        Rule::Runs(Some(window)) => distance < window || same_run(),
                        Rule::Any => {
                            intervals.as_ref().is_some_and(|all| all[start + i].contains(&place))
                        }
                    };
                    seen[(start + i) * total + key] = sees;
                }
            }
            start += len;
        }
        Tensor::from_slice(&seen).view([total as i64, total as i64])
    }

    fn dense(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let repeats = self.heads[0] / self.heads[1];
        let expand = |x: &Tensor| x.repeat_interleave_self_int(repeats, 1, None).transpose(0, 1);
        let scores = q.transpose(0, 1).matmul(&expand(k).transpose(1, 2));
        (scores * self.scale.unwrap_or(1.0 / (self.head_dim as f64).sqrt()))
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
        for head_dim in [1, 8, 20, 32, 33, 64, 80, 96, 128, 192, 256] {
            for (heads, rule, scale) in [
                ([4, 2], Rule::Causal, None),
                ([3, 3], Rule::All, None),
                ([7, 1], Rule::Causal, Some(0.04)),
                ([2, 2], Rule::Window(9), None),
                ([8, 4], Rule::Runs(None), None),
            ] {
                let case = Case { segments: PROMPTS, rule, heads, head_dim, scale, kind };
                case.check().unwrap();
            }
        }
    }
}

/// Several blocks of keys and tasks of rows, whose borders fall within tiles.
#[test]
fn long_segments_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (segments, rule) in [
            (&[(300, None), (150, Some(0)), (290, Some(0))][..], Rule::Causal),
            (&[(300, None), (64, None), (129, None)], Rule::All),
            (&[(530, None)], Rule::Causal),
            (&[(530, None)], Rule::Window(100)),
            (&[(300, None), (150, Some(0)), (290, Some(0))], Rule::Window(140)),
            (&[(300, None), (150, Some(0)), (290, Some(0))], Rule::Runs(None)),
            (&[(300, None), (150, Some(0)), (290, Some(0))], Rule::Runs(Some(10))),
            (&[(300, None), (150, Some(0)), (290, Some(0))], Rule::Any),
        ] {
            let case = Case { segments, rule, heads: [6, 2], head_dim: 24, scale: None, kind };
            case.check().unwrap();
        }
    }
}

#[test]
fn causal_intervals_are_causal_bit_for_bit() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let segments = &[(300, None), (150, Some(0)), (290, Some(0))];
        let [plain, intervals, wide] = [Rule::Causal, Rule::CausalIntervals, Rule::Window(600)]
            .map(|rule| {
                let case = Case { segments, rule, heads: [7, 1], head_dim: 40, scale: None, kind };
                case.run(kind, |q, k, v| case.fused(q, k, v))
            });
        assert_eq!(plain, intervals, "{kind:?}");
        assert_eq!(plain, wide, "{kind:?}");
    }
}

#[test]
fn intervals_of_windows_and_runs() {
    let segments = [(4, None), (3, Some(0)), (2, None)];
    let plain = causal_intervals(&segments, None, &[]);
    assert_eq!(plain, [0..1, 0..2, 0..3, 0..4, 0..5, 0..6, 0..7, 0..1, 0..2]);
    let window = causal_intervals(&segments, Some(2), &[]);
    assert_eq!(window, [0..1, 0..2, 1..3, 2..4, 3..5, 4..6, 5..7, 0..1, 0..2]);
    let runs = causal_intervals(&segments, Some(2), &[1..4, 5..7]);
    assert_eq!(runs, [0..1, 0..4, 1..4, 1..4, 3..5, 4..7, 5..7, 0..1, 0..2]);
    assert!(SegmentTable::with_intervals(&segments, &plain).is_ok());
    let refused = |change: &dyn Fn(&mut Vec<Range<usize>>)| {
        let mut intervals = plain.clone();
        change(&mut intervals);
        SegmentTable::with_intervals(&segments, &intervals).unwrap_err().to_string()
    };
    assert!(refused(&|all| all.truncate(8)).contains("8 intervals"));
    assert!(refused(&|all| all[4] = 2..8).contains("2..8 for token 4"));
    assert!(refused(&|all| all[4] = 3..3).contains("3..3 for token 4"));
    assert!(refused(&|all| all.push(0..1)).contains("10 intervals"));
}

proptest! {
    // Nothing is written down: with the instruction set of no processor all cases fail.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn any_segments_as_by_libtorch(
        groups in prop::collection::vec((1usize..50, prop::collection::vec(1usize..40, 0..4)), 1..4),
        late: bool,
        rule in prop::sample::select(vec![
            Rule::Causal,
            Rule::All,
            Rule::Window(1),
            Rule::Window(20),
            Rule::Runs(None),
            Rule::Runs(Some(30)),
            Rule::Any,
        ]),
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
        Case { segments: &segments, rule, heads, head_dim, scale: None, kind }.check()?;
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let segments = [(150, None), (70, Some(0)), (65, Some(0)), (90, None)];
    for kind in [Kind::Float, Kind::BFloat16] {
        for rule in [Rule::Causal, Rule::Runs(Some(60))] {
            let case =
                Case { segments: &segments, rule, heads: [8, 2], head_dim: 64, scale: None, kind };
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
}

#[test]
fn a_nan_stays_where_it_is_seen() {
    // The second token of a completion: it and later ones attend to the NaN, other segments do not.
    let table = SegmentTable::new(&[(20, None), (4, Some(0)), (3, Some(0))], true).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = draw(&[27, 2, 16], kind, 5);
        let broken = x.copy();
        let _ = broken.get(21).get(1).fill_(f64::NAN);
        let rows = |x: Tensor| {
            let nan = x.isnan().any_dim(2, false).any_dim(1, false);
            (0..27).filter(|&i| nan.int64_value(&[i]) == 1).collect::<Vec<_>>()
        };
        let with_key = segment_attention([&x, &broken, &x], &table, None).unwrap();
        assert_eq!(rows(with_key), [21, 22, 23]);
        let with_query = segment_attention([&broken, &x, &x], &table, None).unwrap();
        assert_eq!(rows(with_query), [21]);
        let leaf = x.copy().set_requires_grad(true);
        segment_attention([&leaf, &broken, &x], &table, None).unwrap().sum(kind).backward();
        // Token 20 has a weight of 0 for the key behind it, which a NaN does not respect.
        let rows = rows(leaf.grad());
        assert!(rows.ends_with(&[21, 22, 23]) && rows[0] >= 20, "{rows:?}");
    }
}

/// Scores far apart: no weight overflows, and what is far below the largest counts nothing.
#[test]
fn large_scores_are_softened() {
    let table = SegmentTable::new(&[(2, None)], true).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let q = Tensor::from_slice(&[1f32, 1.0]).view([2, 1, 1]);
        let k = Tensor::from_slice(&[-3e4f32, 3e4]).view([2, 1, 1]);
        let v = Tensor::from_slice(&[5f32, 7.0]).view([2, 1, 1]);
        let [q, k, v] = [q, k, v].map(|x| x.to_kind(kind));
        let got = segment_attention([&q, &k, &v], &table, None).unwrap();
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
        assert!(SegmentTable::new(broken, true).is_err(), "{broken:?}");
    }
    let table = SegmentTable::new(&[(3, None), (2, Some(0))], true).unwrap();
    let of = |shape: &[i64]| draw(shape, Kind::Float, 1);
    let [q, k] = [of(&[5, 4, 8]), of(&[5, 2, 8])];
    let refused = |q: &Tensor, k: &Tensor, v: &Tensor| segment_attention([q, k, v], &table, None);
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
