//! Texts as Python's `str`, `int`, `float` and `re` take them: white space and digits of every
//! script.

use std::sync::LazyLock;

use regex::Regex;

/// Python's `\s*` as a pattern of the crate `regex`, whose `\s` lacks U+001C to U+001F.
pub const SPACES: &str = r"[\s\x1c-\x1f]*";

/// Most digits that `int(text)` takes: `sys.int_info.default_max_str_digits`.
pub(crate) const MAX_INTEGER_DIGITS: usize = 4300;

/// White space as `str.strip` and `\s` of Python have it: Rust's, and U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `float(text)`: white space around it, digits of every script, `_` between digits. `None` where
/// Python raises.
pub fn float(text: &str) -> Option<f64> {
    let text: String = strip(text).chars().map(ascii_digit).collect();
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        let digit =
            |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        digit(at.checked_sub(1)) && digit(Some(at + 1))
    };
    let underscores = text.match_indices('_');
    if !underscores.into_iter().all(|(at, _)| between_digits(at)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// Whether `int(text)` reads it.
pub fn is_integer(text: &str) -> bool {
    let text = strip(text);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let count = digits.chars().filter(|c| *c != '_').count();
    count <= MAX_INTEGER_DIGITS
        && digits
            .split('_')
            .all(|part| !part.is_empty() && part.chars().all(|c| ascii_digit(c).is_ascii_digit()))
}

/// The ASCII digit of a decimal digit of any script; any other character as it is.
pub fn ascii_digit(c: char) -> char {
    if c.is_ascii() {
        return c;
    }
    let runs = &*DIGIT_RUNS;
    let after = runs.partition_point(|(first, _)| *first <= c);
    match after.checked_sub(1).map(|at| runs[at]) {
        // Unicode assigns decimal digits in runs of ten that begin with the zero.
        Some((first, last)) if c <= last => {
            let place = (c as u32 - first as u32) % 10;
            char::from_digit(place, 10).unwrap_or(c)
        }
        _ => c,
    }
}

/// First and last of each stretch of decimal digits beyond ASCII, in order.
static DIGIT_RUNS: LazyLock<Vec<(char, char)>> = LazyLock::new(|| {
    let all: String = ('\u{80}'..=char::MAX).collect();
    let runs = Regex::new(r"\d+").expect("the pattern is valid");
    let ends = |run: &str| run.chars().next().zip(run.chars().next_back());
    runs.find_iter(&all).filter_map(|run| ends(run.as_str())).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_read_as_python_does() {
        assert_eq!(float(" 1_000.5 "), Some(1000.5));
        assert_eq!(float("٣"), Some(3.0));
        assert_eq!(float("1e3"), Some(1000.0));
        assert_eq!(float("-infinity"), Some(f64::NEG_INFINITY));
        assert!(float("nan").is_some_and(f64::is_nan));
        // Letters and signs beyond ASCII were once read as 0, so that `é` equalled `0`.
        for bad in ["", "_1", "1_", "1__0", "0x10", "1,5", "--1", "é", "€5.5"] {
            assert_eq!(float(bad), None, "{bad}");
        }
    }

    #[test]
    fn integers_are_read_as_python_does() {
        for good in ["7", " +1_0 ", "-3", "٣", "\u{1f}5\u{1c}"] {
            assert!(is_integer(good), "{good}");
        }
        for bad in ["", "+", "1_", "_1", "1.0", "a", &"1".repeat(MAX_INTEGER_DIGITS + 1)] {
            assert!(!is_integer(bad), "{bad:.9}");
        }
    }
}
