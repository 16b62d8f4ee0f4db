//! Metrics of an evaluation with 95 % bootstrap intervals over questions, of all files and of each.

use config::EvalTask;
use report::{Interval, mean_interval, resampled};
use serde_json::{Map, Value, json};

use crate::EvalError;
use crate::detection::{Corpus, MetricValues};
use crate::results::{Results, Scored};

/// Seed of the bootstrap: intervals of the same completions are the same.
pub(crate) const SEED: u64 = 42;
/// Draws for metrics of a whole set of images.
pub(crate) const SET_DRAWS: usize = 1_000;

/// A metric with its interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its value.
    pub interval: Interval,
}

/// What came of an evaluation. The first metric is the one that the task is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Over all files.
    pub metrics: Vec<Metric>,
    /// Of each file, where there are several.
    pub subsets: Vec<(String, Vec<Metric>)>,
    /// Questions that count.
    pub num_questions: usize,
    /// Bad rows.
    pub num_bad: usize,
}

/// Whether the metrics of a task are those of whole sets of images.
pub fn is_detection(task: EvalTask) -> bool {
    matches!(task, EvalTask::Ovd | EvalTask::OvdEval)
}

impl Summary {
    /// Sums up.
    ///
    /// # Errors
    /// No rows that count, or a metric that has no value.
    pub fn of(results: &Results) -> Result<Self, EvalError> {
        let parts: Vec<(String, Vec<&Scored>)> = results
            .subsets
            .iter()
            .map(|name| {
                let of_subset = results.counted().filter(|scored| scored.subset == *name);
                (name.clone(), of_subset.collect())
            })
            .collect();
        let (metrics, subsets) = if is_detection(results.task) {
            of_images(results, &parts)?
        } else {
            let all: Vec<&Scored> = results.counted().collect();
            let metrics = of_questions(&all, results.num_samples)?;
            let of_part = |(name, part): &(String, Vec<&Scored>)| {
                Ok((name.clone(), of_questions(part, results.num_samples)?))
            };
            let subsets: Result<Vec<_>, EvalError> = parts.iter().map(of_part).collect();
            (metrics, subsets?)
        };
        let questions = results.counted().filter(|scored| scored.completion_index == 0);
        Ok(Self {
            metrics,
            subsets: if subsets.len() > 1 { subsets } else { Vec::new() },
            num_questions: questions.count(),
            num_bad: results.bad().count(),
        })
    }

    /// The metrics as points of curves: all of all files, the main one of each file, and the bad rows.
    pub fn points(&self) -> Vec<(String, f64)> {
        let point = |of: &str, metric: &Metric| {
            let name = format!("{of}{}", metric.name);
            (name, metric.interval.mean)
        };
        let all = self.metrics.iter().map(|metric| point("", metric));
        let subsets = self.subsets.iter().filter_map(|(name, metrics)| {
            let main = metrics.first()?;
            Some(point(&format!("{name}/"), main))
        });
        let bad = ("bad_rows".to_owned(), self.num_bad as f64);
        all.chain(subsets).chain([bad]).collect()
    }

    /// The metrics as JSON.
    pub fn to_json(&self) -> Value {
        let subsets = self.subsets.iter();
        let subsets = subsets.map(|(name, metrics)| (name.clone(), metrics_json(metrics)));
        json!({
            "metrics": metrics_json(&self.metrics),
            "subsets": Value::Object(subsets.collect()),
            "num_questions": self.num_questions,
            "num_bad": self.num_bad,
        })
    }
}

fn metrics_json(metrics: &[Metric]) -> Value {
    let each = metrics.iter().map(|metric| {
        let Interval { mean, low, high, .. } = metric.interval;
        let json = json!({"mean": mean, "low": low, "high": high});
        (metric.name.clone(), json)
    });
    Value::Object(each.collect::<Map<_, _>>())
}

/// One value a question, several completions to it taken together.
pub(crate) fn per_question(results: &[&Scored], value: impl Fn(&Scored) -> f64) -> Vec<f64> {
    let mean = |completions: &[&Scored]| {
        completions.iter().map(|scored| value(scored)).sum::<f64>() / completions.len() as f64
    };
    questions(results).map(mean).collect()
}

/// The completions to each question, which stand side by side.
pub(crate) fn questions<'a, 'b>(
    results: &'a [&'b Scored],
) -> impl Iterator<Item = &'a [&'b Scored]> {
    results.chunk_by(|a, b| a.row == b.row)
}

