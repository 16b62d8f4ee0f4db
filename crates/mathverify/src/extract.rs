//! Finds the answer in a text: after "final answer is", in a box, after "answer", or the last LaTeX
//! or number.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::compare::equivalent;
use crate::environment::{Found, Scanner};
use crate::expr::{Expr, Number};
use crate::normalize::{Boxes, normalize};
use crate::parser::parse_latex;
use crate::plain::parse_plain;

/// The answer that a text gives.
#[derive(Default)]
pub struct Answer {
    /// Nothing where no candidate can be parsed.
    meaning: Option<Expr>,
    /// The text of the likeliest candidate.
    text: Option<String>,
}

impl Answer {
    /// Whether `target` equals this answer: by meaning, else as the same text.
    pub fn matches(&self, target: &Self) -> bool {
        let meanings = self.meaning.as_ref().zip(target.meaning.as_ref());
        if meanings.is_some_and(|(gold, target)| equivalent(gold, target)) {
            return true;
        }
        let texts = self.text.as_deref().zip(target.text.as_deref());
        texts.is_some_and(|(gold, target)| {
            let gold = gold.trim();
            !gold.is_empty() && gold == target.trim()
        })
    }
}

/// Candidates of one rank that are parsed before the next rank is tried.
const MAX_TRIES: usize = 24;

/// Occurrences of "answer" that are looked at, from the end.
const MAX_ANCHORS: usize = 32;

/// Bytes at the end of the text in which numbers outside LaTeX are looked for.
const NUMBER_WINDOW: usize = 8_192;

/// Longest arithmetic text, in bytes.
const MAX_PLAIN: usize = 400;

/// A stretch of the text that may be the answer.
pub(crate) struct Candidate {
    start: usize,
    end: usize,
    kind: Kind,
}

enum Kind {
    Latex(Vec<Found>),
    Box,
    Arithmetic(Range<usize>),
    Number { text: String, percent: bool },
}

const SIGNS: &str = r"+\-*×/^()÷";

static ARITHMETIC: LazyLock<[Regex; 2]> = LazyLock::new(|| {
    let any = format!(r"[0-9.\s{SIGNS}]");
    both(&format!(r"(?P<expr>-?\(?-?[0-9]{any}*[{SIGNS}]{any}+\)?)(?:\*\*)?(?:[.,:\s)$]|\z)"))
});

static NUMBER: LazyLock<[Regex; 2]> = LazyLock::new(|| {
    both(concat!(
        r"[$€£¥₹₽₪₩₫฿₡₢₣₤₥₦₧₨₭₮₯₰₱₲₳₴₵₶₷₸₺₻₼₾₿]?",
        r"(?:(?P<i1>-?[1-9][0-9]{0,2}(?:[ ,][0-9]{3})+)(?P<d1>\.[0-9]+)?",
        r"|(?P<i2>-?[0-9]+)(?P<d2>[.,][0-9]+)|(?P<d3>\.[0-9]+)|(?P<i3>-?[0-9]+))",
        r"(?P<percent>\s*(?:%|[Pp]ercentage|[Pp]ercent|[Pp]ct))?"
    ))
});

static HOPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\A\.?\s?I hope").expect("the pattern is valid"));

static ANCHOR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)answer").expect("the pattern is valid"));

/// A pattern as it is found anywhere, and as it is tried at one place.
fn both(body: &str) -> [Regex; 2] {
    let regex = |pattern: String| Regex::new(&pattern).expect("the pattern is valid");
    [regex(format!(r"(?:\A|[\s=])(?:\*\*)?{body}")), regex(format!(r"\A[\s=](?:\*\*)?{body}"))]
}

