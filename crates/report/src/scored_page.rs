//! The page of scored completions: histograms, then for each row the image with its boxes beside the
//! text and the scores, with a filter and an order. All texts come from models and data: every one is
//! escaped.

use std::fmt::Write;
use std::path::Path;

use crate::annotated_image::AnnotatedImage;
use crate::atomic_write::write_whole;
use crate::error::ReportError;
use crate::histogram::HistogramChart;
use crate::html::{KeyMetric, PAGE_CSS, paragraph, write_metrics};
use crate::svg::{CHART_CSS, Colour, Target, escaped};

const SCORED_CSS: &str = include_str!("scored_page.css");
const SCORED_JS: &str = include_str!("scored_page.js");

/// Scored completions with what is said of all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoredPage {
    /// Heading of the page.
    pub title: String,
    /// What was scored by what.
    pub summary: String,
    /// The numbers to see first.
    pub metrics: Vec<KeyMetric>,
    /// Histograms of each reward and of their sum.
    pub charts: Vec<HistogramChart>,
    /// Name of the sum that [`ScoredRow::total`] is.
    pub total: String,
    /// Names of the rewards.
    pub rewards: Vec<String>,
    /// What rows can be chosen by, such as `wrong`; [`ScoredRow::tags`] are among them.
    pub tags: Vec<String>,
    /// What the colours of boxes mean.
    pub legend: Vec<(Colour, String)>,
    /// Which rows are shown.
    pub note: String,
    /// The rows.
    pub rows: Vec<ScoredRow>,
}

/// A completion with its scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredRow {
    /// Where the row stands, and what else identifies it.
    pub place: String,
    /// Images; boxes are drawn on those that have some.
    pub shown_images: Vec<AnnotatedImage>,
    /// Why an image is missing; may be empty.
    pub image_note: String,
    /// What was asked.
    pub question: String,
    /// The completion, in passages.
    pub completion: Vec<Passage>,
    /// The true answer.
    pub solution: String,
    /// The weighted sum.
    pub total: f64,
    /// Those of [`ScoredPage::tags`] that fit.
    pub tags: Vec<String>,
    /// One for each of [`ScoredPage::rewards`].
    pub scores: Vec<ScoreLine>,
}

/// A part of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// What part it is.
    pub tone: Tone,
    /// Its text.
    pub text: String,
}

/// How a passage is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A heading: whose completion follows.
    Speaker,
    /// Dimmed.
    Thinking,
    /// As it is.
    Plain,
    /// Set apart.
    Answer,
}

/// What a reward gave a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreLine {
    /// The score; none where the reward does not apply.
    pub score: Option<f64>,
    /// Why; may be empty.
    pub reason: String,
}

