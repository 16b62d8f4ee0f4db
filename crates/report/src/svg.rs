//! Line charts as SVG text: axes with round ticks, raw and smoothed lines, bands, a legend.

use std::fmt::Write;

use crate::axis::{Axis, short_number};

/// Style of a chart that stands alone, and of the page that holds charts.
pub(crate) const CHART_CSS: &str = include_str!("chart.css");

/// A colour with a light and a dark form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Colour {
    Blue,
    Orange,
    Green,
    Purple,
    Red,
    Teal,
    Grey,
}

impl Colour {
    /// The colour as CSS.
    pub(crate) fn css(self) -> &'static str {
        match self {
            Self::Blue => "var(--blue)",
            Self::Orange => "var(--orange)",
            Self::Green => "var(--green)",
            Self::Purple => "var(--purple)",
            Self::Red => "var(--red)",
            Self::Teal => "var(--teal)",
            Self::Grey => "var(--grey)",
        }
    }
}

/// Where a chart will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In a [`crate::Report`], whose style it shares.
    Inline,
    /// In a file of its own, with its style and background.
    Standalone,
}

/// One line of a chart. Values that are not finite leave a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Colour of line, band and label.
    pub colour: Colour,
    /// `[x, y]`, x rising.
    pub points: Vec<[f64; 2]>,
    /// The points before smoothing, drawn faint.
    pub raw: Vec<[f64; 2]>,
    /// `[x, low, high]`, drawn as a faint area.
    pub band: Vec<[f64; 3]>,
    /// Whether the line is dashed.
    pub dashed: bool,
}

impl Series {
    /// A plain line.
    pub fn new(name: impl Into<String>, colour: Colour, points: Vec<[f64; 2]>) -> Self {
        Self { name: name.into(), colour, points, raw: Vec::new(), band: Vec::new(), dashed: false }
    }

    /// The same line as a mean over `window` neighbours (fewer at the ends), the old one faint.
    pub fn smoothed(mut self, window: usize) -> Self {
        let means = moving_mean(&self.points, window);
        self.raw = std::mem::replace(&mut self.points, means);
        self
    }
}

/// Centred mean over up to `window` points, fewer where the line begins and ends. Points that are
/// not finite are left out of the means and stay gaps.
fn moving_mean(points: &[[f64; 2]], window: usize) -> Vec<[f64; 2]> {
    let half = window.saturating_sub(1) / 2;
    let mean_at = |index: usize| {
        let end = (index + half + 1).min(points.len());
        let near = points[index.saturating_sub(half)..end]
            .iter()
            .map(|point| point[1])
            .filter(|y| y.is_finite());
        let (sum, count) = near.fold((0.0, 0), |(sum, count), y| (sum + y, count + 1));
        sum / f64::from(count)
    };
    points
        .iter()
        .enumerate()
        .map(|(index, &[x, y])| [x, if y.is_finite() { mean_at(index) } else { y }])
        .collect()
}

/// A chart of one or more lines over a common x.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineChart {
    /// What is shown.
    pub title: String,
    /// What x counts.
    pub x_label: String,
    /// What y measures, with its unit, and how it was smoothed.
    pub y_label: String,
    /// The lines, in the order of the legend.
    pub series: Vec<Series>,
    /// Values that the y axis must reach whatever the data.
    pub y_includes: Vec<f64>,
}

const WIDTH: f64 = 580.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 62.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 44.0;
/// More points than this in a line cannot be told apart.
const MAX_POINTS: usize = 1_200;

impl LineChart {
    /// The chart as SVG text.
    pub fn svg(&self, target: Target) -> String {
        let mut svg = open(&self.title, WIDTH, self.height(), target);
        text(&mut svg, "title", [16.0, 26.0], "start", &self.title);
        text(&mut svg, "", [16.0, 45.0], "start", &self.y_label);
        self.legend(&mut svg);
        match self.frame() {
            Some(frame) => {
                frame.draw_axes(&mut svg, &self.x_label);
                for series in &self.series {
                    frame.draw_series(&mut svg, series);
                }
                self.end_labels(&mut svg, &frame);
            }
            None => {
                let middle = [WIDTH / 2.0, self.height() / 2.0];
                text(&mut svg, "", middle, "middle", "no data");
            }
        }
        svg + "</svg>"
    }

    fn height(&self) -> f64 {
        HEIGHT + self.legend_height()
    }

    fn legend_height(&self) -> f64 {
        if self.series.len() > 1 { 20.0 } else { 0.0 }
    }

    fn frame(&self) -> Option<Frame> {
        let points = self
            .series
            .iter()
            .flat_map(|s| {
                let band = s.band.iter().flat_map(|&[x, low, high]| [[x, low], [x, high]]);
                s.points.iter().chain(&s.raw).copied().chain(band)
            })
            .filter(|point| is_drawable(point));
        let mut xs = Range::default();
        let mut ys = Range::default();
        points.for_each(|[x, y]| {
            xs.take(x);
            ys.take(y);
        });
        if xs.is_empty() {
            return None;
        }
        let includes = self.y_includes.iter().filter(|&&y| is_drawable(&[y]));
        includes.for_each(|&y| ys.take(y));
        Some(Frame {
            x: Axis::exactly(xs.low, xs.high, 6),
            y: Axis::around(ys.low, ys.high, 4),
            top: TOP + self.legend_height(),
            bottom: self.height() - BOTTOM,
        })
    }

