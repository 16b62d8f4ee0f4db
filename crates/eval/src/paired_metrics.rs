//! Metrics of two evaluations, and the intervals of their differences.

use report::{Interval, paired_difference_interval, resampled};

use crate::EvalError;
use crate::compare::Difference;
use crate::paired::Paired;
use crate::results::{Results, Scored};
use crate::summary::{
    SEED, SET_DRAWS, corpora, image_metrics, is_binary, joined_mean, mean_metrics, per_question,
    questions, value_names,
};

/// SettingDifferences of metrics that every question has.
///
/// # Errors
/// A metric that has no value.
pub(crate) fn question_differences(paired: &Paired<'_>) -> Result<Vec<Difference>, EvalError> {
    let difference = |name: &str, value: &dyn Fn(&Scored) -> f64| {
        let [before, after] =
            [&paired.before, &paired.after].map(|results| per_question(results, value));
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        Ok::<_, EvalError>(Difference {
            name: name.to_owned(),
            before: mean(&before),
            after: mean(&after),
            difference: paired_difference_interval(&before, &after, SEED)?,
        })
    };
    let mut differences = vec![difference("accuracy", &|s| f64::from(s.correct))?];
    let all: Vec<&Scored> = [&paired.before[..], &paired.after[..]].concat();
    let names = value_names(&all);
    if !is_binary(&all) && !names.iter().any(|name| name == "iou") {
        differences.push(difference("score", &|scored| scored.score)?);
    }
    for name in names {
        differences.push(difference(&name, &|scored| scored.value(&name))?);
    }
    Ok(differences)
}

/// SettingDifferences of metrics of whole sets, images drawn alike for both.
///
/// # Errors
/// A metric that has no value.
pub(crate) fn set_differences(
    before: &Results,
    after: &Results,
    paired: &Paired<'_>,
) -> Result<Vec<Difference>, EvalError> {
    let names = image_metrics(before.task);
    // `[files][metrics]`: values and draws of both.
    let mut files: Vec<&str> = Vec::new();
    let mut values: Vec<[Vec<f64>; 2]> = Vec::new();
    let mut draws: Vec<Vec<[Vec<f64>; 2]>> = Vec::new();
    for (index, subset) in before.subsets.iter().enumerate() {
        let of = |results: &[&'_ Scored]| {
            let of_subset = results.iter().filter(|scored| scored.subset == *subset);
            of_subset.map(|scored| (*scored).clone()).collect::<Vec<Scored>>()
        };
        let both = [of(&paired.before), of(&paired.after)];
        if both[0].is_empty() {
            continue;
        }
        let counts = [before.num_samples, after.num_samples];
        let sets = [0, 1].map(|side| {
            // Both sides in one order of images: ranks are those of the first's.
            let refs: Vec<&Scored> = both[side].iter().collect();
            corpora(&refs, counts[side])
        });
        let images = questions(&both[0].iter().collect::<Vec<_>>()).count();
        let values_of = |times: &[usize]| {
            sets.each_ref().map(|set| {
                let means = mean_metrics(set, times);
                names
                    .iter()
                    .map(|name| means.get(name).copied().unwrap_or(f64::NAN))
                    .collect::<Vec<f64>>()
            })
        };
        let value = values_of(&vec![1; images]);
        if let Some(metric) = names.iter().zip(&value[0]).find(|(_, v)| !v.is_finite()) {
            return Err(EvalError::Undefined {
                subset: subset.clone(),
                metric: metric.0,
                cause: "no true box counts",
            });
        }
        files.push(subset);
        values.push(value);
        draws.push(resampled(images, SET_DRAWS, SEED + index as u64, values_of));
    }
    let joined = |of_file: &dyn Fn(usize) -> f64| {
        let values: Vec<f64> = (0..files.len()).map(of_file).collect();
        joined_mean(before.task, &files, &values)
    };
    let num_pairs = paired.pairs.len();
    names
        .iter()
        .enumerate()
        .map(|(metric, name)| {
            let [first, second] = [0, 1].map(|side| joined(&|file| values[file][side][metric]));
            let differences = (0..SET_DRAWS).map(|draw| {
                let [first, second] =
                    [0, 1].map(|side| joined(&|file| draws[file][draw][side][metric]));
                second - first
            });
            // A draw without any true box says nothing.
            let differences = differences.filter(|difference| difference.is_finite()).collect();
            Ok(Difference {
                name: (*name).to_owned(),
                before: first,
                after: second,
                difference: Interval::of_draws(second - first, differences, num_pairs)?,
            })
        })
        .collect()
}
