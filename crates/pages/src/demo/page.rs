//! `report.html` of the demo.

use base::console::count;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ::eval::{RecCompletion, RecSummary};
use report::{
    AnnotatedImage, Body, CaptionLine, Colour, EncodedImage, Interval, IntervalChart, IntervalRow,
    KeyMetric, LabelledBox, Report, Section, Table, read_metrics, training_charts,
};

use super::results::{Results, Scored};
use crate::PageError;

const NUM_IMAGES: usize = 12;
const NONE: &str = "\u{2013}";

/// What the page shows beside the results.
pub struct Demo<'a> {
    /// The folder of the demo.
    pub out: &'a Path,
    /// Where the images of the rows lie.
    pub images: PathBuf,
    /// Steps of GRPO.
    pub grpo_steps: usize,
    /// The settings, as text.
    pub settings: String,
    /// Seconds by stage.
    pub secs: &'a BTreeMap<String, f64>,
    /// Threads that it ran on.
    pub num_threads: u64,
}

impl Demo<'_> {
    fn total_secs(&self) -> f64 {
        self.secs.values().sum()
    }
}

/// Writes the report beside the runs.
///
/// # Errors
/// Metrics or images that cannot be read, a page that cannot be written.
pub fn write(demo: &Demo<'_>, results: &Results) -> Result<(), PageError> {
    let rows = read_metrics(&demo.out.join("grpo").join("metrics.jsonl"))?;
    let cold_start = read_metrics(&demo.out.join("sft").join("metrics.jsonl"))?;
    let loss = training_charts(&cold_start, None)
        .into_iter()
        .filter(|chart| chart.title == "Loss")
        .collect();
    let section = |heading: &str, note: &str, body| Section {
        heading: heading.into(),
        note: note.into(),
        body,
    };
    let report = Report {
        title: "A tiny Qwen2.5-VL learns grounding by GRPO".into(),
        summary: format!(
            "{} scenes the model never saw; seed {}. The start is a cold start by SFT that knows the task but \
             keeps the demanded form only now and then; the end is {} steps of GRPO later.",
            results.gain.num_values, results.seed, demo.grpo_steps
        ),
        metrics: key_metrics(demo, results),
        sections: vec![
            section(
                "Held-out score",
                "As VLM-R1 evaluates: IoU of the box found in the completion, 0 where none is found; greedy.",
                Body::Intervals(vec![scores(results)]),
            ),
            section(
                "In numbers",
                "Means with 95 % bootstrap intervals over questions. IoU anywhere: of the first box in whatever \
                 form, what the model knows.",
                Body::Table(table(results)),
            ),
            section(
                "What GRPO changed",
                "End less start, question by question.",
                Body::Table(gains(results)),
            ),
            section(
                "GRPO",
                "One point a step; rewards on training scenes.",
                Body::Charts(training_charts(&rows, Some("IoU reward"))),
            ),
            section("Cold start", "", Body::Charts(loss)),
            section(
                "Held-out scenes",
                "The first twelve; greedy completions, numbers on the right are IoUs.",
                Body::Images(shown_images(demo, results)?),
            ),
            section("Time", "", Body::Table(times(demo, &rows))),
            section("Settings", "", Body::Code(demo.settings.clone())),
        ],
    };
    Ok(report.write(&demo.out.join("report.html"))?)
}

fn key_metrics(demo: &Demo<'_>, results: &Results) -> Vec<KeyMetric> {
    let (start, end) = (&results.start().greedy_summary, &results.end().greedy_summary);
    let metric = |label: &str, value, note| KeyMetric { label: label.into(), value, note };
    let percent = |interval: &Interval| format!("{:.0} %", 100.0 * interval.mean);
    let well_formed = results.gain_well_formed_sampled.as_ref();
    vec![
        metric(
            "Held-out IoU, greedy",
            format!("{:.2} \u{2192} {:.2}", start.iou.mean, end.iou.mean),
            format!("{}, paired", signed(&results.gain)),
        ),
        metric(
            "Well-formed completions",
            format!("{} \u{2192} {}", percent(&start.well_formed), percent(&end.well_formed)),
            "greedy".into(),
        ),
        metric(
            "Sharper boxes",
            well_formed.map_or(NONE.into(), |gain| format!("{:+.3}", gain.mean)),
            well_formed.map_or(String::new(), |gain| {
                format!("IoU among well-formed sampled completions, {}", signed(gain))
            }),
        ),
        metric("Time", minutes(demo.total_secs()), count(demo.num_threads, "thread")),
    ]
}

fn scores(results: &Results) -> IntervalChart {
    let colours = [Colour::Orange, Colour::Blue, Colour::Purple, Colour::Teal];
    let row = |label: &str, interval, colour| IntervalRow { label: label.into(), interval, colour };
    let mut rows = vec![
        row("best constant box", results.constant, Colour::Grey),
        row("start, other images", results.shuffled[0].iou, Colour::Grey),
        row("end, other images", results.shuffled[1].iou, Colour::Grey),
    ];
    rows.extend(
        results
            .models
            .iter()
            .zip(colours)
            .map(|(m, colour)| row(m.name, m.greedy_summary.iou, colour)),
    );
    IntervalChart {
        title: "Held-out IoU".into(),
        x_label: format!(
            "mean over {} questions, 95 % bootstrap interval",
            results.gain.num_values
        ),
        rows,
    }
}