    fn legend(&self, svg: &mut String) {
        if self.series.len() < 2 {
            return;
        }
        let mut x = 16.0;
        for series in &self.series {
            let dashed = if series.dashed { " dashed" } else { "" };
            let colour = series.colour.css();
            let _ = write!(
                svg,
                r#"<path class="line{dashed}" style="stroke:{colour}" d="M{x} 61h18"/>"#
            );
            text(svg, "", [x + 25.0, 65.0], "start", &series.name);
            x += 25.0 + 6.6 * series.name.chars().count() as f64 + 20.0;
        }
    }

    /// The last value of each line beside its end, pushed apart where they would overlap.
    fn end_labels(&self, svg: &mut String, frame: &Frame) {
        let mut ends: Vec<(f64, [f64; 2], Colour)> = self
            .series
            .iter()
            .filter_map(|series| {
                let last = series.points.iter().rev().find(|p| is_drawable(*p))?;
                let [x, y] = frame.place(*last);
                Some((y, [x, last[1]], series.colour))
            })
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut previous = f64::NEG_INFINITY;
        for (y, [x, value], colour) in ends {
            let colour = colour.css();
            let _ =
                write!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" style="fill:{colour}"/>"#);
            let label_y = (y + 4.0).max(previous + 14.0);
            previous = label_y;
            let _ = write!(
                svg,
                r#"<text class="value" x="{:.1}" y="{label_y:.1}" style="fill:{colour}">{}</text>"#,
                x + 8.0,
                short_number(value)
            );
        }
    }
}

#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Default for Range {
    fn default() -> Self {
        Self { low: f64::INFINITY, high: f64::NEG_INFINITY }
    }
}

impl Range {
    fn take(&mut self, value: f64) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
    }

    fn is_empty(&self) -> bool {
        self.low > self.high
    }
}

/// The plot area: from values to places on the page.
struct Frame {
    x: Axis,
    y: Axis,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn place(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [
            LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT),
            self.bottom - self.y.place(y) * (self.bottom - self.top),
        ]
    }

    fn draw_axes(&self, svg: &mut String, x_label: &str) {
        for tick in self.y.ticks() {
            let [_, y] = self.place([self.x.low, tick]);
            let right = WIDTH - RIGHT;
            let _ = write!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{right}"/>"#);
            text(svg, "", [LEFT - 8.0, y + 4.0], "end", &self.y.label(tick));
        }
        for tick in self.x.ticks() {
            let [x, _] = self.place([tick, self.y.low]);
            let _ = write!(svg, r#"<path class="axis" d="M{x:.1} {}v4"/>"#, self.bottom);
            let label = self.x.label(tick);
            text(svg, "", [x, self.bottom + 18.0], "middle", &label);
        }
        let right = WIDTH - RIGHT;
        let _ = write!(svg, r#"<path class="axis" d="M{LEFT} {}H{right}"/>"#, self.bottom);
        text(svg, "", [right, self.bottom + 35.0], "end", x_label);
    }

    fn draw_series(&self, svg: &mut String, series: &Series) {
        let colour = series.colour.css();
        let band = self.band_path(&series.band);
        if !band.is_empty() {
            let _ = write!(svg, r#"<path class="band" style="fill:{colour}" d="{band}"/>"#);
        }
        let dashed = if series.dashed { "line dashed" } else { "line" };
        for (class, points) in [("raw", &series.raw), (dashed, &series.points)] {
            let path = self.line_path(points);
            if !path.is_empty() {
                let _ =
                    write!(svg, r#"<path class="{class}" style="stroke:{colour}" d="{path}"/>"#);
            }
        }
    }

    fn line_path(&self, points: &[[f64; 2]]) -> String {
        let mut path = String::new();
        let mut pen_down = false;
        for point in thinned(points) {
            let is_drawn = is_drawable(&point);
            if is_drawn {
                let [x, y] = self.place(point);
                let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { 'L' } else { 'M' });
            }
            pen_down = is_drawn;
        }
        path
    }

    /// One area for each run of finite points.
    fn band_path(&self, band: &[[f64; 3]]) -> String {
        let mut path = String::new();
        for run in band.split(|point| !is_drawable(point)) {
            if run.len() < 2 {
                continue;
            }
            let upper = run.iter().map(|&[x, _, high]| [x, high]);
            let lower = run.iter().rev().map(|&[x, low, _]| [x, low]);
            for (index, point) in upper.chain(lower).enumerate() {
                let [x, y] = self.place(point);
                let _ = write!(path, "{}{x:.1} {y:.1}", if index > 0 { 'L' } else { 'M' });
            }
            path.push('Z');
        }
        path
    }
}

/// Whether all values are finite and so far from the largest that their differences are, too.
fn is_drawable(values: &[f64]) -> bool {
    values.iter().all(|value| value.abs() <= 1e100)
}

/// At most about [`MAX_POINTS`] points: of each run of neighbours the lowest and the highest, so
/// that no peak is lost, and a gap where there is one.
fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let run = points.len().div_ceil(MAX_POINTS / 2);
    points
        .chunks(run)
        .flat_map(|chunk| {
            let lowest = *chunk.iter().min_by(|a, b| a[1].total_cmp(&b[1])).unwrap_or(&chunk[0]);
            let highest = *chunk.iter().max_by(|a, b| a[1].total_cmp(&b[1])).unwrap_or(&chunk[0]);
            if lowest[0] <= highest[0] { [lowest, highest] } else { [highest, lowest] }
        })
        .collect()
}

/// Opens an SVG element of class `chart`, with style and background if it stands alone.
pub(crate) fn open(title: &str, width: f64, height: f64, target: Target) -> String {
    let title = escaped(title);
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}""#
    );
    match target {
        Target::Inline => svg.push('>'),
        Target::Standalone => {
            let (inner_width, inner_height) = (width - 1.0, height - 1.0);
            let _ = write!(
                svg,
                r#" width="{width}" height="{height}"><style>{CHART_CSS}</style><rect class="sheet" x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="8"/>"#
            );
        }
    }
    svg
}

