//! The page of `data check --html`: what was found, how answers are spread, and rows with their boxes drawn.

use std::path::PathBuf;

use config::DataCheckConfig;
use data::check::{AnswerBox, CheckReport, Level, SeenRow, TextCount};
use report::{
    AnnotatedImage, Body, CaptionLine, Colour, KeyMetric, LabelledBox, Report, Section, Table,
};

use crate::page_image;
use crate::thinning::Thinning;

/// Names of the bins of [`data::check::Answers::boxes_per_row`].
pub const NUMBERS: [&str; 6] = ["0", "1", "2", "3-5", "6-10", "more"];
/// Names of the bins of [`data::check::Answers::box_areas`].
pub const AREAS: [&str; 5] = ["under 0.1 %", "0.1-1 %", "1-10 %", "10-50 %", "over 50 %"];
/// Names of the bins of [`data::check::Answers::box_places`].
pub const PLACES: [&str; 9] = [
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
];

/// Rows with findings that are shown.
const BAD_ROWS: usize = 24;
/// Characters of a question or an answer that are shown.
const SHOWN_TEXT: usize = 400;

/// The rows that the page will show: those first found bad, and an even choice of all.
pub struct PageRows {
    even: Thinning<KeptRow>,
    bad: Vec<KeptRow>,
    is_wanted: bool,
    apply_exif: bool,
}

/// What of a row is needed to show it.
struct KeptRow {
    place: String,
    image: Option<PathBuf>,
    question: String,
    answer: String,
    boxes: Vec<AnswerBox>,
    extent: Option<[f64; 2]>,
    findings: Vec<String>,
}

impl PageRows {
    /// Keeps rows where the configuration wants a page.
    pub fn new(config: &DataCheckConfig) -> Self {
        Self {
            even: Thinning::new(config.html_rows),
            bad: Vec::new(),
            is_wanted: config.html.is_some(),
            apply_exif: config.apply_exif,
        }
    }

    /// Keeps the row, or not.
    pub fn keep(&mut self, row: &SeenRow) {
        if !self.is_wanted {
            return;
        }
        if !row.findings.is_empty() && self.bad.len() < BAD_ROWS {
            self.bad.push(KeptRow::of(row));
        } else if row.example.is_some() {
            self.even.offer(|| KeptRow::of(row));
        }
    }

    /// The page.
    pub fn page(self, report: &CheckReport, tried: &[String]) -> Report {
        let shown_images = |rows: Vec<KeptRow>| -> Vec<AnnotatedImage> {
            let rows = rows.iter();
            rows.filter_map(|row| row.shown_image(self.apply_exif)).collect()
        };
        let of_all = self.even.num_offered();
        let even = self.even.chosen();
        let note = format!("{} of {of_all} rows, chosen evenly (--html_rows).", even.len());
        let mut sections = vec![findings(report)];
        sections.extend(spread(report));
        let bad = shown_images(self.bad);
        if !bad.is_empty() {
            sections.push(Section {
                heading: "Rows with findings".to_owned(),
                note: "The first that have an image.".to_owned(),
                body: Body::Images(bad),
            });
        }
        sections.push(Section {
            heading: "Rows".to_owned(),
            note,
            body: Body::Images(shown_images(even)),
        });
        Report {
            title: "Data".to_owned(),
            summary: summary(report, tried),
            metrics: key_counts(report),
            sections,
        }
    }
}

fn summary(report: &CheckReport, tried: &[String]) -> String {
    let files = report.files.iter().map(|file| file.path.as_str());
    let files: Vec<&str> = files.collect();
    let scored = match tried {
        [] => String::new(),
        names => format!(" True answers are scored by {}.", names.join(", ")),
    };
    format!("{}.{scored}", files.join(", "))
}

fn key_counts(report: &CheckReport) -> Vec<KeyMetric> {
    let metric = |label: &str, value: u64, note: String| KeyMetric {
        label: label.to_owned(),
        value: value.to_string(),
        note,
    };
    let rows = report.files.iter().map(|file| file.rows).sum();
    let good: u64 = report.files.iter().map(|file| file.good).sum();
    vec![
        metric("rows", rows, format!("{good} without errors")),
        metric("errors", report.errors, String::new()),
        metric("warnings", report.warnings, String::new()),
        metric("images", report.images as u64, images(report)),
    ]
}

/// `3 different ones`
pub fn different(number: u64) -> String {
    format!("{number} different {}", if number == 1 { "one" } else { "ones" })
}

