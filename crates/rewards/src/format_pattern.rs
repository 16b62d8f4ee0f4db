//! The format of a completion as a chain of patterns: whether it matches, and where it stops matching.

use python::text::SPACES;
use regex::Regex;

use crate::explain::Explanation;

/// Consecutive patterns, each with the reason to give where a completion stops matching.
pub(crate) struct FormatPattern {
    /// The first pattern, the first two, and so on.
    prefixes: Vec<(Regex, &'static str)>,
    whole: Regex,
}

impl FormatPattern {
    /// `SPACES` in a pattern is Python's white space, `INTEGERS` and `NUMBERS` are boxes.
    pub(crate) fn new(links: &[(&str, &'static str)]) -> Self {
        let mut pattern = String::from("(?s)");
        let prefixes: Vec<_> = links
            .iter()
            .map(|(link, missing)| {
                pattern += &filled(link);
                (compiled(&pattern), *missing)
            })
            .collect();
        Self { whole: compiled(&pattern), prefixes }
    }

    /// 1 for a completion of this format, else 0.
    pub(crate) fn score(&self, completion: &str) -> f64 {
        f64::from(self.whole.is_match(completion))
    }

    pub(crate) fn explained(&self, completion: &str) -> Explanation {
        let broken = self.prefixes.iter().find(|(prefix, _)| !prefix.is_match(completion));
        let reason = broken.map_or("well-formed", |(_, missing)| missing);
        Explanation {
            score: Some(self.score(completion)),
            reason: reason.to_owned(),
            ..Explanation::default()
        }
    }
}

fn filled(link: &str) -> String {
    let bracket = |number: &str| {
        let rest = format!(",SPACES{number}").repeat(3);
        format!(r"\[{number}{rest}\]")
    };
    link.replace("INTEGERS", &bracket(r"\d+"))
        .replace("NUMBERS", &bracket(r"SPACES-?\d*\.?\d+SPACES"))
        .replace("SPACES", SPACES)
}

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is valid")
}