/// Names of the metrics of completions, the main one first.
pub(crate) fn value_names(results: &[&Scored]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for scored in results {
        for name in scored.values.keys() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names
}

/// Whether all scores are 0 or 1, so that the share of correct completions says it all.
pub(crate) fn is_binary(results: &[&Scored]) -> bool {
    let is_whole = |scored: &&Scored| scored.score == f64::from(scored.correct);
    results.iter().all(is_whole)
}

fn of_questions(results: &[&Scored], num_samples: usize) -> Result<Vec<Metric>, EvalError> {
    if results.is_empty() {
        return Err(EvalError::NoRows);
    }
    let metric = |name: &str, values: Vec<f64>| -> Result<Metric, EvalError> {
        Ok(Metric { name: name.to_owned(), interval: mean_interval(&values, SEED)? })
    };
    let correct = |scored: &Scored| f64::from(scored.correct);
    let mut metrics = vec![metric("accuracy", per_question(results, correct))?];
    let names = value_names(results);
    if !is_binary(results) && !names.iter().any(|name| name == "iou") {
        metrics.push(metric("score", per_question(results, |scored| scored.score))?);
    }
    for k in sample_counts(num_samples) {
        let values = questions(results).map(|completions| {
            let right = completions.iter().filter(|scored| scored.correct == 1).count();
            pass_at(k, completions.len(), right)
        });
        metrics.push(metric(&format!("pass@{k}"), values.collect())?);
    }
    for name in names {
        let values = per_question(results, |scored| scored.value(&name));
        metrics.push(metric(&name, values)?);
    }
    Ok(metrics)
}

/// 2, 4, 8, ... and the number itself; none for 1, where it is the accuracy.
fn sample_counts(num_samples: usize) -> Vec<usize> {
    let mut counts: Vec<usize> =
        std::iter::successors(Some(2), |k| Some(k * 2)).take_while(|k| *k < num_samples).collect();
    if num_samples > 1 {
        counts.push(num_samples);
    }
    counts
}

/// Probability that one of `k` completions, chosen from `all` of which `right` are right, is right:
/// 1 - C(all - right, k) / C(all, k) (arXiv 2107.03374, equation 1).
pub fn pass_at(k: usize, all: usize, right: usize) -> f64 {
    let wrong = all - right;
    if wrong < k {
        return 1.0;
    }
    let none_right: f64 = (0..k).map(|i| (wrong - i) as f64 / (all - i) as f64).product();
    1.0 - none_right
}

type Parts = (Vec<Metric>, Vec<(String, Vec<Metric>)>);

/// The metrics of sets of images: of each file, and their mean.
fn of_images(results: &Results, parts: &[(String, Vec<&Scored>)]) -> Result<Parts, EvalError> {
    let names = image_metrics(results.task);
    let mut of_parts = Vec::with_capacity(parts.len());
    for (index, (name, part)) in parts.iter().enumerate() {
        let corpora = corpora(part, results.num_samples);
        let images = corpora.first().map_or(0, Corpus::num_images);
        if images == 0 {
            return Err(EvalError::NoRows);
        }
        let value = mean_metrics(&corpora, &vec![1; images]);
        let seed = SEED + index as u64;
        let draws = resampled(images, SET_DRAWS, seed, |times| mean_metrics(&corpora, times));
        for metric in names {
            if !value.contains_key(metric) {
                return Err(EvalError::Undefined {
                    subset: name.clone(),
                    metric,
                    cause: "no true box counts",
                });
            }
        }
        of_parts.push(FileDraws { name: name.clone(), value, draws, images });
    }
    let mut subsets = Vec::with_capacity(parts.len());
    for part in &of_parts {
        let metrics = names
            .iter()
            .map(|name| Ok(Metric { name: (*name).to_owned(), interval: part.interval(name)? }));
        let mut metrics = metrics.collect::<Result<Vec<_>, EvalError>>()?;
        metrics.extend(counts_of(part, parts)?);
        subsets.push((part.name.clone(), metrics));
    }
    let overall = match subsets.as_slice() {
        [(_, metrics)] => metrics.clone(),
        _ => overall(results.task, names, &of_parts)?,
    };
    Ok((overall, subsets))
}

/// Means over images of what each completion holds.
fn counts_of(part: &FileDraws, parts: &[(String, Vec<&Scored>)]) -> Result<Vec<Metric>, EvalError> {
    let results = parts.iter().find(|(name, _)| *name == part.name);
    let results = results.map_or(&[][..], |(_, results)| results);
    let names = ["boxes", "other_labels", "unreadable"].into_iter();
    names
        .map(|name| {
            let values = per_question(results, |scored| scored.value(name));
            Ok(Metric { name: name.to_owned(), interval: mean_interval(&values, SEED)? })
        })
        .collect()
}

/// The metrics that a detection task reports, the main one first.
pub(crate) fn image_metrics(task: EvalTask) -> &'static [&'static str] {
    match task {
        EvalTask::OvdEval => &["nms_ap", "nms_ap50", "ap", "ap50", "precision", "recall"],
        _ => &["ap", "ap50", "precision", "recall"],
    }
}