fn table(results: &Results) -> Table {
    let header = [
        "model",
        "completions",
        "IoU",
        "IoU > 0.5",
        "well-formed",
        "IoU of well-formed",
        "IoU anywhere",
    ];
    let row = |name: &str, completions: &str, summary: &RecSummary| {
        vec![
            name.to_owned(),
            completions.to_owned(),
            summary.iou.to_string(),
            summary.accuracy.to_string(),
            summary.well_formed.to_string(),
            summary.iou_well_formed.map_or(NONE.to_owned(), |interval| interval.to_string()),
            summary.iou_anywhere.to_string(),
        ]
    };
    let mut rows: Vec<Vec<String>> = results
        .models
        .iter()
        .flat_map(|m: &Scored| {
            [row(m.name, "greedy", &m.greedy_summary), row(m.name, "sampled", &m.sampled_summary)]
        })
        .collect();
    rows.push(row("start, other images", "greedy", &results.shuffled[0]));
    rows.push(row("end, other images", "greedy", &results.shuffled[1]));
    let mut constant = vec![NONE.to_owned(); header.len()];
    constant[0] = "best constant box".into();
    constant[1] = format!("{:?}", <[f64; 4]>::from(results.constant_box));
    constant[2] = results.constant.to_string();
    rows.push(constant);
    Table { header: header.map(str::to_owned).to_vec(), rows, caption: String::new() }
}

fn gains(results: &Results) -> Table {
    let row = |what: &str, greedy: Option<&Interval>, sampled: Option<&Interval>| {
        let text = |interval: Option<&Interval>| interval.map_or(NONE.to_owned(), signed);
        vec![what.to_owned(), text(greedy), text(sampled)]
    };
    Table {
        header: ["metric", "greedy", "sampled"].map(str::to_owned).to_vec(),
        rows: vec![
            row("IoU", Some(&results.gain), Some(&results.gain_sampled)),
            row(
                "IoU where both are well-formed",
                results.gain_well_formed.as_ref(),
                results.gain_well_formed_sampled.as_ref(),
            ),
        ],
        caption: String::new(),
    }
}

fn shown_images(demo: &Demo<'_>, results: &Results) -> Result<Vec<AnnotatedImage>, PageError> {
    let (start, end) = (&results.start().greedy.completions, &results.end().greedy.completions);
    start
        .iter()
        .zip(end)
        .take(NUM_IMAGES)
        .map(|(start, end)| shown_image(demo, start, end))
        .collect()
}

fn shown_image(
    demo: &Demo<'_>,
    start: &RecCompletion,
    end: &RecCompletion,
) -> Result<AnnotatedImage, PageError> {
    let path = demo.images.join(&start.image);
    let bytes = fs::read(&path).map_err(|source| PageError::Io { path, source })?;
    let image = EncodedImage::from_bytes(bytes)?;
    let mut boxes = vec![LabelledBox {
        label: "true".into(),
        colour: Colour::Green,
        corners: start.ground_truth,
    }];
    let mut lines = vec![line(
        "true",
        Colour::Green,
        format!("{:?}", start.ground_truth.map(|edge| edge as i64)),
        String::new(),
    )];
    for (label, colour, completion) in [("SFT", Colour::Orange, start), ("GRPO", Colour::Blue, end)]
    {
        let found = completion.extracted_answer;
        if found[0] < found[2] && found[1] < found[3] {
            boxes.push(LabelledBox { label: label.into(), colour, corners: found });
        }
        lines.push(line(
            label,
            colour,
            completion.model_output.clone(),
            format!("{:.2}", completion.iou),
        ));
    }
    let described =
        start.question.split_once("describes: ").map_or(start.question.as_str(), |(_, text)| text);
    Ok(AnnotatedImage { image, boxes, title: described.trim_end_matches('.').to_owned(), lines })
}

fn line(label: &str, colour: Colour, text: String, value: String) -> CaptionLine {
    CaptionLine { label: label.into(), colour: Some(colour), text, value }
}

/// Stages, and GRPO's by phase.
fn times(demo: &Demo<'_>, rows: &[report::training::MetricsRow]) -> Table {
    let total = demo.total_secs();
    let row = |what: &str, secs: f64| {
        vec![what.to_owned(), format!("{secs:.1}"), format!("{:.0} %", 100.0 * secs / total)]
    };
    let mut table: Vec<Vec<String>> = Vec::new();
    for (stage, &secs) in demo.secs {
        table.push(row(stage, secs));
        if stage == "GRPO" {
            for phase in ["rollout", "reward", "reference", "train", "optimizer", "checkpoint"] {
                let of = |row: &report::training::MetricsRow| row.get("secs")?.get(phase)?.as_f64();
                table.push(row(&format!("\u{2003}{phase}"), rows.iter().filter_map(of).sum()));
            }
        }
    }
    table.push(row("all", total));
    Table {
        header: ["stage", "seconds", "share"].map(str::to_owned).to_vec(),
        rows: table,
        caption: String::new(),
    }
}

fn signed(interval: &Interval) -> String {
    format!("{:+.3} [{:+.3}, {:+.3}]", interval.mean, interval.low, interval.high)
}

fn minutes(secs: f64) -> String {
    let secs = secs.round() as u64;
    format!("{} min {} s", secs / 60, secs % 60)
}
