//! LaTeX made plain: boxes opened, units, quotes, dollars and synonyms gone, arguments braced.

use std::borrow::Cow;
use std::sync::LazyLock;

use fancy_regex::Regex;

/// Longest LaTeX that is read, in bytes.
pub(crate) const MAX_LENGTH: usize = 3_000;

/// Which boxes count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boxes {
    /// Each of them.
    All,
    /// The last, and those before it that stand close by.
    Last,
}

type Rule = (Regex, &'static str);

fn rules(pairs: &[(&str, &'static str)]) -> Vec<Rule> {
    let rule = |(pattern, with): &(&str, &'static str)| {
        (Regex::new(pattern).expect("the pattern is valid"), *with)
    };
    pairs.iter().map(rule).collect()
}

static BASIC: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        (
            r"\\m?(?:left|right)(\\\{|\{|\\\}|\}|\\\||\||\[|\]|\(|\)|\\[lr]?(?:group|brace|brack|vert|ceil|floor|angle)\b)",
            "$1",
        ),
        (r"\(([a-zA-Z0-9+\-*/\\ ]+?)\)_\{([a-zA-Z0-9+\-*/\\ ]+?)\}", r"\frac{($1)!}{(($1)-($2))!}"),
        (r#"\\mathrm\{th\}|\\!\s*|\\text\s*\{\s*\}|\\\$|\$|(?<!\\)["']|\\displaystyle"#, ""),
        (r"\\math(?:rm|it|bf)", r"\text"),
        (r"\\text(?:normal|bf|it|rm)", r"\text"),
        (r"\\(?:d|t|c)frac", r"\frac"),
        (r"\s\.", " 0."),
        (r"\{\.", "{0."),
        (r"~=", r"\approx"),
        (r"\s*\{\s*,\s*\}", ","),
        (r",?\s*\\text\{\s*(?:and|or)\s*\}", ","),
        (r"(?<![a-zA-Z]),?\s*(?:and|or)(?![a-zA-Z])", ","),
        (r"(?<!\\)\\\s", " "),
        (r"(?<!\\)infinity", r"\infty"),
        (r",?\\ldots", " "),
        (r"\\text\{(?:percent|percentage|pct)\}", "%"),
        (r"\s*\b(?:percentage|percent|pct)\b", r"\%"),
        (r"(?<!\\)inf(?!inity|ty)", r"\infty"),
        (r" sqrt", r"\sqrt"),
        (r"[\n\t]", " "),
    ])
});

static OPERATORS: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        (r"\^\s?\((.*?)\)", "^{$1}"),
        (r"\\?sqrt\s?\((.*?)\)", r"\sqrt{$1}"),
        (r"\\frac\s?([0-9])\s?([0-9]+)", r"\frac{$1}{$2}"),
        (r"\\log_\s?([0-9])\s?([0-9]+)", r"\log_{$1}{$2}"),
        (r"\\frac\s?\{(.*?)\}\s?([0-9])", r"\frac{$1}{$2}"),
        (r"\\frac\s?([0-9])\s?\{(.*?)\}", r"\frac{$1}{$2}"),
        (r"\\sqrt\s?([0-9])", r"\sqrt{$1}"),
    ])
});

static SPACES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\s{2,}").expect("the pattern is valid"));
static DOUBLED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\\\\(?=[a-zA-Z])").expect("the pattern is valid"));

/// Units of measure and things counted that are dropped from the end of an answer.
const UNITS: &[&str] = &[
    "acre",
    "am",
    "apple",
    "are",
    "c",
    "cc",
    "cent",
    "children ticket",
    "cm",
    "cm 2",
    "coin",
    "cu cm",
    "cu . m",
    "cube",
    "cubic",
    "d",
    "day",
    "decrease",
    "deg",
    "degree",
    "digit",
    "dm",
    "east",
    "edge",
    "excess",
    "feet",
    "ft",
    "g",
    "gain",
    "gal",
    "gallon",
    "gm",
    "h",
    "hectare",
    "hour",
    "hr",
    "inch",
    "inches",
    "increase",
    "integerpoint",
    "kg",
    "km",
    "kmh",
    "kmph",
    "l",
    "lb",
    "less",
    "liter",
    "litre",
    "loss",
    "lt",
    "m",
    "m east",
    "m square",
    "man",
    "mark",
    "meal",
    "men",
    "meter",
    "metre",
    "mile",
    "min",
    "minute",
    "mm",
    "monkey",
    "month",
    "more",
    "mp",
    "mph",
    "mt",
    "mtr",
    "multiple",
    "no change",
    "noon",
    "number",
    "o",
    "ohm",
    "per",
    "pie",
    "pi sq m",
    "pm",
    "pound",
    "prime",
    "profit",
    "pure",
    "ratio",
    "rd",
    "rise",
    "rounds",
    "rs",
    "rs .",
    "rupee",
    "s",
    "sec",
    "second",
    "soldier",
    "sq",
    "sq inch",
    "sq m",
    "sq . m",
    "square",
    "st",
    "student",
    "t",
    "th",
    "tile",
    "toy",
    "unit",
    "way",
    "west",
    "woman",
    "women",
    "yard",
    "year",
    "yr",
];

static UNIT: LazyLock<Regex> = LazyLock::new(|| {
    let units = UNITS.join("|");
    let pattern = format!(r"([0-9]|\}}|\s)\s*(?:{units})(?:s|es)?\s*$");
    Regex::new(&pattern).expect("the pattern is valid")
});

