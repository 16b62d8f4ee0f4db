//! One axis: round tick values that enclose the data, and how to write them.

/// Ticks at multiples of a round step, the first and last at or beyond the data.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    pub(crate) low: f64,
    pub(crate) high: f64,
    step: f64,
}

impl Axis {
    /// An axis over `low..=high` in about `intervals` steps.
    pub(crate) fn around(low: f64, high: f64, intervals: usize) -> Self {
        let (low, high) = spread(low, high);
        let step = round_step((high - low) / intervals as f64);
        // Without the slack, 0.3 / 0.1 = 2.9999999999999996 would add an empty interval.
        let slack = 1e-9;
        Self {
            low: (low / step + slack).floor() * step,
            high: (high / step - slack).ceil() * step,
            step,
        }
    }

    /// An axis that ends where the data end, with ticks inside.
    pub(crate) fn exactly(low: f64, high: f64, intervals: usize) -> Self {
        let (low, high) = spread(low, high);
        let step = round_step((high - low) / intervals as f64);
        Self { low, high, step }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high end.
    pub(crate) fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Tick values, rising.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step - 1e-9).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * self.step).collect()
    }

    /// A tick as text, with the decimals that the step needs.
    pub(crate) fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if largest < 1e-3 || self.step >= 1e6 {
            return if tick == 0.0 {
                "0".to_owned()
            } else {
                format!("{tick:.1e}").replace(".0e", "e")
            };
        }
        let decimals = (0..6)
            .find(|&d| {
                let scaled = self.step * 10f64.powi(d);
                (scaled - scaled.round()).abs() < 1e-6
            })
            .unwrap_or(6);
        grouped(&format!("{tick:.*}", decimals as usize))
    }
}

/// Equal ends are moved apart, so that a flat line lies in the middle.
fn spread(low: f64, high: f64) -> (f64, f64) {
    if high > low && (high - low) > 1e-12 * low.abs().max(high.abs()) {
        return (low, high);
    }
    let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    (low - margin, high + margin)
}

/// The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let fraction = step / power;
    let round =
        [1.0, 2.0, 2.5, 5.0].into_iter().find(|&r| fraction <= r * (1.0 + 1e-9)).unwrap_or(10.0);
    round * power
}

/// `12345.5` as `12,345.5`.
fn grouped(number: &str) -> String {
    let (sign, rest) = number.split_at(usize::from(number.starts_with('-')));
    let (whole, fraction) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
    let mut text = sign.replace('-', "\u{2212}");
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

/// A value as the end label of a curve: three significant digits or so.
pub(crate) fn short_number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        0.0 => "0".to_owned(),
        _ if !(1e-3..1e6).contains(&size) => format!("{value:.1e}"),
        _ if size < 1.0 => format!("{value:.3}"),
        _ if size < 10.0 => format!("{value:.2}"),
        _ if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    if text.contains('e') { text } else { grouped(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_data() {
        let axis = Axis::around(0.13, 0.87, 5);
        assert_eq!((axis.low, axis.high), (0.0, 1.0));
        let labels: Vec<String> = axis.ticks().iter().map(|&t| axis.label(t)).collect();
        assert_eq!(labels, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }

    #[test]
    fn an_exact_end_adds_no_interval() {
        let axis = Axis::around(0.0, 0.3, 3);
        assert_eq!(axis.ticks().len(), 4);
        assert_eq!(axis.label(axis.high), "0.3");
    }

    #[test]
    fn flat_data_gets_room() {
        for flat in [2.0, -2.0, 0.0] {
            let place = Axis::exactly(flat, flat, 4).place(flat);
            assert!((place - 0.5).abs() < 1e-12, "{flat}: {place}");
        }
    }

    #[test]
    fn large_and_small_values_are_readable() {
        let large = Axis::around(0.0, 20_000.0, 4);
        assert_eq!(large.label(large.high), "20,000");
        let small = Axis::around(0.0, 4e-5, 4);
        assert_eq!(small.label(small.high), "4e-5");
        let negative = Axis::around(-1500.0, 0.0, 3);
        assert_eq!(negative.label(negative.low), "\u{2212}1,500");
        assert_eq!(Axis::around(0.0, 1.0, 4).label(0.25), "0.25");
    }

    #[test]
    fn end_labels_have_three_digits() {
        let texts = [0.0, 0.5, 2.71499, -27.1499, 271.499, 27149.9, 3.1e-5].map(short_number);
        assert_eq!(texts, ["0", "0.500", "2.71", "\u{2212}27.1", "271", "27,150", "3.1e-5"]);
    }
}
