//! Matches the questions of two evaluations.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::EvalError;
use crate::compare::Pair;
use crate::results::{Results, Scored};

/// The questions that both have, in the order of the first.
pub(crate) struct Paired<'a> {
    pub pairs: Vec<Pair>,
    pub before: Vec<&'a Scored>,
    pub after: Vec<&'a Scored>,
    pub unpaired: [usize; 2],
}

/// What makes two questions the same: file, images, text and truth.
type Key<'a> = (&'a str, String, &'a str, String);

fn key(scored: &Scored) -> Key<'_> {
    // A row that cannot be read has only its place.
    let image = match &scored.image {
        Value::Null if scored.question.is_empty() => scored.place.clone(),
        image => image.to_string(),
    };
    let id = scored.image_id.as_ref().map(|id| id.to_string());
    let truth = id.unwrap_or_else(|| scored.ground_truth.to_string());
    (&scored.subset, image, &scored.question, truth)
}

/// Indices of the completions to each question that counts.
fn groups(results: &Results) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, scored) in results.results.iter().enumerate() {
        if results.exclude_bad && scored.bad.is_some() {
            continue;
        }
        match groups.last_mut() {
            Some(group) if results.results[group[0]].row == scored.row => group.push(index),
            _ => groups.push(vec![index]),
        }
    }
    groups
}

impl<'a> Paired<'a> {
    /// Pairs them.
    ///
    /// # Errors
    /// Where none is in both, with what keeps them apart.
    pub fn of(before: &'a Results, after: &'a Results) -> Result<Self, EvalError> {
        let [groups_before, groups_after] = [groups(before), groups(after)];
        let mut of_key: HashMap<Key<'_>, Vec<Vec<usize>>> = HashMap::new();
        // Taken from the end below, so that equal questions pair in their order.
        for group in groups_after.iter().rev() {
            let key = key(&after.results[group[0]]);
            of_key.entry(key).or_default().push(group.clone());
        }
        let mut paired = Self {
            pairs: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            unpaired: [0, groups_after.len()],
        };
        for group in groups_before {
            let key = key(&before.results[group[0]]);
            let Some(other) = of_key.get_mut(&key).and_then(Vec::pop) else {
                paired.unpaired[0] += 1;
                continue;
            };
            paired.unpaired[1] -= 1;
            paired.before.extend(group.iter().map(|&i| &before.results[i]));
            paired.after.extend(other.iter().map(|&i| &after.results[i]));
            paired.pairs.push(Pair {
                before: group,
                after: other,
                score_before: 0.0,
                score_after: 0.0,
            });
        }
        if paired.pairs.is_empty() {
            let cause = why_unpaired(before, after);
            return Err(EvalError::Unpaired { cause });
        }
        Ok(paired)
    }
}

/// What one part of the keys keeps apart, all else being equal.
fn why_unpaired(before: &Results, after: &Results) -> String {
    let first = |results: &Results, part: usize| {
        let scored = results.results.first();
        scored.map(|scored| parts(scored)[part].clone()).unwrap_or_default()
    };
    let same_but = |left_out: usize| {
        let keys = |results: &Results| -> HashSet<Vec<String>> {
            let each = results.results.iter().map(|scored| {
                let parts = parts(scored).into_iter().enumerate();
                let kept = parts.filter(|(part, _)| *part != left_out);
                kept.map(|(_, part)| part).collect()
            });
            each.collect()
        };
        !keys(before).is_disjoint(&keys(after))
    };
    let reasons = [
        (
            "the names of their files differ",
            "questions pair by the file that they are from: give both the same name, and ask in another --output_dir",
        ),
        ("their images differ", "give images in both files the same names"),
        (
            "their true answers differ",
            "the files differ, or --solution_box_format does: ask both by the same",
        ),
    ];
    for (part, (reason, hint)) in [0, 1, 3].into_iter().zip(reasons) {
        if same_but(part) {
            let (one, other) = (first(before, part), first(after, part));
            return format!(
                "no question is in both: {reason}: `{one}` and `{other}`\nhint: {hint}"
            );
        }
    }
    "no question is in both".to_owned()
}

fn parts(scored: &Scored) -> [String; 4] {
    let (subset, image, question, truth) = key(scored);
    [subset.to_owned(), image, question.to_owned(), truth]
}
