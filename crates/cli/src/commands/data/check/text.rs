//! What was found, as text for a terminal.

use base::console::count;
use std::fmt::Write;

use super::Told;
use data::check::{Answers, CheckReport, FindingCount, Level, TextCount};
use pages::data_check::{AREAS, NUMBERS, PLACES, different, images};

/// The text, whole lines.
pub fn text(report: &CheckReport, told: &Told) -> String {
    let mut text = String::new();
    for file in &report.files {
        let kind = if file.is_test { " (test)" } else { "" };
        let _ = writeln!(
            text,
            "{}{kind}: {}, {} without errors",
            file.path,
            count(file.rows, "row"),
            file.good
        );
    }
    let _ = writeln!(text, "{}", images(report));
    if let Some(tokens) = report.prompt_tokens {
        let _ = writeln!(
            text,
            "prompts: {} to {} tokens, half up to {}, 95 % up to {}",
            tokens.min, tokens.max, tokens.median, tokens.p95
        );
    }
    if !told.tried.is_empty() {
        let _ = writeln!(text, "true answers are scored by: {}", told.tried.join(", "));
    }
    let has_boxes = !report.answers.boxes_per_row.is_empty();
    if let Some(boxes) = told.boxes.as_ref().filter(|_| has_boxes) {
        let _ = writeln!(text, "{boxes}");
    }
    answers(&mut text, &report.answers);
    for (level, heading) in [(Level::Error, "errors"), (Level::Warning, "warnings")] {
        findings(&mut text, heading, report.findings.iter().filter(|f| f.level == level));
    }
    let stopped = if report.stopped { ", stopped before the end" } else { "" };
    let _ = writeln!(
        text,
        "\n{}, {}{stopped}",
        count(report.errors, "error"),
        count(report.warnings, "warning")
    );
    text
}

fn answers(text: &mut String, answers: &Answers) {
    if answers.rows == 0 {
        return;
    }
    let least = if answers.distinct_is_least { "at least " } else { "" };
    let _ = writeln!(
        text,
        "answers: {least}{} in {}{}",
        different(answers.distinct as u64),
        count(answers.rows, "row"),
        frequent(&answers.top, answers.rows)
    );
    if !answers.boxes_per_row.is_empty() {
        let _ = writeln!(text, "boxes in a row: {}", bins(&NUMBERS, &answers.boxes_per_row));
        let _ = writeln!(text, "share of the image: {}", bins(&AREAS, &answers.box_areas));
        let _ = writeln!(text, "centres: {}", bins(&PLACES, &answers.box_places));
    }
    if answers.distinct_labels > 0 {
        let boxes: u64 = answers.box_areas.iter().sum();
        let _ = writeln!(
            text,
            "labels: {} different ones{}",
            answers.distinct_labels,
            frequent(&answers.labels, boxes)
        );
    }
}

/// `; most frequent: `cup` 12 (40 %), ...`, of what stands there twice or more.
fn frequent(top: &[TextCount], of: u64) -> String {
    let top: Vec<String> = top
        .iter()
        .filter(|each| each.count > 1)
        .map(|each| {
            let share = 100.0 * each.count as f64 / of.max(1) as f64;
            format!("`{}` {} ({share:.0} %)", each.text, each.count)
        })
        .collect();
    match top.is_empty() {
        true => String::new(),
        false => format!("; most frequent: {}", top.join(", ")),
    }
}

fn bins(names: &[&str], counts: &[u64]) -> String {
    let filled = names.iter().zip(counts).filter(|(_, count)| **count > 0);
    let each: Vec<String> = filled.map(|(name, count)| format!("{name}: {count}")).collect();
    match each.is_empty() {
        true => "none".to_owned(),
        false => each.join(", "),
    }
}

fn findings<'a>(
    text: &mut String,
    heading: &str,
    findings: impl Iterator<Item = &'a FindingCount>,
) {
    let mut findings = findings.peekable();
    if findings.peek().is_some() {
        let _ = writeln!(text, "\n{heading}");
    }
    for finding in findings {
        let _ = writeln!(
            text,
            "  {}: {} - expected {}",
            finding.kind.name(),
            finding.count,
            finding.expected
        );
        for example in &finding.examples {
            let said = example.text.replace('\n', "\n      ");
            let _ = writeln!(text, "    {}: {said}", example.place);
        }
        let further = finding.count - finding.examples.len() as u64;
        if further > 0 {
            let _ = writeln!(text, "    ... and {further} more");
        }
    }
}