/// The plain form of `text`; `None` where it is too long to be an answer.
pub(crate) fn normalize(text: &str, boxes: Boxes) -> Option<String> {
    if text.len() > 20 * MAX_LENGTH {
        return None;
    }
    let text = open_boxes(text, boxes);
    if text.len() > MAX_LENGTH {
        return None;
    }
    let mut text = replaced(&SPACES, &text, " ");
    for (from, to) in [(r"\mathrm{T}", "T"), (r"\mathrm{d}", "d"), (r"{\rm d}", "d")] {
        text = text.replace(from, to);
    }
    for (pattern, with) in BASIC.iter() {
        text = replaced(pattern, &text, with);
    }
    if !text.contains("matrix") && !text.contains("{array}") {
        text = replaced(&DOUBLED, &text, r"\");
    }
    text = without_units(text);
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    for (pattern, with) in OPERATORS.iter() {
        text = replaced(pattern, &text, with);
    }
    Some(text)
}

fn replaced(pattern: &Regex, text: &str, with: &str) -> String {
    match pattern.replace_all(text, with) {
        Cow::Borrowed(same) => same.to_owned(),
        Cow::Owned(changed) => changed,
    }
}

fn without_units(mut text: String) -> String {
    if let Some(cut) = without_text_unit(&text).map(str::len) {
        text = text[..cut].trim().to_owned();
    }
    for _ in 0..2 {
        let shorter = replaced(&UNIT, &text, "$1");
        if !shorter.is_empty() {
            text = shorter;
        }
    }
    text
}

/// The text before the first `\text{` or `\mbox{`, where the text ends in its braces, with or
/// without a power: `5 \text{ cm}^2`. Nothing is cut from a text that is all unit.
fn without_text_unit(text: &str) -> Option<&str> {
    let start = [r"\text{", r"\mbox{"].iter().filter_map(|command| text.find(command)).min()?;
    let bytes = text.as_bytes();
    let power = matches!(bytes, [.., b'}', b'^', digit] if digit.is_ascii_digit());
    (power || text.ends_with('}')).then_some(())?;
    let before = &text[..start];
    (!before.trim().is_empty()).then_some(before)
}

/// The contents of the boxes, joined by commas; the text itself where there are none.
fn open_boxes(text: &str, boxes: Boxes) -> String {
    let mut found: Vec<&str> = Vec::new();
    let mut until = text.len();
    let mut previous: Option<usize> = None;
    for start in boxes_from_the_end(text) {
        let command = if text[start..].starts_with(r"\boxed") { 6 } else { 5 };
        let after = text[start + command..until].trim_start();
        let open = until - after.len();
        let Some(inside) = after.strip_prefix('{') else {
            if found.is_empty() && !after.is_empty() {
                found.push(after);
            }
            break;
        };
        let Some(length) = closing_brace(inside) else {
            if found.is_empty() {
                found.push(after);
            }
            break;
        };
        let content = inside[..length].trim();
        let end = open + 1 + length;
        if let (Boxes::Last, Some(next)) = (boxes, previous)
            && !belongs(&text[end + 1..next], content, found.last())
        {
            break;
        }
        if found.last() != Some(&content) {
            found.push(content);
        }
        previous = Some(start);
        until = start;
    }
    if found.is_empty() {
        return text.to_owned();
    }
    found.reverse();
    found.join(",")
}

fn boxes_from_the_end(text: &str) -> Vec<usize> {
    let mut starts: Vec<usize> = [r"\boxed", r"\fbox"]
        .iter()
        .flat_map(|command| text.match_indices(command))
        .map(|(start, _)| start)
        .collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    starts
}

/// Where the brace that was opened before `text` closes.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1;
    text.bytes().position(|b| {
        open += i64::from(b == b'{') - i64::from(b == b'}');
        open == 0
    })
}

/// Whether a box before another is part of the same answer.
fn belongs(between: &str, content: &str, next: Option<&&str>) -> bool {
    let length = between.chars().count();
    let separated = || {
        between.contains([',', ';'])
            || between
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "and" || word == "or")
    };
    length < 10 || (next.is_none_or(|next| *next != content) && length < 70 && separated())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        normalize(text, Boxes::All).expect("short enough")
    }

    #[test]
    fn boxes_by_hand() {
        assert_eq!(plain(r"so \boxed{ \frac{1}{2} }."), r"\frac{1}{2}");
        assert_eq!(plain(r"\boxed{1}\boxed{2}"), "1,2");
        let apart = r"\boxed{1} and then, after a long while of thinking about it again and once more, \boxed{2}";
        assert_eq!(normalize(apart, Boxes::Last).as_deref(), Some("2"));
    }

    #[test]
    fn units_and_synonyms_by_hand() {
        assert_eq!(plain(r"15\mbox{ cm}^2"), "15");
        assert_eq!(plain("5 cm"), "5");
        assert_eq!(plain(r"\text{Evelyn}"), r"\text{Evelyn}");
        assert_eq!(plain("28 percent"), r"28\%");
        assert_eq!(plain(r"\left( \dfrac12 \right)"), r"( \frac{1}{2} )");
        assert_eq!(plain(r"12\text{ and }13"), "12,13");
    }
}
