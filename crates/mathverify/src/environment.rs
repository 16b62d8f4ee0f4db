//! LaTeX environments in running text: `$...$`, `$$...$$`, `\(...\)`, `\[...\]`, ` [...] `, and
//! bare `\frac{1}{2}`.

use std::cell::Cell;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

/// Environments that "and", "or" and commas join into one answer.
const MAX_JOINED: usize = 6;

/// Places that are looked at one by one before all are searched.
const NEAR: usize = 8;

/// One environment.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) start: usize,
    /// Behind the delimiter, white space and per cent sign.
    pub(crate) end: usize,
    pub(crate) content: Range<usize>,
    pub(crate) percent: bool,
}

/// A text with the places where environments may end.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    /// Where each of [`CLOSERS`] stands.
    closers: [Vec<usize>; 5],
    /// The one that was returned last: texts are read from the left.
    last: Cell<[usize; 5]>,
}

/// What ends an environment, or shows that it cannot.
const CLOSERS: [&str; 5] = ["$$", "$", r"\]", r"\)", "\n"];

static FRACTION: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"-?[0-9]+(?:[.,][0-9]+)?";
    let pattern = format!(r"\A-?\\frac\{{{number}\}}\{{{number}\}}");
    Regex::new(&pattern).expect("the pattern is valid")
});

static PERCENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\A(?:\\?%|[Pp]ercentage|[Pp]ercent|[Pp]ct)").expect("the pattern is valid")
});

static JOINT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\A(?:,?and|,?or|,)\s*").expect("the pattern is valid"));

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut closers: [Vec<usize>; 5] = Default::default();
        let bytes = text.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            if !matches!(byte, b'$' | b'\\' | b'\n') {
                continue;
            }
            for (places, closer) in closers.iter_mut().zip(CLOSERS) {
                if bytes[at..].starts_with(closer.as_bytes()) {
                    places.push(at);
                }
            }
        }
        Self { text, closers, last: Cell::default() }
    }

    /// The last `count` of the environments found from the left, without overlap; `boxed`: only those
    /// that hold a box.
    pub(crate) fn last(&self, count: usize, boxed: bool) -> Vec<Vec<Found>> {
        if boxed && !self.text.contains(BOX) {
            return Vec::new();
        }
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(offset) = self.text[at..].find(starts_environment) {
            at += offset;
            match self.joined(at, boxed).last() {
                Some(last) => {
                    starts.push(at);
                    at = last.end;
                }
                None => at += self.text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        let last = &starts[starts.len().saturating_sub(count)..];
        last.iter().filter_map(|start| self.at(*start, boxed)).collect()
    }

    /// The environment that begins here, with those joined to it.
    pub(crate) fn at(&self, at: usize, boxed: bool) -> Option<Vec<Found>> {
        let joined: Vec<Found> = self.joined(at, boxed).collect();
        (!joined.is_empty()).then_some(joined)
    }

    fn joined(&self, at: usize, boxed: bool) -> impl Iterator<Item = Found> {
        let next = move |found: &Found| {
            let end = found.end;
            // Most texts do not match, and a search is expensive.
            let may_join = matches!(self.text.as_bytes().get(end)?, b',' | b'a' | b'o');
            let joint = may_join.then(|| JOINT.find(&self.text[end..]))??;
            self.one(end + joint.end(), boxed)
        };
        std::iter::successors(self.one(at, boxed), next).take(MAX_JOINED)
    }

    fn one(&self, at: usize, boxed: bool) -> Option<Found> {
        let rest = &self.text[at..];
        let (content, end) = self
            .delimited(at, rest)
            .filter(|(content, _)| !boxed || holds_box(&self.text[content.clone()]))
            .or_else(|| {
                let may_be = !boxed && rest.strip_prefix('-').unwrap_or(rest).starts_with(r"\frac");
                let fraction = may_be.then(|| FRACTION.find(rest))??;
                let range = at..at + fraction.end();
                Some((range.clone(), range.end))
            })?;
        let after = self.text[end..].trim_start();
        let may_be = after.starts_with(['\\', '%', 'P', 'p']);
        let percent = may_be.then(|| PERCENT.find(after)).flatten();
        let percent = percent.map(|sign| sign.end());
        Some(Found {
            start: at,
            end: self.text.len() - after.len() + percent.unwrap_or(0),
            content,
            percent: percent.is_some(),
        })
    }

    fn delimited(&self, at: usize, rest: &str) -> Option<(Range<usize>, usize)> {
        let before = at.checked_sub(1).map(|before| self.text.as_bytes()[before]);
        let escaped = before == Some(b'\\');
        if !escaped
            && rest.starts_with("$$")
            && let Some(end) = self.closing(0, at + 3).filter(|end| !self.escaped(*end))
        {
            return Some((at + 2..end, end + 2));
        }
        if !escaped && rest.starts_with(r"\[") {
            let end = self.closing(2, at + 3).filter(|end| !self.escaped(*end))?;
            return Some((at + 2..end, end + 2));
        }
        if rest.starts_with('$') && !escaped && !before.is_some_and(|b| b.is_ascii_digit()) {
            let mut end = self.closing(1, at + 1)?;
            while self.escaped(end) {
                end = self.closing(1, end + 1)?;
            }
            let line = self.closing(4, at + 1).unwrap_or(usize::MAX);
            return (end > at + 1 && end < line).then_some((at + 1..end, end + 1));
        }
        if !escaped && rest.starts_with(r"\(") {
            let end = self.closing(3, at + 3).filter(|end| !self.escaped(*end))?;
            let line = self.closing(4, at + 2).unwrap_or(usize::MAX);
            return (end < line).then_some((at + 2..end, end + 2));
        }
        self.bracketed(at, rest)
    }

    /// ` [...] ` on one line, with white space around it.
    fn bracketed(&self, at: usize, rest: &str) -> Option<(Range<usize>, usize)> {
        let space = rest.chars().next().filter(|c| c.is_whitespace())?.len_utf8();
        let inside = rest[space..].strip_prefix('[')?;
        let end = inside.find(['[', ']', '\n'])?;
        let after = inside[end..].strip_prefix(']')?.chars().next()?;
        let start = at + space + 1;
        (end > 0 && after.is_whitespace())
            .then(|| (start..start + end, start + end + 1 + after.len_utf8()))
    }

    /// The first place from `from` on where this closer stands.
    fn closing(&self, closer: usize, from: usize) -> Option<usize> {
        let places = &self.closers[closer];
        let mut last = self.last.get();
        let is_before = |index: usize| places.get(index).is_some_and(|place| *place < from);
        let mut index = last[closer];
        if index > 0 && !is_before(index - 1) || (index..index + NEAR).all(is_before) {
            index = places.partition_point(|place| *place < from);
        } else {
            index += (index..index + NEAR).take_while(|at| is_before(*at)).count();
        }
        last[closer] = index;
        self.last.set(last);
        places.get(index).copied()
    }

    fn escaped(&self, at: usize) -> bool {
        at > 0 && self.text.as_bytes()[at - 1] == b'\\'
    }
}

fn starts_environment(c: char) -> bool {
    matches!(c, '$' | '\\' | '-') || c.is_whitespace()
}

const BOX: &str = r"\boxed{";

fn holds_box(content: &str) -> bool {
    content.len() > BOX.len()
        && content
            .find(BOX)
            .is_some_and(|start| content[start + BOX.len()..].find('}').is_some_and(|end| end > 0))
}
