//! Which completions go through the model together. Numbers only: no tensors, no model.

use std::ops::Range;

/// Tokens of a prompt and of each of its completions.
#[derive(Clone, Debug)]
pub(crate) struct GroupLens {
    pub prompt: usize,
    pub completions: Vec<usize>,
}

/// Completions of one group behind one copy of its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the group.
    pub group: usize,
    pub completions: Range<usize>,
}

/// What bounds a micro-batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Completions; a part of more stands alone.
    pub completions: usize,
    /// Tokens; a prompt with a single completion may have more.
    pub tokens: Option<usize>,
    /// Whether completions share their prompt, or have one each.
    pub share_prompt: bool,
}

/// All completions in order, cut into micro-batches. A group is cut only where it has more tokens than
/// a micro-batch may have: each part computes the prompt again.
pub(crate) fn micro_batches(groups: &[GroupLens], limits: Limits) -> Vec<Vec<Part>> {
    let mut batches: Vec<Vec<Part>> = Vec::new();
    let (mut completions, mut tokens) = (0, 0);
    for (group, lens) in groups.iter().enumerate() {
        for range in parts(lens, limits) {
            let part_tokens = lens.prompt + lens.completions[range.clone()].iter().sum::<usize>();
            completions += range.len();
            tokens += part_tokens;
            let is_full =
                completions > limits.completions || limits.tokens.is_some_and(|max| tokens > max);
            let part = Part { group, completions: range };
            match batches.last_mut() {
                Some(batch) if !is_full => batch.push(part),
                _ => {
                    (completions, tokens) = (part.completions.len(), part_tokens);
                    batches.push(vec![part]);
                }
            }
        }
    }
    batches
}

/// Tokens of a micro-batch.
pub(crate) fn num_tokens(batch: &[GroupLens]) -> usize {
    let of = |group: &GroupLens| group.prompt + group.completions.iter().sum::<usize>();
    batch.iter().map(of).sum()
}

/// Tokens of the larger part where a micro-batch is cut in two as evenly as can be, its prompt being
/// in both where a group is cut; `None` where there is a single completion.
pub(crate) fn half(batch: &[GroupLens]) -> Option<usize> {
    let all: Vec<(usize, usize)> = batch
        .iter()
        .enumerate()
        .flat_map(|(group, lens)| lens.completions.iter().map(move |&len| (group, len)))
        .collect();
    let tokens = |part: &[(usize, usize)]| -> usize {
        let groups = part.chunk_by(|a, b| a.0 == b.0);
        let prompts: usize = groups.map(|group| batch[group[0].0].prompt).sum();
        prompts + part.iter().map(|(_, len)| len).sum::<usize>()
    };
    let larger = |at: usize| tokens(&all[..at]).max(tokens(&all[at..]));
    (1..all.len()).map(larger).min()
}

