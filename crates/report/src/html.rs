//! The report: one HTML file with its style, charts and images inside.

use std::fmt::Write;
use std::path::Path;

use crate::annotated_image::{AnnotatedImage, CaptionLine};
use crate::atomic_write::write_whole;
use crate::error::ReportError;
use crate::intervals::IntervalChart;
use crate::svg::{CHART_CSS, LineChart, Target, escaped};

pub(crate) const PAGE_CSS: &str = include_str!("page.css");

/// Columns of a table that fit a telephone.
const NARROW_COLUMNS: usize = 3;

/// A page about a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Heading of the page.
    pub title: String,
    /// What was done and what came of it, in a sentence or two.
    pub summary: String,
    /// The numbers to see first.
    pub metrics: Vec<KeyMetric>,
    /// The rest, in order.
    pub sections: Vec<Section>,
}

/// A number set large.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyMetric {
    /// What it is.
    pub label: String,
    /// The number with its unit.
    pub value: String,
    /// What to compare it with.
    pub note: String,
}

/// A part of the page under its own heading.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Heading.
    pub heading: String,
    /// How to read what follows; may be empty.
    pub note: String,
    /// What is shown.
    pub body: Body,
}

/// What a section shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Paragraphs.
    Text(Vec<String>),
    /// Text with its line breaks, such as a configuration.
    Code(String),
    /// Rows and columns.
    Table(Table),
    /// Curves.
    Charts(Vec<LineChart>),
    /// Scores with intervals.
    Intervals(Vec<IntervalChart>),
    /// Images with boxes and captions.
    Images(Vec<AnnotatedImage>),
}

/// Rows and columns of text. A column of numbers is set flush right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
    /// Text below the table; may be empty.
    pub caption: String,
}

impl Report {
    /// The page as HTML text.
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{CHART_CSS}{PAGE_CSS}</style>\n</head>\n\
             <body>\n<main>\n<h1>{title}</h1>\n"
        );
        paragraph(&mut html, "lead", &self.summary);
        write_metrics(&mut html, &self.metrics);
        for section in &self.sections {
            let _ = writeln!(html, "<section>\n<h2>{}</h2>", escaped(&section.heading));
            paragraph(&mut html, "note", &section.note);
            write_body(&mut html, &section.body);
            html.push_str("</section>\n");
        }
        html + "</main>\n</body>\n</html>\n"
    }

    /// Writes the page to `path`, whole or not at all.
    ///
    /// # Errors
    /// Where the file cannot be written; an old one then stands as it was.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        write_whole(path, self.html().as_bytes())
    }
}

pub(crate) fn paragraph(html: &mut String, class: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(html, "<p class=\"{class}\">{}</p>", escaped(text));
    }
}

pub(crate) fn write_metrics(html: &mut String, metrics: &[KeyMetric]) {
    if metrics.is_empty() {
        return;
    }
    html.push_str("<dl class=\"metrics\">\n");
    for metric in metrics {
        let _ = writeln!(
            html,
            "<div class=\"card\"><dt>{}</dt><dd class=\"value\">{}</dd><dd class=\"about\">{}</dd></div>",
            escaped(&metric.label),
            escaped(&metric.value),
            escaped(&metric.note)
        );
    }
    html.push_str("</dl>\n");
}

fn write_body(html: &mut String, body: &Body) {
    match body {
        Body::Text(paragraphs) => paragraphs.iter().for_each(|text| {
            let _ = writeln!(html, "<p>{}</p>", escaped(text));
        }),
        Body::Code(text) => {
            let _ = writeln!(html, "<pre class=\"card\">{}</pre>", escaped(text));
        }
        Body::Table(table) => write_table(html, table),
        Body::Charts(charts) => {
            write_charts(html, "card", charts.iter().map(|chart| chart.svg(Target::Inline)));
        }
        Body::Intervals(charts) => {
            write_charts(html, "card wide", charts.iter().map(|chart| chart.svg(Target::Inline)));
        }
        Body::Images(images) => {
            html.push_str("<div class=\"images\">\n");
            images.iter().for_each(|p| write_image(html, p));
            html.push_str("</div>\n");
        }
    }
}

fn write_charts(html: &mut String, class: &str, charts: impl ExactSizeIterator<Item = String>) {
    let single = if charts.len() == 1 { " single" } else { "" };
    let _ = writeln!(html, "<div class=\"charts{single}\">");
    for chart in charts {
        let _ = writeln!(html, "<div class=\"{class}\">{chart}</div>");
    }
    html.push_str("</div>\n");
}