/// A way to look for answers, the likeliest ways first.
type Rank = fn(&str, &Scanner<'_>, &Anchors) -> Vec<Candidate>;

/// Finds and parses the answer in `text`.
pub fn parse(text: &str) -> Answer {
    let scanner = Scanner::new(text);
    let anchors = Anchors::new(text);
    let ranks: [Rank; 5] = [final_with_hope, final_or_boxed, after_colon, after_word, anywhere];
    let mut answer = Answer::default();
    for rank in ranks {
        let mut candidates = rank(text, &scanner, &anchors);
        candidates.sort_by(|a, b| b.end.cmp(&a.end).then(a.start.cmp(&b.start)));
        for candidate in candidates.iter().take(MAX_TRIES) {
            let (meaning, read) = candidate.read(text);
            if answer.text.is_none() {
                answer.text = read.filter(|text| !text.is_empty());
            }
            if meaning.is_some() {
                answer.meaning = meaning;
                return answer;
            }
        }
    }
    answer
}

/// Ends of "answer" and "final answer" in the text, the last ones only.
struct Anchors {
    words: Vec<usize>,
    finals: Vec<usize>,
}

impl Anchors {
    fn new(text: &str) -> Self {
        let mut words: Vec<usize> = ANCHOR.find_iter(text).map(|found| found.end()).collect();
        words.drain(..words.len().saturating_sub(MAX_ANCHORS));
        let is_final = |end: &&usize| {
            let before = &text.as_bytes()[..**end - "answer".len()];
            before.len() >= 6 && before[before.len() - 6..].eq_ignore_ascii_case(b"final ")
        };
        let finals = words.iter().filter(is_final).copied().collect();
        Self { words, finals }
    }
}

/// "final answer is ... I hope".
fn final_with_hope(text: &str, scanner: &Scanner<'_>, anchors: &Anchors) -> Vec<Candidate> {
    let mut found = Vec::new();
    for &end in &anchors.finals {
        let Some(after) = text[end..].strip_prefix(" is") else {
            continue;
        };
        let at = text.len() - after.strip_prefix(':').unwrap_or(after).len();
        for candidate in stated(text, scanner, at) {
            let hoped = |end: usize| HOPE.is_match(&text[end..]);
            // The suffix of arithmetic may have taken the full stop.
            if hoped(candidate.end) || hoped(trimmed_end(text, candidate.end)) {
                found.push(candidate);
            }
        }
    }
    found
}

fn trimmed_end(text: &str, end: usize) -> usize {
    text[..end].trim_end().trim_end_matches('.').len()
}

/// "final answer ... is", and boxes.
fn final_or_boxed(text: &str, scanner: &Scanner<'_>, anchors: &Anchors) -> Vec<Candidate> {
    let mut found = Vec::new();
    for &end in &anchors.finals {
        found.extend(after_is(text, scanner, end));
    }
    found.extend(scanner.last(MAX_TRIES, true).into_iter().map(latex));
    if let Some(start) = text.find(r"\boxed{")
        && let Some(end) = text.rfind('}').filter(|end| *end > start + 7)
    {
        found.push(Candidate { start, end: end + 1, kind: Kind::Box });
    }
    found
}

/// The first " is" within 100 characters that an answer follows, for each way to write it.
fn after_is(text: &str, scanner: &Scanner<'_>, end: usize) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (offset, _) in text[end..].char_indices().take(101) {
        let rest = &text[end + offset..];
        let spaced = rest.trim_start();
        if spaced.len() == rest.len() || !spaced.starts_with("is") {
            continue;
        }
        let after = spaced[2..].strip_prefix(':').unwrap_or(&spaced[2..]);
        found = stated(text, scanner, text.len() - after.len());
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// LaTeX after white space, and a number or arithmetic behind white space, at one place.
fn stated(text: &str, scanner: &Scanner<'_>, at: usize) -> Vec<Candidate> {
    let spaces = text[at..].len() - text[at..].trim_start().len();
    let last_space = text[at..at + spaces].char_indices().last();
    let last_space = last_space.map(|(offset, _)| at + offset);
    let bracketed = || scanner.at(last_space?, false);
    let environment = scanner.at(at + spaces, false).or_else(bracketed);
    let plain = last_space.and_then(|place| plain_at(text, place));
    environment.map(latex).into_iter().chain(plain).collect()
}

fn after_colon(text: &str, scanner: &Scanner<'_>, anchors: &Anchors) -> Vec<Candidate> {
    let ends = anchors.words.iter();
    let colons = ends.filter(|end| text[**end..].starts_with(':'));
    colons.flat_map(|end| near(text, scanner, end + 1)).collect()
}

fn after_word(text: &str, scanner: &Scanner<'_>, anchors: &Anchors) -> Vec<Candidate> {
    let ends = anchors.words.iter();
    ends.flat_map(|end| near(text, scanner, *end)).collect()
}

/// The first LaTeX and the first number within 50 characters; a number behind the last `=` on the
/// line within 100 goes before.
fn near(text: &str, scanner: &Scanner<'_>, at: usize) -> Vec<Candidate> {
    let places = |count| text[at..].char_indices().take(count).map(move |(i, _)| at + i);
    let mut found = Vec::new();
    found.extend(places(51).find_map(|place| scanner.at(place, false)).map(latex));
    let line_end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    let unequal = |candidate: &Candidate| !text[candidate.end..].trim_start().starts_with('=');
    let here = |place: usize| plain_at(text, place).filter(unequal);
    let mut equals: Vec<usize> =
        places(101).filter(|place| *place < line_end && text[*place..].starts_with('=')).collect();
    equals.reverse();
    let behind = equals.into_iter().find_map(|place| {
        let rest = &text[place + 1..];
        let spaces = rest.len() - rest.trim_start().len();
        let last = rest[..spaces].char_indices().last()?;
        here(place + 1 + last.0)
    });
    let first = || places(51).take_while(|place| *place <= line_end).find_map(here);
    found.extend(behind.or_else(first));
    found
}

/// Every LaTeX, every number.
fn anywhere(text: &str, scanner: &Scanner<'_>, _anchors: &Anchors) -> Vec<Candidate> {
    let last = scanner.last(MAX_TRIES, false);
    let mut found: Vec<Candidate> = last.into_iter().map(latex).collect();
    let mut from = text.len().saturating_sub(NUMBER_WINDOW);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    for captures in last_captures(&ARITHMETIC[0], &text[from..]) {
        found.extend(arithmetic(&captures, from));
    }
    for captures in last_captures(&NUMBER[0], &text[from..]) {
        found.extend(number(&captures, from));
    }
    found
}

/// Of the last matches that are read.
fn last_captures<'a>(pattern: &Regex, text: &'a str) -> Vec<regex::Captures<'a>> {
    let starts: Vec<usize> = pattern.find_iter(text).map(|found| found.start()).collect();
    let last = &starts[starts.len().saturating_sub(MAX_TRIES)..];
    let captures = last.iter().map(|start| pattern.captures_at(text, *start));
    captures.flatten().collect()
}

