//! Packed attention equals softmax over a dense mask, gradients too.

use models::{Layout, PackedAttention, Visibility};
use proptest::prelude::*;
use tch::{Kind, Tensor};

const HEAD_DIM: i64 = 8;

/// Numbers that look random and are the same in every run: `[tokens, heads, HEAD_DIM]`, f64.
fn noise(seed: i64, tokens: usize, heads: i64) -> Tensor {
    let shape = [tokens as i64, heads, HEAD_DIM];
    let count = shape.iter().product::<i64>();
    let steps = Tensor::arange(count, (Kind::Double, torch::device_of_tests()));
    ((steps * 12.9898 + seed as f64 * 78.233).sin() * 43_758.545).frac().view(shape)
}

/// Who sees whom, `[T, T]`.
fn visible(layout: &Layout, visibility: &Visibility) -> Tensor {
    let total = layout.num_tokens();
    let mut seen = vec![false; total * total];
    for segment in &layout.segments {
        let tokens = |s: &models::Segment| s.start..s.start + s.len;
        let prefix = segment.prefix.map(|p| layout.segments[p]);
        let keys: Vec<usize> = prefix.iter().flat_map(tokens).chain(tokens(segment)).collect();
        for (i, token) in tokens(segment).enumerate() {
            let place = keys.len() - segment.len + i;
            for (at, &key) in keys.iter().enumerate() {
                let near = at <= place && visibility.window.is_none_or(|w| place - at < w);
                let whole = visibility.runs.iter().any(|r| r.contains(&token) && r.contains(&key));
                seen[token * total + key] = !visibility.causal || near || whole;
            }
        }
    }
    let seen = Tensor::from_slice(&seen).view([total as i64, total as i64]);
    seen.to_device(torch::device_of_tests())
}

fn naive([q, k, v]: [&Tensor; 3], seen: &Tensor, scale: Option<f64>) -> Tensor {
    let repeat = q.size()[1] / k.size()[1];
    // [heads, T, HEAD_DIM]
    let expand = |x: &Tensor| x.repeat_interleave_self_int(repeat, 1, None).transpose(0, 1);
    let (q, k, v) = (q.transpose(0, 1), expand(k), expand(v));
    let scale = scale.unwrap_or(1.0 / (HEAD_DIM as f64).sqrt());
    let scores = q.matmul(&k.transpose(1, 2)) * scale;
    let hidden = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
    hidden.softmax(-1, Kind::Double).matmul(&v).transpose(0, 1)
}

/// Output and the gradients of q, k and v, numbers of `kind`, under a loss that weighs every number differently.
fn with_gradients(
    layout: &Layout,
    heads: [i64; 2],
    kind: Kind,
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor,
) -> [Tensor; 4] {
    let tokens = layout.num_tokens();
    let leaf = |seed, heads| {
        let numbers = noise(seed, tokens, heads).to_kind(kind).copy();
        numbers.set_requires_grad(true)
    };
    let (q, k, v) = (leaf(1, heads[0]), leaf(2, heads[1]), leaf(3, heads[1]));
    let out = attend(&q, &k, &v);
    (&out * noise(4, tokens, heads[0])).sum(Kind::Double).backward();
    [out.detach(), q.grad(), k.grad(), v.grad()]
}

fn check(
    layout: &Layout,
    visibility: impl Into<Visibility>,
    heads: [i64; 2],
) -> Result<(), TestCaseError> {
    let (visibility, device) = (visibility.into(), torch::device_of_tests());
    let seen = visible(layout, &visibility);
    let double = with_gradients(layout, heads, Kind::Double, |q, k, v| {
        naive([q, k, v], &seen, visibility.scale)
    });
    let in_blocks = |kind| PackedAttention::in_blocks(layout, visibility.clone(), kind, device);
    let float = PackedAttention::new(layout, visibility.clone(), Kind::Float, device);
    let mut all = vec![
        (Kind::Double, 1e-12, in_blocks(Kind::Double)),
        (Kind::Float, 1e-5, float),
        (Kind::Float, 1e-5, in_blocks(Kind::Float)),
    ];
    if visibility.runs.is_empty() {
        let attention = PackedAttention::without_padding(layout, visibility.clone(), device);
        all.push((Kind::Double, 1e-12, attention));
    }
    for (kind, tolerance, attention) in all {
        let packed = with_gradients(layout, heads, kind, |q, k, v| attention.forward(q, k, v));
        compare(layout, &packed, &double, tolerance)?;
    }
    Ok(())
}