/// `12 images in training rows, 3 in test rows`
pub fn images(report: &CheckReport) -> String {
    let mut text = format!("images: {}", different(report.images as u64));
    if report.files.iter().any(|file| file.is_test) {
        text.push_str(&format!(", {} in test rows", report.test_images));
    }
    text
}

fn findings(report: &CheckReport) -> Section {
    let rows = report.findings.iter().map(|finding| {
        let level = match finding.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        let first = finding.examples.first();
        let first = first.map(|e| format!("{}: {}", e.place, e.text)).unwrap_or_default();
        [level, finding.kind.name(), &finding.count.to_string(), finding.expected, &first]
            .map(str::to_owned)
            .to_vec()
    });
    Section {
        heading: "Findings".to_owned(),
        note: match report.findings.is_empty() {
            true => "Nothing was found.".to_owned(),
            false => String::new(),
        },
        body: Body::Table(table(&["level", "kind", "count", "expected", "first"], rows.collect())),
    }
}

/// How answers are spread.
fn spread(report: &CheckReport) -> Vec<Section> {
    let answers = &report.answers;
    let bins = |names: &[&str], counts: &[u64]| -> Vec<[String; 2]> {
        let each = names.iter().zip(counts);
        each.map(|(name, count)| [(*name).to_owned(), count.to_string()]).collect()
    };
    let texts = |top: &[TextCount]| -> Vec<[String; 2]> {
        let each = top.iter();
        each.map(|each| [each.text.clone(), each.count.to_string()]).collect()
    };
    let all = [
        ("Most frequent answers", "answer", texts(&answers.top)),
        ("Boxes in a row", "boxes", bins(&NUMBERS, &answers.boxes_per_row)),
        ("Boxes by share of the image", "share", bins(&AREAS, &answers.box_areas)),
        ("Centres of boxes", "place", bins(&PLACES, &answers.box_places)),
        ("Most frequent labels", "label", texts(&answers.labels)),
    ];
    all.into_iter()
        .filter(|(_, _, rows)| !rows.is_empty())
        .map(|(heading, column, rows)| Section {
            heading: heading.to_owned(),
            note: String::new(),
            body: Body::Table(table(&[column, "count"], rows.into_iter().map(Vec::from).collect())),
        })
        .collect()
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Table {
    Table {
        header: header.iter().map(|name| (*name).to_owned()).collect(),
        rows,
        caption: String::new(),
    }
}

impl KeptRow {
    fn of(row: &SeenRow) -> Self {
        let example = row.example.as_ref();
        let text = |text: Option<&String>| -> String {
            text.map(|text| text.chars().take(SHOWN_TEXT).collect()).unwrap_or_default()
        };
        Self {
            place: row.place.to_string(),
            image: row.images.first().map(|image| image.facts.path.clone()),
            question: text(example.map(|example| &example.problem)),
            answer: text(example.map(|example| &example.answer)),
            boxes: row.boxes.clone(),
            extent: row.extent,
            findings: row
                .findings
                .iter()
                .map(|finding| format!("{}: {}", finding.kind.name(), finding.text))
                .collect(),
        }
    }

    /// The first image with its boxes; none where there is no image to show.
    fn shown_image(&self, apply_exif: bool) -> Option<AnnotatedImage> {
        let (image, _) = page_image::for_page(self.image.as_ref()?, apply_exif).ok()?;
        let size = image.size();
        let boxes = self.extent.map(|extent| {
            let scale = [0, 1].map(|axis| f64::from(size[axis]) / extent[axis]);
            let boxes = self.boxes.iter();
            boxes.map(|found| drawn(found, scale)).collect()
        });
        let line = |label: &str, text: &str, colour| CaptionLine {
            label: label.to_owned(),
            colour,
            text: text.to_owned(),
            value: String::new(),
        };
        let mut lines =
            vec![line("row", &self.place, None), line("answer", &self.answer, Some(Colour::Green))];
        let findings = self.findings.iter();
        lines.extend(findings.map(|finding| line("found", finding, Some(Colour::Orange))));
        Some(AnnotatedImage {
            image,
            boxes: boxes.unwrap_or_default(),
            title: self.question.clone(),
            lines,
        })
    }
}

fn drawn(found: &AnswerBox, scale: [f64; 2]) -> LabelledBox {
    let label = found.label.as_deref().unwrap_or("true");
    LabelledBox {
        label: page_image::short_label(label),
        colour: Colour::Green,
        corners: [0, 1, 2, 3].map(|corner| found.corners[corner] * scale[corner % 2]),
    }
}