fn plain_at(text: &str, at: usize) -> Option<Candidate> {
    let mut end = text.len().min(at + MAX_PLAIN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let window = &text[at..end];
    if let Some(captures) = ARITHMETIC[1].captures(window) {
        return arithmetic(&captures, at);
    }
    number(&NUMBER[1].captures(window)?, at)
}

fn latex(found: Vec<Found>) -> Candidate {
    let (first, last) = (&found[0], &found[found.len() - 1]);
    Candidate { start: first.start, end: last.end, kind: Kind::Latex(found) }
}

fn arithmetic(captures: &regex::Captures<'_>, offset: usize) -> Option<Candidate> {
    let (whole, inner) = (captures.get(0)?, captures.name("expr")?);
    Some(Candidate {
        start: offset + whole.start(),
        end: offset + whole.end(),
        kind: Kind::Arithmetic(offset + inner.start()..offset + inner.end()),
    })
}

fn number(captures: &regex::Captures<'_>, offset: usize) -> Option<Candidate> {
    let whole = captures.get(0)?;
    let group = |names: [&str; 3]| {
        let mut found = names.iter().filter_map(|name| captures.name(name));
        found.next().map_or("", |found| found.as_str())
    };
    let integer = group(["i1", "i2", "i3"]).replace([',', ' '], "");
    let integer = match integer.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let decimal = group(["d1", "d2", "d3"]).replace(',', ".");
    Some(Candidate {
        start: offset + whole.start(),
        end: offset + whole.end(),
        kind: Kind::Number {
            text: format!("{integer}{decimal}"),
            percent: captures.name("percent").is_some(),
        },
    })
}

impl Candidate {
    /// Its meaning, and the text that stands for it where it has none.
    fn read(&self, text: &str) -> (Option<Expr>, Option<String>) {
        match &self.kind {
            Kind::Latex(found) => read_latex(text, found),
            Kind::Box => {
                let plain = normalize(&text[self.start..self.end], Boxes::Last);
                (plain.as_deref().and_then(parse_equation), plain)
            }
            Kind::Arithmetic(range) => {
                let inner = &text[range.clone()];
                let meaning = (inner.len() <= MAX_PLAIN).then(|| parse_plain(inner));
                (meaning.flatten(), Some(inner.to_owned()))
            }
            Kind::Number { text, percent } => {
                let number = Number::parse(text).map(Expr::Number);
                let number = number.map(|number| hundredths(number, *percent));
                (number, Some(text.clone()))
            }
        }
    }
}

fn hundredths(expr: Expr, percent: bool) -> Expr {
    if percent && expr.is_value() { Expr::Percent(Box::new(expr)) } else { expr }
}

/// One environment, or several joined by commas and words into a set.
fn read_latex(text: &str, found: &[Found]) -> (Option<Expr>, Option<String>) {
    let mut plain = Vec::new();
    let mut meanings = Vec::new();
    for part in found {
        let Some(normal) = normalize(&text[part.content.clone()], Boxes::All) else {
            return (None, None);
        };
        meanings.push(parse_equation(&normal).map(|expr| hundredths(expr, part.percent)));
        plain.push(normal);
    }
    if meanings.len() > 1 && meanings.iter().all(Option::is_some) {
        let mut items = Vec::new();
        for meaning in meanings.into_iter().flatten() {
            match meaning {
                Expr::Set(inner) => items.extend(inner),
                other => items.push(other),
            }
        }
        return (Some(Expr::Set(items)), Some(plain.join(" and ")));
    }
    (meanings.swap_remove(0), Some(plain.swap_remove(0)))
}

/// LaTeX, or the right side of the last `=` of a chain that cannot be parsed whole.
fn parse_equation(text: &str) -> Option<Expr> {
    parse_latex(text).or_else(|| {
        if text.contains([',', ';']) {
            return None;
        }
        let signs: Vec<usize> = text
            .match_indices('=')
            .map(|(at, _)| at)
            .filter(|at| !text[..*at].ends_with(['\\', '<', '!', '>']))
            .collect();
        let last = *signs.last().filter(|_| signs.len() > 1)?;
        parse_latex(&text[last + 1..])
    })
}