fn write_table(html: &mut String, table: &Table) {
    if table.rows.is_empty() {
        return;
    }
    let classes: Vec<&str> = (0..table.header.len())
        .map(|column| {
            let mut cells = table.rows.iter().filter_map(|row| row.get(column));
            if cells.all(|cell| is_numeric(cell)) { " class=\"number\"" } else { "" }
        })
        .collect();
    let class = |column: usize| classes.get(column).copied().unwrap_or_default();
    // On a narrow screen the rows of a wide table become blocks of lines.
    let is_wide = table.header.len() > NARROW_COLUMNS;
    let rows = if is_wide { " rows" } else { "" };
    let _ = writeln!(html, "<div class=\"table card{rows}\"><table>");
    if !table.caption.is_empty() {
        let _ = writeln!(html, "<caption>{}</caption>", escaped(&table.caption));
    }
    html.push_str("<thead><tr>");
    for (column, name) in table.header.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(column), escaped(name));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let name = escaped(table.header.get(column).map_or("", String::as_str));
            let class = class(column);
            let _ = write!(html, "<td{class} data-name=\"{name}\">{}</td>", cell_html(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
}

/// A cell; the interval of a number stands below it, so that columns are narrow.
fn cell_html(cell: &str) -> String {
    match cell.split_once(" [") {
        Some((number, interval)) if is_numeric(cell) && interval.ends_with(']') => {
            let (number, interval) = (escaped(number), escaped(interval));
            format!("{number} <span class=\"interval\">[{interval}</span>")
        }
        _ => escaped(cell).to_string(),
    }
}

/// Whether a cell is a number, perhaps signed, with a unit or an interval after it, or left empty.
fn is_numeric(cell: &str) -> bool {
    let digits = cell.trim_start_matches(['+', '-', '\u{2212}']);
    cell.is_empty() || cell == "\u{2013}" || digits.starts_with(|c: char| c.is_ascii_digit())
}

fn write_image(html: &mut String, image: &AnnotatedImage) {
    let _ = writeln!(
        html,
        "<figure class=\"card\">{}\n<figcaption><div class=\"title\">{}</div>",
        image.svg(),
        escaped(&image.title)
    );
    for line in &image.lines {
        write_caption_line(html, line);
    }
    html.push_str("</figcaption></figure>\n");
}

fn write_caption_line(html: &mut String, line: &CaptionLine) {
    let mark = line
        .colour
        .map_or_else(String::new, |colour| format!(" style=\"background:{}\"", colour.css()));
    let text = match line.text.as_str() {
        "" => String::new(),
        text => format!("<code>{}</code>", escaped(text)),
    };
    let _ = writeln!(
        html,
        "<div class=\"line\"><span class=\"mark\"{mark}></span><span class=\"name\">{}</span>\
         <span class=\"value\">{}</span>{text}</div>",
        escaped(&line.label),
        escaped(&line.value)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_known_from_words() {
        for number in ["", "0.5", "-3", "+0.10", "\u{2212}1", "12 s", "0.5 [0.4, 0.6]", "\u{2013}"]
        {
            assert!(is_numeric(number), "{number}");
        }
        for word in ["a", "[1, 2]", "-", "seed 1"] {
            assert!(!is_numeric(word), "{word}");
        }
    }

    #[test]
    fn a_table_without_rows_is_not_shown() {
        let mut html = String::new();
        let header = vec!["level".to_owned()];
        write_table(&mut html, &Table { header, ..Table::default() });
        assert_eq!(html, "");
    }

    #[test]
    fn an_interval_stands_below_its_number() {
        let parted = "0.5 <span class=\"interval\">[0.4, 0.6]</span>";
        assert_eq!(cell_html("0.5 [0.4, 0.6]"), parted);
        for whole in ["[1, 2]", "a [b]", "0.5 [of 3", ""] {
            assert_eq!(cell_html(whole), whole);
        }
    }

    #[test]
    fn a_column_of_numbers_is_flush_right() {
        let mut html = String::new();
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table {
            header: row(["who", "IoU"]),
            rows: vec![row(["<start>", "0.3"]), row(["end", "0.5"])],
            caption: String::new(),
        };
        write_table(&mut html, &table);
        assert!(
            html.contains(
                "<td data-name=\"who\">&lt;start&gt;</td><td class=\"number\" data-name=\"IoU\">0.3</td>"
            ),
            "{html}"
        );
        assert!(html.contains("<th>who</th><th class=\"number\">IoU</th>"));
    }
}
