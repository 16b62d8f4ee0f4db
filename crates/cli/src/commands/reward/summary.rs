//! What is said of all rows on stderr, in 80 columns.

use std::fmt::Write;
use std::time::Duration;

use base::console::plain_zero;
use report::histogram::{Histogram, short_count};
use report::stats::moments;

use super::tally::{Batches, RewardTally, Tally};

/// Width of the names; longer ones stand on a line of their own.
const NAME: usize = 10;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The summary, each line ended.
pub fn summary(tally: &Tally) -> String {
    let mut text = String::new();
    for reward in &tally.rewards {
        write_scores(&mut text, &reward.name, &reward.scores);
    }
    write_scores(&mut text, "reward", &tally.total);
    if let Some(line) = groups(tally) {
        write_named(&mut text, "groups", &line);
    }
    for (index, slow) in tally.slowest.iter().enumerate() {
        let name = if index == 0 { "slowest" } else { "" };
        let line = format!("{:>9}  {}", duration(slow.time), slow.place);
        write_named(&mut text, name, &line);
    }
    if let Some(line) = what_is_timed(&tally.rewards) {
        write_named(&mut text, "", &line);
    }
    for reward in &tally.rewards {
        if let Some(batches) = &reward.batches {
            write_named(&mut text, &reward.name, &times(batches));
        }
    }
    text
}

/// `name      line`
fn write_named(text: &mut String, name: &str, line: &str) {
    // Writing to a `String` cannot fail, here and below.
    let _ = if name.chars().count() > NAME {
        writeln!(text, "{name}\n{:NAME$}  {line}", "")
    } else {
        writeln!(text, "{name:NAME$}  {line}")
    };
}

fn write_scores(text: &mut String, name: &str, values: &[f64]) {
    write_named(text, name, &statistics(values));
    if let Some(histogram) = Histogram::of(values) {
        write_named(text, "", &bars(&histogram));
    }
}

/// `mean 0.5000  std 0.7071  0.0000 to 1.0000  2 rows`
fn statistics(values: &[f64]) -> String {
    let Some((mean, deviation)) = moments(values) else {
        return "applies to no row".to_owned();
    };
    let deviation = deviation.map_or_else(|| "-".to_owned(), number);
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "mean {}  std {deviation}  {} to {}  {} {}",
        number(mean),
        number(low),
        number(high),
        values.len(),
        if values.len() == 1 { "row" } else { "rows" }
    )
}

/// `[▁        █]  1 0 0 0 0 0 0 0 0 2`: the shape, and the count in each tenth of the range.
fn bars(histogram: &Histogram) -> String {
    if let [_] = histogram.counts[..] {
        return "all equal".to_owned();
    }
    let highest = histogram.counts.iter().copied().max().unwrap_or(1).max(1);
    let bar = |count: &u64| match *count {
        0 => ' ',
        count => {
            let place = count as f64 / highest as f64 * BARS.len() as f64;
            BARS[(place.ceil() as usize).clamp(1, BARS.len()) - 1]
        }
    };
    let shape: String = histogram.counts.iter().map(bar).collect();
    let counts: Vec<String> = histogram.counts.iter().map(|&c| short_count(c)).collect();
    format!("[{shape}]  {}", counts.join(" "))
}

/// How many groups teach nothing; none where rows have no groups.
pub fn groups(tally: &Tally) -> Option<String> {
    let column = tally.group_column.as_ref()?;
    let groups = || tally.groups.values().filter(|group| group.rows > 1);
    let (all, flat) = (groups().count(), groups().filter(|g| g.is_equal).count());
    let single = tally.groups.len() - all;
    let mut line = format!("{all} by `{column}`");
    if all > 0 {
        let share = 100.0 * flat as f64 / all as f64;
        let _ = write!(line, ", {flat} without spread ({share:.1} %)");
        if flat > 0 {
            line.push_str(": they give no gradient");
        }
    }
    if single > 0 {
        let _ = write!(line, "; {single} of one row, not counted");
    }
    Some(line)
}

/// Which rewards the times of single rows are of.
fn what_is_timed(rewards: &[RewardTally]) -> Option<String> {
    let timed = rewards.iter().filter(|reward| reward.batches.is_none());
    let names: Vec<&str> = timed.map(|reward| reward.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    Some(format!("each row alone, by {}", names.join(", ")))
}

fn times(batches: &Batches) -> String {
    let Batches { count, largest, total, longest, longest_from } = batches;
    let (total, longest) = (duration(*total), duration(*longest));
    match count {
        1 => format!("{total} for one batch of {largest} (rows are not timed)"),
        _ => format!(
            "{total} for {count} batches of up to {largest}, longest {longest} from {longest_from}"
        ),
    }
}

/// Four decimals, or an exponent where the number is large.
fn number(value: f64) -> String {
    if value.abs() < 1e4 { format!("{:.4}", plain_zero(value, 4)) } else { format!("{value:.3e}") }
}

/// `12.3 us`, `4.56 ms`, `7.89 s`
pub fn duration(time: Duration) -> String {
    let secs = time.as_secs_f64();
    match secs {
        _ if secs < 1e-3 => format!("{:.1} us", secs * 1e6),
        _ if secs < 1.0 => format!("{:.2} ms", secs * 1e3),
        _ => format!("{secs:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_by_hand() {
        // Squares around 0.5: 4 x 0.25; 1 / 3 = 0.3333, root 0.5774.
        assert_eq!(
            statistics(&[0.0, 0.0, 1.0, 1.0]),
            "mean 0.5000  std 0.5774  0.0000 to 1.0000  4 rows"
        );
        assert_eq!(statistics(&[-2.5e7]), "mean -2.500e7  std -  -2.500e7 to -2.500e7  1 row");
        assert_eq!(statistics(&[]), "applies to no row");
    }

    #[test]
    fn bars_by_hand() {
        let histogram = |values: &[f64]| Histogram::of(values).expect("values");
        let text = bars(&histogram(&[0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]));
        assert_eq!(text, "[▂    ▄   █]  1 0 0 0 0 2 0 0 0 4");
        assert_eq!(bars(&histogram(&[3.0; 9])), "all equal");
        let mut many = vec![0.0; 100_000];
        many.push(1.0);
        assert_eq!(bars(&histogram(&many)), "[█        ▁]  100k 0 0 0 0 0 0 0 0 1");
    }

    #[test]
    fn no_line_is_over_80_columns() {
        let mut tally = Tally::new(vec!["accuracy".into(), "127.0.0.1:8000/score".into()], None);
        let values: Vec<f64> = (0..123_456).map(|n| f64::from(n) - 1e6).collect();
        tally.rewards[1].scores.clone_from(&values);
        tally.total = values;
        for line in summary(&tally).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn times_are_short() {
        let texts = [12_345, 4_560_000, 7_891_000_000].map(Duration::from_nanos).map(duration);
        assert_eq!(texts, ["12.3 us", "4.56 ms", "7.89 s"]);
    }
}