/// A set of images for each of the completions to a question.
pub(crate) fn corpora(results: &[&Scored], num_samples: usize) -> Vec<Corpus> {
    (0..num_samples)
        .map(|index| {
            let of_index = results.iter().filter(|scored| scored.completion_index == index);
            Corpus::new(&of_index.copied().collect::<Vec<_>>())
        })
        .collect()
}

/// Means over several completions to the same questions.
pub(crate) fn mean_metrics(corpora: &[Corpus], times: &[usize]) -> MetricValues {
    let mut mean = MetricValues::new();
    for corpus in corpora {
        for (name, value) in corpus.metrics(times) {
            *mean.entry(name).or_default() += value / corpora.len() as f64;
        }
    }
    mean
}

/// A file with its draws.
struct FileDraws {
    name: String,
    value: MetricValues,
    draws: Vec<MetricValues>,
    images: usize,
}

impl FileDraws {
    fn interval(&self, name: &str) -> Result<Interval, EvalError> {
        // A draw without any true box says nothing.
        let draws = self.draws.iter().filter_map(|draw| draw.get(name).copied());
        let value = self.value.get(name).copied().unwrap_or(f64::NAN);
        Ok(Interval::of_draws(value, draws.collect(), self.images)?)
    }
}

fn overall(
    task: EvalTask,
    names: &[&'static str],
    parts: &[FileDraws],
) -> Result<Vec<Metric>, EvalError> {
    let files: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let images = parts.iter().map(|part| part.images).sum();
    names
        .iter()
        .map(|name| {
            let joined = |of: &dyn Fn(&FileDraws) -> Option<f64>| -> Option<f64> {
                let values: Option<Vec<f64>> = parts.iter().map(of).collect();
                Some(joined_mean(task, &files, &values?))
            };
            let value = joined(&|part| part.value.get(name).copied());
            let draws = (0..SET_DRAWS)
                .filter_map(|draw| joined(&|part| part.draws[draw].get(name).copied()));
            let value = value.unwrap_or(f64::NAN);
            Ok(Metric {
                name: (*name).to_owned(),
                interval: Interval::of_draws(value, draws.collect(), images)?,
            })
        })
        .collect()
}

/// The groups whose means OVDEval's overall metric is the mean of.
const OVDEVAL_GROUPS: [&[&str]; 5] = [
    &["celebrity", "logo", "landmark"],
    &["color", "material"],
    &["position"],
    &["relationship"],
    &["negation"],
];

/// The mean over files; of OVDEval's eight files the mean of the means of their groups.
pub(crate) fn joined_mean(task: EvalTask, files: &[&str], values: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let of_file = |file: &&str| {
        let index = files.iter().position(|name| name == file)?;
        Some(values[index])
    };
    let group = |group: &&[&str]| {
        let values: Option<Vec<f64>> = group.iter().map(&of_file).collect();
        values.map(|values| mean(&values))
    };
    let groups: Option<Vec<f64>> = OVDEVAL_GROUPS.iter().map(group).collect();
    let num_grouped: usize = OVDEVAL_GROUPS.iter().map(|group| group.len()).sum();
    match groups {
        Some(groups) if task == EvalTask::OvdEval && files.len() == num_grouped => mean(&groups),
        _ => mean(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_by_hand() {
        // Of 4 completions 2 right: no right one among 2 is C(2,2)/C(4,2) = 1/6.
        assert!((pass_at(2, 4, 2) - 5.0 / 6.0).abs() < 1e-12);
        assert_eq!(pass_at(1, 4, 1), 0.25);
        assert_eq!((pass_at(4, 4, 0), pass_at(4, 4, 1)), (0.0, 1.0));
        assert_eq!(sample_counts(1), Vec::<usize>::new());
        assert_eq!(sample_counts(2), [2]);
        assert_eq!(sample_counts(6), [2, 4, 6]);
        assert_eq!(sample_counts(8), [2, 4, 8]);
    }

    #[test]
    fn ovdeval_groups_its_files() {
        let files = [
            "negation",
            "celebrity",
            "logo",
            "landmark",
            "color",
            "material",
            "position",
            "relationship",
        ];
        // The row of the paper for 3B with RL.
        let values = [37.7, 55.0, 34.6, 47.9, 4.5, 9.7, 42.9, 21.5];
        let overall = joined_mean(EvalTask::OvdEval, &files, &values);
        assert!((overall - 31.01).abs() < 0.01, "{overall}");
        let plain = joined_mean(EvalTask::Ovd, &files, &values);
        assert!((plain - values.iter().sum::<f64>() / 8.0).abs() < 1e-12);
        assert_eq!(joined_mean(EvalTask::OvdEval, &files[..2], &[1.0, 3.0]), 2.0);
    }
}