impl ScoredPage {
    /// The page as HTML text.
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        // The policy keeps the page from reaching out, whatever it holds.
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{CHART_CSS}{PAGE_CSS}{SCORED_CSS}</style>\n</head>\n\
             <body>\n<main>\n<h1>{title}</h1>\n"
        );
        paragraph(&mut html, "lead", &self.summary);
        write_metrics(&mut html, &self.metrics);
        html.push_str("<div class=\"histograms\">\n");
        for chart in &self.charts {
            let _ = writeln!(html, "<div class=\"card\">{}</div>", chart.svg(Target::Inline));
        }
        html.push_str("</div>\n<h2>Rows</h2>\n");
        paragraph(&mut html, "note", &self.note);
        self.write_controls(&mut html);
        html.push_str("<div id=\"rows\">\n");
        for (index, row) in self.rows.iter().enumerate() {
            self.write_row(&mut html, index, row);
        }
        let _ = write!(html, "</div>\n</main>\n<script>\n{SCORED_JS}</script>\n</body>\n</html>\n");
        html
    }

    /// Writes the page to `path`, whole or not at all.
    ///
    /// # Errors
    /// Where the file cannot be written; an old one then stands as it was.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        write_whole(path, self.html().as_bytes())
    }

    fn write_controls(&self, html: &mut String) {
        let mut options = format!("<option value=\"total\">{}</option>", escaped(&self.total));
        for (index, name) in self.rewards.iter().enumerate() {
            let _ = write!(options, "<option value=\"r{index}\">{}</option>", escaped(name));
        }
        let mut tags = String::new();
        for (index, tag) in self.tags.iter().enumerate() {
            let _ = write!(tags, "<option value=\"{index}\">{}</option>", escaped(tag));
        }
        if !tags.is_empty() {
            tags = format!(
                "<label>Show <select id=\"tag\"><option value=\"\">all</option>{tags}</select></label>"
            );
        }
        let _ = writeln!(
            html,
            "<form class=\"controls card\" id=\"controls\">{tags}\
             <label>Text <input id=\"text\" type=\"search\" placeholder=\"any text of a row\"></label>\
             <label>Score <select id=\"key\">{options}</select></label>\
             <label>from <input id=\"low\" type=\"number\" step=\"any\"></label>\
             <label>to <input id=\"high\" type=\"number\" step=\"any\"></label>\
             <label>Order <select id=\"order\"><option value=\"file\">as in the file</option>\
             <option value=\"rising\">lowest score first</option>\
             <option value=\"falling\">highest score first</option></select></label>\
             <button type=\"reset\">Reset</button><output id=\"count\">{} rows</output></form>",
            self.rows.len()
        );
    }

    fn write_row(&self, html: &mut String, index: usize, row: &ScoredRow) {
        let _ = write!(
            html,
            "<article class=\"row card\" data-index=\"{index}\" data-total=\"{}\"",
            row.total
        );
        for (reward, line) in row.scores.iter().enumerate() {
            if let Some(score) = line.score {
                let _ = write!(html, " data-r{reward}=\"{score}\"");
            }
        }
        let tags = self.tags.iter().enumerate();
        let tags = tags.filter(|(_, tag)| row.tags.contains(tag));
        let tags: Vec<String> = tags.map(|(index, _)| index.to_string()).collect();
        if !tags.is_empty() {
            let _ = write!(html, " data-tags=\"{}\"", tags.join(" "));
        }
        html.push_str(">\n<div class=\"row-images\">");
        row.write_images(html, &self.legend);
        let _ = write!(
            html,
            "</div>\n<div class=\"row-details\"><header><span class=\"place\">{}</span>\
             <span class=\"total\">{}</span></header>\n",
            escaped(&row.place),
            number(row.total)
        );
        paragraph(html, "question", &row.question);
        row.write_completion(html);
        let _ = writeln!(
            html,
            "<div class=\"solution\"><span class=\"name\">solution</span> <code>{}</code></div>",
            escaped(&row.solution)
        );
        html.push_str("<table class=\"scores\">");
        for (name, line) in self.rewards.iter().zip(&row.scores) {
            line.write(html, name);
        }
        html.push_str("</table>\n</div>\n</article>\n");
    }
}

impl ScoredRow {
    fn write_images(&self, html: &mut String, legend: &[(Colour, String)]) {
        for image in &self.shown_images {
            html.push_str(&image.svg());
            if image.boxes.is_empty() {
                continue;
            }
            html.push_str("<div class=\"legend\">");
            for (colour, name) in legend {
                let count = image.boxes.iter().filter(|b| b.colour == *colour);
                let _ = write!(
                    html,
                    "<span><i style=\"background:{}\"></i>{}: {}</span>",
                    colour.css(),
                    escaped(name),
                    count.count()
                );
            }
            html.push_str("</div>");
        }
        paragraph(html, "missing", &self.image_note);
    }

    fn write_completion(&self, html: &mut String) {
        html.push_str("<div class=\"completion\">");
        for passage in &self.completion {
            let class = match passage.tone {
                Tone::Speaker => "speaker",
                Tone::Thinking => "thinking",
                Tone::Plain => "plain",
                Tone::Answer => "answer",
            };
            let text = escaped(&passage.text);
            let _ = write!(html, "<span class=\"{class}\">{text}</span>");
        }
        if self.completion.is_empty() {
            html.push_str("<span class=\"thinking\">(empty)</span>");
        }
        html.push_str("</div>\n");
    }
}