fn compare(
    layout: &Layout,
    packed: &[Tensor],
    dense: &[Tensor],
    tolerance: f64,
) -> Result<(), TestCaseError> {
    for (what, (got, expected)) in ["output", "dq", "dk", "dv"].iter().zip(packed.iter().zip(dense))
    {
        prop_assert_eq!(got.size(), expected.size());
        let difference = f64::try_from((got - expected).abs().max()).unwrap();
        prop_assert!(difference < tolerance, "{}: {} in {:?}", what, difference, layout);
    }
    Ok(())
}

/// Prompts with the lengths of their completions, in the order of training (each prompt before its
/// completions) or of `late` completions after all prompts, one of each group in turn.
fn layout(groups: &[(usize, Vec<usize>)], late: bool) -> Layout {
    let mut layout = Layout::default();
    if !late {
        for (prompt, completions) in groups {
            let prompt = layout.push(*prompt, None);
            for &completion in completions {
                layout.push(completion, Some(prompt));
            }
        }
        return layout;
    }
    let prompts: Vec<usize> = groups.iter().map(|(len, _)| layout.push(*len, None)).collect();
    for turn in 0..4 {
        for (&prompt, (_, completions)) in prompts.iter().zip(groups) {
            if let Some(&completion) = completions.get(turn) {
                layout.push(completion, Some(prompt));
            }
        }
    }
    layout
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn completions_over_prompts(
        groups in prop::collection::vec((1usize..7, prop::collection::vec(1usize..7, 0..5)), 1..5),
        late: bool,
        grouped: bool,
    ) {
        let heads = if grouped { [4, 2] } else { [3, 3] };
        check(&layout(&groups, late), true, heads)?;
    }

    #[test]
    fn the_last_tokens_and_whole_images(
        groups in prop::collection::vec((4usize..9, prop::collection::vec(1usize..7, 0..4)), 1..4),
        late: bool,
        window in prop::option::of(1usize..9),
        has_runs: bool,
        scale in prop::option::of(0.1f64..0.5),
    ) {
        let layout = layout(&groups, late);
        let long = layout.segments.iter().filter(|s| has_runs && s.len > 3);
        let runs = long.map(|s| s.start + 1..s.start + s.len - 1).collect();
        check(&layout, Visibility { causal: true, window, runs, scale }, [4, 2])?;
    }

    #[test]
    fn windows_that_see_all_of_themselves(lens in prop::collection::vec(1usize..7, 1..6)) {
        check(&Layout::independent(lens), false, [2, 2])?;
    }
}

/// The shapes that take the paths without gathering: blocks in order, one group of equal completions.
#[test]
fn regular_layouts() {
    for groups in [
        vec![(5, vec![4, 4, 4])],
        vec![(5, vec![4, 4, 2])],
        vec![(3, vec![]), (3, vec![])],
        vec![(1, vec![1])],
        vec![(2, vec![3, 3]), (2, vec![3, 3])],
    ] {
        for late in [false, true] {
            check(&layout(&groups, late), true, [4, 2]).unwrap();
        }
    }
    check(&Layout::independent([4, 4, 4]), false, [4, 4]).unwrap();
}

#[test]
#[should_panic(expected = "a prefix has no prefix itself")]
fn a_completion_is_no_prompt() {
    let mut layout = Layout::default();
    let prompt = layout.push(2, None);
    let completion = layout.push(2, Some(prompt));
    layout.push(2, Some(completion));
}