/// The whole group where it fits; else as few parts as fit, filled one after another.
fn parts(lens: &GroupLens, limits: Limits) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, &len) in lens.completions.iter().enumerate() {
        tokens += len;
        let fits = limits.share_prompt && limits.tokens.is_none_or(|max| tokens <= max);
        match parts.last_mut() {
            Some(part) if fits => part.end = index + 1,
            _ => {
                tokens = lens.prompt + len;
                parts.push(index..index + 1);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(prompt: usize, completions: &[usize]) -> GroupLens {
        GroupLens { prompt, completions: completions.to_vec() }
    }

    /// `(group, first, end)` of each part, by micro-batch.
    fn cut(groups: &[GroupLens], limits: Limits) -> Vec<Vec<(usize, usize, usize)>> {
        let tuple = |p: &Part| (p.group, p.completions.start, p.completions.end);
        micro_batches(groups, limits)
            .iter()
            .map(|batch| batch.iter().map(tuple).collect())
            .collect()
    }

    fn limits(completions: usize, tokens: Option<usize>, share_prompt: bool) -> Limits {
        Limits { completions, tokens, share_prompt }
    }

    #[test]
    fn whole_groups_fill_a_micro_batch() {
        let groups = [group(10, &[1; 4]), group(20, &[2; 4]), group(30, &[3; 4])];
        let one = vec![(0, 0, 4), (1, 0, 4)];
        assert_eq!(cut(&groups, limits(8, None, true)), [one.clone(), vec![(2, 0, 4)]]);
        // 14 + 28 tokens.
        assert_eq!(cut(&groups, limits(16, Some(42), true)), [one, vec![(2, 0, 4)]]);
        // A bound on completions cuts no group.
        assert_eq!(cut(&groups, limits(3, None, true)).len(), 3);
        assert!(cut(&[], limits(3, None, true)).is_empty());
    }

    #[test]
    fn a_group_over_the_budget_is_cut_and_its_rest_shares_a_micro_batch() {
        let groups = [group(10, &[4, 4, 5, 1]), group(5, &[3])];
        // 10 + 4 + 4, then 10 + 5 + 1; 8 more do not fit.
        assert_eq!(
            cut(&groups, limits(8, Some(18), true)),
            [vec![(0, 0, 2)], vec![(0, 2, 4)], vec![(1, 0, 1)]]
        );
        // 10 + 13, then 10 + 1 and 5 + 3.
        assert_eq!(
            cut(&groups, limits(8, Some(23), true)),
            [vec![(0, 0, 3)], vec![(0, 3, 4), (1, 0, 1)]]
        );
        // 24 tokens: whole.
        assert_eq!(cut(&groups, limits(8, Some(24), true))[0], [(0, 0, 4)]);
    }

    #[test]
    fn a_single_completion_is_never_cut() {
        let groups = [group(10, &[4, 5])];
        let single = [vec![(0, 0, 1)], vec![(0, 1, 2)]];
        assert_eq!(cut(&groups, limits(8, Some(1), true)), single);
    }

    #[test]
    fn a_micro_batch_is_halved_as_evenly_as_can_be() {
        // 100 + 20 + 20 in both halves.
        assert_eq!(half(&[group(100, &[20; 4])]), Some(140));
        assert_eq!(num_tokens(&[group(100, &[20; 4])]), 180);
        // Between the groups.
        assert_eq!(half(&[group(10, &[4, 4]), group(5, &[3, 3])]), Some(18));
        // A large first completion stands alone.
        assert_eq!(half(&[group(9, &[50]), group(5, &[3, 3])]), Some(59));
        assert_eq!(half(&[group(10, &[7])]), None);
    }

    proptest::proptest! {
        /// Halving again and again ends at single completions, and loses none of them.
        #[test]
        fn halves_shrink_to_single_completions(
            groups in proptest::collection::vec(
                (1usize..50, proptest::collection::vec(1usize..20, 1..6)), 1..4)
        ) {
            let groups: Vec<GroupLens> =
                groups.iter().map(|(prompt, lens)| group(*prompt, lens)).collect();
            let (mut batch, mut rounds) = (groups.clone(), 0);
            while let Some(tokens) = half(&batch) {
                proptest::prop_assert!(tokens < num_tokens(&batch));
                let parts = micro_batches(&batch, limits(64, Some(tokens), true));
                proptest::prop_assert!(parts.len() > 1);
                let count = |list: &[GroupLens]| list.iter().map(|g| g.completions.len()).sum::<usize>();
                let cut: usize = parts.iter().flatten().map(|part| part.completions.len()).sum();
                proptest::prop_assert_eq!(cut, count(&batch));
                let first = parts[0].iter().map(|part| {
                    let whole = &batch[part.group];
                    group(whole.prompt, &whole.completions[part.completions.clone()])
                });
                batch = first.collect();
                rounds += 1;
            }
            proptest::prop_assert!(rounds < 64);
        }
    }

    #[test]
    fn without_sharing_each_completion_has_its_prompt() {
        let groups = [group(10, &[4, 5]), group(1, &[1])];
        assert_eq!(
            cut(&groups, limits(2, None, false)),
            [vec![(0, 0, 1), (0, 1, 2)], vec![(1, 0, 1)]]
        );
        // 14 + 15 tokens.
        assert_eq!(cut(&groups, limits(8, Some(28), false)).len(), 2);
        assert_eq!(cut(&groups, limits(8, Some(31), false)).len(), 1);
    }
}
