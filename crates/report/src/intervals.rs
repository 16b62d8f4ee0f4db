//! Scores side by side: a dot for each mean and a bar for its interval.

use std::fmt::Write;

use crate::axis::Axis;
use crate::stats::Interval;
use crate::svg::{Colour, Target, open, text};

/// One score of an [`IntervalChart`].
#[derive(Clone, Debug, PartialEq)]
pub struct IntervalRow {
    /// Whose score it is.
    pub label: String,
    /// The score.
    pub interval: Interval,
    /// Colour of dot and bar.
    pub colour: Colour,
}

/// Scores with their 95 % intervals on one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct IntervalChart {
    /// What is shown.
    pub title: String,
    /// What the scores measure.
    pub x_label: String,
    /// The scores, from the top.
    pub rows: Vec<IntervalRow>,
}

const WIDTH: f64 = 640.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 62.0;
const ROW: f64 = 30.0;

impl IntervalChart {
    /// The chart as SVG text.
    pub fn svg(&self, target: Target) -> String {
        let bottom = TOP + ROW * self.rows.len() as f64;
        let mut svg = open(&self.title, WIDTH, bottom + 34.0, target);
        text(&mut svg, "title", [16.0, 26.0], "start", &self.title);
        text(&mut svg, "", [16.0, 45.0], "start", &self.x_label);
        let high = self.rows.iter().map(|row| row.interval.high);
        let low = self.rows.iter().map(|row| row.interval.low);
        let axis = Axis::around(low.fold(0.0, f64::min), high.fold(0.0, f64::max), 5);
        let place = |value| LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT);
        for tick in axis.ticks() {
            let x = place(tick);
            let _ = write!(svg, r#"<path class="grid" d="M{x:.1} {TOP}V{bottom}"/>"#);
            let label = axis.label(tick);
            text(&mut svg, "", [x, bottom + 18.0], "middle", &label);
        }
        for (index, row) in self.rows.iter().enumerate() {
            let y = TOP + ROW * (index as f64 + 0.5);
            let colour = row.colour.css();
            let [low, mean, high] =
                [row.interval.low, row.interval.mean, row.interval.high].map(place);
            text(&mut svg, "row", [LEFT - 12.0, y + 4.0], "end", &row.label);
            let _ = write!(
                svg,
                r#"<path class="line" style="stroke:{colour}" d="M{low:.1} {y}H{high:.1}"/><circle cx="{mean:.1}" cy="{y}" r="5" style="fill:{colour}"/>"#
            );
            let value = row.interval.to_string();
            let at = [WIDTH - 16.0, y + 4.0];
            text(&mut svg, "row", at, "end", &value);
        }
        svg + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_runs_from_low_to_high() {
        let chart = IntervalChart {
            title: "t".to_owned(),
            x_label: "IoU".to_owned(),
            rows: vec![IntervalRow {
                label: "a".to_owned(),
                interval: Interval { mean: 0.5, low: 0.25, high: 1.0, num_values: 4 },
                colour: Colour::Blue,
            }],
        };
        let svg = chart.svg(Target::Inline);
        // The axis is 0 to 1 over 250 px from 210.
        assert!(svg.contains("d=\"M272.5 77H460.0\""), "{svg}");
        assert!(svg.contains("cx=\"335.0\""), "{svg}");
        assert!(svg.contains("0.500 [0.250, 1.000]"), "{svg}");
    }
}
