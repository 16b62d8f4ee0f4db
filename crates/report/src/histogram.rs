//! Histograms: counts in bins of equal width, and their bars as SVG.

use std::fmt::Write;

use crate::axis::short_number;
use crate::svg::{Colour, Target, open, text};

/// Bins of a histogram.
pub const NUM_BINS: usize = 10;

/// Counts of values in [`NUM_BINS`] bins of equal width, or in one where all values are equal.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The lowest value, where the first bin begins.
    pub low: f64,
    /// The highest value, where the last bin ends; it is counted there.
    pub high: f64,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Counts the finite ones of `values`; none where there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let low = finite().reduce(f64::min)?;
        let high = finite().reduce(f64::max)?;
        if low == high {
            let counts = vec![finite().count() as u64];
            return Some(Self { low, high, counts });
        }
        let mut counts = vec![0; NUM_BINS];
        for value in finite() {
            // Halves, because the whole range may be beyond the largest f64.
            let place = (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0);
            let bin = (place * NUM_BINS as f64) as usize;
            counts[bin.min(NUM_BINS - 1)] += 1;
        }
        Some(Self { low, high, counts })
    }
}

/// A histogram under its name.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramChart {
    /// Whose values they are.
    pub title: String,
    /// Their mean and spread, in words.
    pub note: String,
    /// The counts; none where there are no values.
    pub histogram: Option<Histogram>,
    /// Colour of the bars.
    pub colour: Colour,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 190.0;
const SIDE: f64 = 18.0;
const TOP: f64 = 74.0;
const BOTTOM: f64 = 28.0;

impl HistogramChart {
    /// The chart as SVG text.
    pub fn svg(&self, target: Target) -> String {
        let mut svg = open(&self.title, WIDTH, HEIGHT, target);
        text(&mut svg, "title", [SIDE, 26.0], "start", &self.title);
        text(&mut svg, "", [SIDE, 44.0], "start", &self.note);
        let base = HEIGHT - BOTTOM;
        match &self.histogram {
            Some(histogram) => self.bars(&mut svg, histogram, base),
            None => text(&mut svg, "", [WIDTH / 2.0, 110.0], "middle", "no data"),
        }
        let right = WIDTH - SIDE;
        let _ = write!(svg, r#"<path class="axis" d="M{SIDE} {base}H{right}"/>"#);
        svg + "</svg>"
    }

    fn bars(&self, svg: &mut String, histogram: &Histogram, base: f64) {
        let counts = &histogram.counts;
        let highest = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        let step = (WIDTH - 2.0 * SIDE) / NUM_BINS as f64;
        // The one bin of equal values stands in the middle.
        let left = SIDE + step * (NUM_BINS - counts.len()) as f64 / 2.0;
        for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            // So that a bin with one value of many is seen.
            let height = ((base - TOP) * count as f64 / highest).max(1.5);
            let (x, y) = (left + step * bin as f64, base - height);
            let _ = write!(
                svg,
                r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}" rx="1.5" style="fill:{}"/>"#,
                x + 1.0,
                step - 2.0,
                self.colour.css()
            );
            let label = short_count(count);
            text(svg, "", [x + step / 2.0, y - 4.0], "middle", &label);
        }
        let y = base + 17.0;
        if histogram.low == histogram.high {
            let label = short_number(histogram.low);
            return text(svg, "", [WIDTH / 2.0, y], "middle", &label);
        }
        let [low, high] = [histogram.low, histogram.high].map(short_number);
        text(svg, "", [SIDE, y], "start", &low);
        text(svg, "", [WIDTH - SIDE, y], "end", &high);
    }
}

/// A count in at most four characters up to a thousand million: `9999`, `12k`, `1.2M`.
pub fn short_count(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..999_500 => format!("{:.0}k", count as f64 / 1e3),
        999_500..9_950_000 => format!("{:.1}M", count as f64 / 1e6),
        _ => format!("{:.0}M", count as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_where_they_lie() {
        let histogram = Histogram::of(&[0.0, 0.05, 0.55, 1.0, f64::NAN]).expect("values");
        assert_eq!((histogram.low, histogram.high), (0.0, 1.0));
        assert_eq!(histogram.counts, [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        let wide = Histogram::of(&[-1.7e308, 1.7e308]).expect("values");
        assert_eq!(wide.counts, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn equal_values_share_one_bin() {
        let histogram = Histogram::of(&[-1.0; 7]).expect("values");
        assert_eq!(histogram.counts, [7]);
        assert_eq!(Histogram::of(&[]), None);
        assert_eq!(Histogram::of(&[f64::INFINITY]), None);
    }

    #[test]
    fn the_highest_bar_fills_the_chart_and_labels_are_escaped() {
        let chart = HistogramChart {
            title: "<b>".to_owned(),
            note: String::new(),
            histogram: Histogram::of(&[0.0, 1.0, 1.0]),
            colour: Colour::Blue,
        };
        let svg = chart.svg(Target::Inline);
        assert!(svg.contains(r#"y="74.0" width="28.4" height="88.0""#), "{svg}");
        assert!(svg.contains(r#"y="118.0" width="28.4" height="44.0""#), "{svg}");
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("<b>"), "{svg}");
    }

    #[test]
    fn counts_stay_short() {
        let texts = [0, 9_999, 10_000, 999_499, 999_500, 9_949_999, 123_456_789].map(short_count);
        assert_eq!(texts, ["0", "9999", "10k", "999k", "1.0M", "9.9M", "123M"]);
    }
}
