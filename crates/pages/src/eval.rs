//! `report.html` of an evaluation: metrics, and an even choice of the completions with images, boxes and scores.

use base::console::count;
use std::path::Path;

use ::eval::{Findings, Metric, Outcome, Results, Scored, Summary};
use base::FinishReason;
use report::{Colour, Histogram, HistogramChart, KeyMetric, ScoreLine, ScoredPage, ScoredRow};
use serde_json::Value;

use crate::PageError;
use crate::completion_parts::completion_parts;
use crate::eval_boxes::{Layer, shown_images};

/// Name of the page.
pub const REPORT: &str = "report.html";

const RIGHT: &str = "right";
const WRONG: &str = "wrong";
const BAD: &str = "bad rows";
const CUT_OFF: &str = "cut off";
const UNREAD: &str = "not read";

/// Writes the page.
///
/// # Errors
/// Where it cannot be written.
pub fn write(path: &Path, outcome: &Outcome, limit: usize) -> Result<(), PageError> {
    let Outcome { results, summary, .. } = outcome;
    let names = value_names(&results.results);
    let (all, shown) = (results.results.len(), results.results.len().min(limit));
    let rows = (0..shown).map(|index| {
        let scored = &results.results[index * all / shown];
        row(scored, &names, results.apply_exif)
    });
    let note = match shown == all {
        true if all == 1 => "The one completion.".to_owned(),
        true => format!("All {all} completions."),
        false => format!("{shown} of {all} completions, chosen evenly (--html_rows)."),
    };
    let task = serde_json::to_value(results.task)?;
    let page = ScoredPage {
        title: format!("{} of {}", task.as_str().unwrap_or_default(), results.model),
        summary: format!(
            "Metrics with 95 % bootstrap intervals over {} of {}.{}",
            count(summary.num_questions as u64, "question"),
            results.subsets.join(", "),
            warnings(outcome)
        ),
        metrics: key_metrics(summary, &outcome.findings),
        charts: vec![scores(results)],
        total: "score".into(),
        rewards: std::iter::once(RIGHT.to_owned()).chain(names.iter().cloned()).collect(),
        tags: [RIGHT, WRONG, BAD, CUT_OFF, UNREAD].map(str::to_owned).to_vec(),
        legend: vec![(Colour::Green, "true".into()), (Colour::Orange, "predicted".into())],
        note,
        rows: rows.collect(),
    };
    Ok(page.write(path)?)
}

/// As further sentences; a hint is one too.
fn warnings(outcome: &Outcome) -> String {
    let warnings = outcome.warnings.iter();
    warnings
        .map(|warning| format!(" Warning: {}.", warning.text.replace("\nhint: ", ". Hint: ")))
        .collect()
}

/// Names of the metrics beside the score, in order.
fn value_names(results: &[Scored]) -> Vec<String> {
    let most = results.iter().max_by_key(|scored| scored.values.len());
    most.map(|scored| scored.values.keys().cloned().collect()).unwrap_or_default()
}

fn key_metrics(summary: &Summary, findings: &Findings) -> Vec<KeyMetric> {
    let number = |metric: &Metric, of: &str| KeyMetric {
        label: format!("{of}{}", metric.name),
        value: format!("{:.3}", metric.interval.mean),
        note: format!("{:.3} to {:.3}", metric.interval.low, metric.interval.high),
    };
    let mut shown: Vec<KeyMetric> = summary.metrics.iter().map(|m| number(m, "")).collect();
    for (name, metrics) in &summary.subsets {
        let main = metrics.first();
        shown.extend(main.map(|metric| number(metric, &format!("{name}: "))));
    }
    if summary.num_bad > 0 {
        shown.push(KeyMetric {
            label: BAD.into(),
            value: summary.num_bad.to_string(),
            note: "that cannot be asked".into(),
        });
    }
    shown.extend(counts(findings));
    shown
}

/// How many completions were cut off, and how many nobody could read, and why.
fn counts(findings: &Findings) -> Vec<KeyMetric> {
    let count = |label: &str, count: usize, note: String| {
        (count > 0).then(|| KeyMetric {
            label: label.into(),
            value: format!("{count} of {}", findings.num_completions),
            note,
        })
    };
    let reasons = findings.unread.iter();
    let reasons: Vec<String> =
        reasons.map(|(reason, count)| format!("{reason}: {count}")).collect();
    let limit = format!("at --max_new_tokens {}", findings.max_new_tokens);
    let counts = [
        count(CUT_OFF, findings.cut_off, limit),
        count(UNREAD, findings.num_unread(), reasons.join("; ")),
    ];
    counts.into_iter().flatten().collect()
}

fn scores(results: &Results) -> HistogramChart {
    let scores: Vec<f64> = results.counted().map(|scored| scored.score).collect();
    HistogramChart {
        title: "score".into(),
        note: format!("of {}", count(scores.len() as u64, "completion")),
        histogram: Histogram::of(&scores),
        colour: Colour::Purple,
    }
}

fn row(scored: &Scored, names: &[String], apply_exif: bool) -> ScoredRow {
    let layers = [
        Layer { colour: Colour::Green, name: "true", boxes: &scored.truths },
        Layer { colour: Colour::Orange, name: "", boxes: &scored.predicted },
    ];
    let (shown_images, mut image_note) = shown_images(&scored.image_paths, &layers, apply_exif);
    if let Some(cause) = &scored.bad {
        image_note = format!("bad row: {cause}");
    }
    let right = ScoreLine { score: Some(f64::from(scored.correct)), reason: scored.reason.clone() };
    let values = names.iter().map(|name| ScoreLine {
        score: scored.values.get(name).and_then(Value::as_f64),
        reason: " ".to_owned(),
    });
    ScoredRow {
        place: place(scored),
        shown_images,
        image_note,
        question: scored.question.clone(),
        completion: completion_parts(&scored.model_output),
        solution: text(&scored.ground_truth),
        total: scored.score,
        tags: tags(scored),
        scores: std::iter::once(right).chain(values).collect(),
    }
}

fn tags(scored: &Scored) -> Vec<String> {
    let mut tags = vec![if scored.correct == 1 { RIGHT } else { WRONG }.to_owned()];
    if scored.bad.is_some() {
        tags.push(BAD.to_owned());
    }
    if scored.finish_reason == Some(FinishReason::Length) {
        tags.push(CUT_OFF.to_owned());
    }
    if scored.unread.is_some() {
        tags.push(UNREAD.to_owned());
    }
    tags
}

/// `val.json:3, completion 2`
fn place(scored: &Scored) -> String {
    match scored.completion_index {
        0 => scored.place.clone(),
        index => format!("{}, completion {}", scored.place, index + 1),
    }
}

/// A truth as a reader is shown it.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