/// A text element.
pub(crate) fn text(svg: &mut String, class: &str, [x, y]: [f64; 2], anchor: &str, text: &str) {
    let text = escaped(text);
    let _ = write!(
        svg,
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
    );
}

/// Text as it stands in XML: markup escaped, control characters that XML forbids left out.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            '\u{fffe}' | '\u{ffff}' => {}
            _ if c.is_control() => {}
            _ => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[[f64; 2]]) -> LineChart {
        LineChart {
            series: vec![Series::new("a", Colour::Blue, points.to_vec())],
            ..LineChart::default()
        }
    }

    #[test]
    fn a_point_lands_where_its_value_says() {
        let chart = line(&[[0.0, 0.0], [10.0, 1.0]]);
        let frame = chart.frame().expect("data");
        assert_eq!(frame.place([0.0, 0.0]), [LEFT, HEIGHT - BOTTOM]);
        assert_eq!(frame.place([10.0, 1.0]), [WIDTH - RIGHT, TOP]);
        assert!(chart.svg(Target::Inline).contains("d=\"M58.0 246.0L518.0 66.0\""));
    }

    #[test]
    fn values_that_are_not_finite_leave_a_gap() {
        let chart = line(&[[0.0, 0.0], [1.0, 1.0], [2.0, f64::NAN], [3.0, 1.0], [4.0, 0.0]]);
        let path = chart.frame().expect("data").line_path(&chart.series[0].points);
        assert_eq!(path.matches('M').count(), 2);
        assert!(!chart.svg(Target::Inline).contains("NaN"));
    }

    #[test]
    fn no_finite_point_says_no_data() {
        for points in [&[][..], &[[0.0, f64::NAN]]] {
            assert!(line(points).svg(Target::Inline).contains("no data"));
        }
    }

    #[test]
    fn smoothing_by_hand() {
        let points = [[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [3.0, f64::NAN], [4.0, 8.0]];
        let series = Series::new("a", Colour::Blue, points.to_vec()).smoothed(3);
        let ys: Vec<f64> = series.points.iter().map(|p| p[1]).collect();
        // The ends have one neighbour; at 2 one is missing and left out.
        assert_eq!(ys[..3], [2.0, 4.0 / 3.0, 1.5]);
        assert!(ys[3].is_nan());
        assert_eq!(ys[4], 8.0);
        assert_eq!(series.raw[..3], points[..3]);
    }

    #[test]
    fn thinning_keeps_the_peak() {
        let mut points: Vec<[f64; 2]> = (0..50_000).map(|i| [f64::from(i), 0.0]).collect();
        points[31_234][1] = 5.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS + 2, "{}", thin.len());
        assert!(thin.contains(&[31_234.0, 5.0]));
        assert!(thin.is_sorted_by(|a, b| a[0] <= b[0]));
    }

    #[test]
    fn end_labels_do_not_overlap() {
        let mut chart = line(&[[0.0, 0.0], [1.0, 0.5]]);
        chart.series.push(Series::new("b", Colour::Red, vec![[0.0, 0.0], [1.0, 0.501]]));
        let mut svg = String::new();
        chart.end_labels(&mut svg, &chart.frame().expect("data"));
        let ys: Vec<f64> = svg
            .match_indices("<text")
            .map(|(at, _)| {
                let y = &svg[at..][svg[at..].find(" y=\"").expect("y") + 4..];
                y[..y.find('"').expect("end")].parse().expect("a number")
            })
            .collect();
        assert!(ys[1] - ys[0] >= 13.9, "{ys:?}");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("<a href=\"x\">&'\u{1}"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    }
}
