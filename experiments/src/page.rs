//! What a study leaves: its page with curves and tables, and the same tables as Markdown.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use report::{Body, Colour, LineChart, Report, Section, Series, Table};
use serde_json::json;

use crate::claims::{Claim, mean};

const COLOURS: [Colour; 7] = [
    Colour::Blue,
    Colour::Orange,
    Colour::Green,
    Colour::Purple,
    Colour::Red,
    Colour::Teal,
    Colour::Grey,
];

/// A finished study.
pub struct Study {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What was done.
    pub what: String,
    /// What the paper found.
    pub paper: &'static str,
    /// The claims that are tried.
    pub claims: Vec<Claim>,
    /// Tables, each under a heading.
    pub tables: Vec<(String, Table)>,
    /// Curves.
    pub charts: Vec<LineChart>,
}

/// Values of one name: one list a seed, each `[x, y]`.
pub type Curves = Vec<Vec<[f64; 2]>>;

/// A chart of means over seeds, each with the span from the lowest to the highest seed. Seeds have
/// the same x.
pub fn chart(title: &str, x_label: &str, y_label: &str, lines: Vec<(String, Curves)>) -> LineChart {
    let series = lines.into_iter().zip(COLOURS.iter().cycle());
    let series = series.map(|((name, curves), colour)| {
        let points = curves.iter().map(Vec::len).min().unwrap_or(0);
        let at = |index: usize| curves.iter().map(move |curve| curve[index][1]);
        let x = |index: usize| curves[0][index][0];
        let mut line = Series::new(
            name,
            *colour,
            (0..points).map(|i| [x(i), mean(&at(i).collect::<Vec<_>>())]).collect(),
        );
        line.band = (0..points)
            .map(|i| {
                [x(i), at(i).fold(f64::INFINITY, f64::min), at(i).fold(f64::NEG_INFINITY, f64::max)]
            })
            .collect();
        line
    });
    LineChart {
        title: title.to_owned(),
        x_label: x_label.to_owned(),
        y_label: y_label.to_owned(),
        series: series.collect(),
        y_includes: Vec::new(),
    }
}

/// Mean and, where there are several seeds, the lowest and the highest: `0.51 (0.49 to 0.52)`.
pub fn cell(values: &[f64], decimals: usize) -> String {
    let mean = mean(values);
    if values.len() < 2 {
        return format!("{mean:.decimals$}");
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{mean:.decimals$} ({low:.decimals$} to {high:.decimals$})")
}

impl Study {
    /// Writes `<name>.html`, `<name>.md` and `<name>.json` into `out`; the path of the page.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, out: &Path) -> Result<PathBuf> {
        let page = out.join(format!("{}.html", self.name));
        self.page().write(&page)?;
        let claims = self.claims.iter().map(|claim| {
            json!({"claim": claim.text, "differences": claim.differences, "verdict": claim.verdict().word()})
        });
        for (ending, text) in [
            ("md", self.markdown()),
            (
                "json",
                format!(
                    "{:#}\n",
                    json!({"study": self.name, "claims": claims.collect::<Vec<_>>()})
                ),
            ),
        ] {
            let path = out.join(format!("{}.{ending}", self.name));
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(page)
    }

    fn claims_table(&self) -> Table {
        let rows = self.claims.iter().map(|claim| {
            vec![
                claim.text.clone(),
                claim.measured(),
                claim.seeds_above_zero(),
                claim.verdict().word().to_owned(),
            ]
        });
        let header = ["claim", "difference, 95 % t-interval", "seeds above 0", "here"];
        Table {
            header: header.map(str::to_owned).into(),
            rows: rows.collect(),
            caption: String::new(),
        }
    }

    fn page(&self) -> Report {
        let section = |heading: &str, note: &str, body| Section {
            heading: heading.to_owned(),
            note: note.to_owned(),
            body,
        };
        let mut sections = vec![
            section("What the paper found", "", Body::Text(vec![self.paper.to_owned()])),
            section(
                "What came of it here",
                "A claim holds where the interval lies above zero, and does not where it lies below.",
                Body::Table(self.claims_table()),
            ),
        ];
        for (heading, table) in &self.tables {
            sections.push(section(
                heading,
                "Mean; in brackets the lowest and the highest seed.",
                Body::Table(table.clone()),
            ));
        }
        sections.push(section(
            "Curves",
            "Means over seeds; the span is from the lowest to the highest.",
            Body::Charts(self.charts.clone()),
        ));
        Report {
            title: self.title.to_owned(),
            summary: self.what.clone(),
            metrics: Vec::new(),
            sections,
        }
    }

    fn markdown(&self) -> String {
        let mut text =
            format!("## {}\n\n{}\n\nThe paper: {}\n\n", self.title, self.what, self.paper);
        let claims = (String::from("Claims"), self.claims_table());
        for (heading, table) in std::iter::once(&claims).chain(&self.tables) {
            let _ = writeln!(text, "{heading}:\n");
            markdown_row(&mut text, &table.header);
            markdown_row(&mut text, &vec!["---".to_owned(); table.header.len()]);
            for row in &table.rows {
                markdown_row(&mut text, row);
            }
            text.push('\n');
        }
        text
    }
}

fn markdown_row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_mean_of_its_seeds() {
        let curves = vec![vec![[0.0, 1.0], [1.0, 3.0]], vec![[0.0, 2.0], [1.0, 5.0]]];
        let chart = chart("t", "x", "y", vec![("a".into(), curves)]);
        assert_eq!(chart.series[0].points, [[0.0, 1.5], [1.0, 4.0]]);
        assert_eq!(chart.series[0].band, [[0.0, 1.0, 2.0], [1.0, 3.0, 5.0]]);
    }

    #[test]
    fn a_study_becomes_a_page_and_markdown() {
        let study = Study {
            name: "s",
            title: "Title",
            what: "What".into(),
            paper: "Paper",
            claims: vec![Claim::new("a > b", vec![0.1, 0.11, 0.12])],
            tables: vec![(
                "Scores".into(),
                Table {
                    header: vec!["arm".into(), "AP".into()],
                    rows: vec![vec!["x".into(), cell(&[0.6, 0.5], 2)]],
                    caption: String::new(),
                },
            )],
            charts: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let page = study.write(folder.path()).unwrap();
        assert!(fs::read_to_string(page).unwrap().contains("a &gt; b"));
        let text = fs::read_to_string(folder.path().join("s.md")).unwrap();
        assert!(text.contains("| x | 0.55 (0.50 to 0.60) |"), "{text}");
        assert!(text.contains("| holds |"), "{text}");
    }
}