impl ScoreLine {
    fn write(&self, html: &mut String, name: &str) {
        let score = self.score.map_or("\u{2013}".to_owned(), number);
        let reason = match (self.score, self.reason.as_str()) {
            (None, "") => "does not apply",
            (_, reason) => reason,
        };
        // The bar says at a glance what most rewards mean: 0 is nothing, 1 is all.
        let share = self.score.unwrap_or(0.0).clamp(0.0, 1.0) * 100.0;
        let _ = write!(
            html,
            "<tr><th>{}</th><td class=\"number\">{score}</td>\
             <td class=\"bar\"><i style=\"width:{share:.0}%\"></i></td><td>{}</td></tr>",
            escaped(name),
            escaped(reason)
        );
    }
}

/// A score with four decimals at most.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".to_owned(),
        text => text.replace('-', "\u{2212}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotated_image::{EncodedImage, LabelledBox};
    use crate::histogram::Histogram;

    const EVIL: &str = "</script><script>alert(1)</script><img src=x onerror=\"a\">'";

    fn page() -> ScoredPage {
        let image = AnnotatedImage {
            image: EncodedImage::from_rgb(4, 2, &[128; 24]).expect("pixels"),
            boxes: vec![LabelledBox {
                label: EVIL.to_owned(),
                colour: Colour::Green,
                corners: [0.0, 0.0, 2.0, 2.0],
            }],
            title: EVIL.to_owned(),
            lines: Vec::new(),
        };
        let passage = |tone| Passage { tone, text: EVIL.to_owned() };
        ScoredPage {
            title: EVIL.to_owned(),
            summary: EVIL.to_owned(),
            metrics: Vec::new(),
            charts: vec![HistogramChart {
                title: EVIL.to_owned(),
                note: EVIL.to_owned(),
                histogram: Histogram::of(&[0.0, 1.0]),
                colour: Colour::Blue,
            }],
            total: EVIL.to_owned(),
            rewards: vec![EVIL.to_owned(), "b".to_owned()],
            tags: vec!["right".to_owned(), EVIL.to_owned(), "wrong".to_owned()],
            legend: vec![
                (Colour::Green, "true".to_owned()),
                (Colour::Orange, "predicted".to_owned()),
            ],
            note: EVIL.to_owned(),
            rows: vec![ScoredRow {
                place: EVIL.to_owned(),
                shown_images: vec![image],
                image_note: EVIL.to_owned(),
                question: EVIL.to_owned(),
                completion: vec![
                    passage(Tone::Speaker),
                    passage(Tone::Thinking),
                    passage(Tone::Answer),
                ],
                solution: EVIL.to_owned(),
                total: -0.25,
                tags: vec!["wrong".to_owned(), EVIL.to_owned()],
                scores: vec![
                    ScoreLine { score: Some(0.75), reason: EVIL.to_owned() },
                    ScoreLine::default(),
                ],
            }],
        }
    }

    #[test]
    fn no_text_becomes_markup() {
        let html = page().html();
        assert_eq!(html.matches("<script>").count(), 1);
        assert_eq!(html.matches("</script>").count(), 1);
        assert!(!html.contains("<img") && !html.contains("onerror=\"a\""));
        let safe = "&lt;/script&gt;&lt;script&gt;alert(1)";
        assert!(html.matches(safe).count() >= 17, "{html}");
    }

    #[test]
    fn scores_stand_where_the_script_reads_them() {
        let html = page().html();
        assert!(
            html.contains(
                "data-index=\"0\" data-total=\"-0.25\" data-r0=\"0.75\" data-tags=\"1 2\">"
            )
        );
        assert!(!html.contains("data-r1"), "a reward that does not apply has no score");
        assert!(
            html.contains("<td class=\"number\">\u{2013}</td>") && html.contains("does not apply")
        );
        assert!(html.contains("true: 1") && html.contains("predicted: 0"));
    }

    #[test]
    fn scores_are_short() {
        let texts = [0.5, -0.25, 1.0, 0.0, -0.00001, 1.0 / 3.0].map(number);
        assert_eq!(texts, ["0.5", "\u{2212}0.25", "1", "0", "0", "0.3333"]);
    }
}
