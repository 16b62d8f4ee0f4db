//! The leaves of broken JSON: quoted keys and texts, numbers, unquoted words.

use std::borrow::Cow;

use python::json::Json;
use python::text::{is_space, strip};

use super::{Inside, Reader, closing, is_quote};

impl<'a> Reader<'a> {
    /// A key in quotes; a quote within it is one that no colon follows.
    pub(super) fn quoted_key(&mut self, open: char) -> Cow<'a, str> {
        self.skip_while(|c| c == open);
        let (start, close) = (self.at, closing(open));
        while let Some(found) = self.rest().find([close, ':']) {
            self.at += found;
            let end = self.at;
            self.skip();
            let next = self.after_blank(self.at);
            let c = self.text[end..].chars().next();
            let is_end = if c == Some(':') {
                next.is_some_and(is_quote)
            } else {
                matches!(next, None | Some(':' | '[' | '"' | '\'' | '}' | '0'..='9'))
                    || next == Some(',') && self.is_comma_for_colon(close)
                    || matches!(next, Some(';' | ',' | ']')) && self.is_before_list()
            };
            if is_end {
                let key = self.text[start..end].trim_end_matches(|c| c == ':' || is_space(c));
                if c == Some(':') {
                    self.at = end;
                } else if self
                    .rest()
                    .strip_prefix(close)
                    .is_some_and(|rest| rest.trim_start().starts_with(':'))
                {
                    self.skip();
                }
                return unescaped(key);
            }
        }
        self.dead_ends += 1;
        let key = &self.text[start..];
        let end = key.find(':').unwrap_or(key.len());
        self.at = start + end;
        unescaped(&key[..end])
    }

    /// Whether a list follows the character here, which should have been a colon.
    fn is_before_list(&self) -> bool {
        let rest = self.rest().trim_start_matches(is_space);
        let after = rest.get(1..).unwrap_or_default();
        after.trim_start_matches(is_space).starts_with('[')
    }

    /// Whether a value follows the comma here, which should have been a colon.
    pub(super) fn is_comma_for_colon(&self, close: char) -> bool {
        let rest = self.rest().trim_start_matches(|c| c == ',' || is_space(c));
        let Some(value) = rest.strip_prefix(close) else {
            return false;
        };
        value.find(close).is_some_and(|end| {
            let after = value[end + close.len_utf8()..].trim_start_matches(is_space);
            after.is_empty() || after.starts_with('}')
        })
    }

    /// A text in quotes; a quote within it is one that nothing follows which could come next.
    pub(super) fn quoted(&mut self, open: char, inside: Inside) -> Cow<'a, str> {
        self.skip();
        let close = closing(open);
        if self.rest().starts_with(close) && !self.ends_value(self.at + close.len_utf8(), inside) {
            self.skip();
        }
        let start = self.at;
        let mut num_inner = 0;
        while let Some(found) = self.rest().find([close, '\\']) {
            let end = self.at + found;
            self.at = end;
            let is_escape = self.peek() == Some('\\');
            self.skip();
            if is_escape {
                self.skip();
                continue;
            }
            // A quote opened within the text is closed before the text is.
            let closes_inner = num_inner % 2 == 1
                && inside == Inside::Object
                && matches!(self.after_blank(self.at), None | Some('}' | ']'));
            let is_colon_within = num_inner > 0 && self.after_blank(self.at) == Some(':');
            if closes_inner && self.is_before_line_break() {
                return unescaped(&self.text[start..self.at]);
            }
            if self.ends_value(self.at, inside) && !closes_inner && !is_colon_within {
                self.skip_while(|c| c == close);
                return unescaped(&self.text[start..end]);
            }
            num_inner += 1;
            if inside == Inside::Object
                && num_inner == 1
                && let Some(text) = self.unclosed(start, end, close)
            {
                return text;
            }
        }
        self.dead_ends += 1;
        let text = &self.text[start..];
        if let Some(comma) = text.find(',')
            && inside == Inside::Object
            && num_inner == 0
            && text[comma..].contains(':')
        {
            self.at = start + comma;
            return unescaped(&text[..comma]);
        }
        if let Some(bracket) = text.find(']')
            && inside == Inside::List
        {
            self.at = start + bracket;
            return unescaped(strip_end(&text[..bracket]));
        }
        self.at = self.text.len();
        unescaped(text.trim_end_matches(|c| matches!(c, '}' | ']') || is_space(c)))
    }

    /// Whether white space with a line break in it comes next.
    fn is_before_line_break(&self) -> bool {
        let spaces = self.rest().chars().take_while(|c| is_space(*c));
        spaces.into_iter().any(|c| c == '\n')
    }

    /// Whether the text at `after` can follow a value.
    fn ends_value(&self, after: usize, inside: Inside) -> bool {
        match self.after_blank(after) {
            None | Some(',' | '}' | ']' | ';' | '{') => true,
            Some(':') if inside == Inside::Object => {
                let rest = self.text[after..].trim_start_matches(is_space);
                rest[1..].trim_start_matches(is_space).starts_with(is_quote)
            }
            Some(':' | ')') => inside == Inside::List,
            Some('/' | '#') => true,
            Some(c) => inside == Inside::List || is_quote(c),
        }
    }

    /// The text from `start` on if the quote at `end` begins the next key, its own quote left out.
    fn unclosed(&mut self, start: usize, end: usize, close: char) -> Option<Cow<'a, str>> {
        let after = &self.text[end + close.len_utf8()..];
        let key_end = after.find(close)?;
        let is_key = self.after_blank(end + key_end + 2 * close.len_utf8()) == Some(':');
        let before = self.text[start..end].trim_end_matches(is_space);
        if !is_key || !before.ends_with([',', '{']) {
            return None;
        }
        let text = before.trim_end_matches(|c| matches!(c, ',' | '{' | '}') || is_space(c));
        self.at = start + text.len();
        Some(unescaped(text))
    }

    pub(super) fn number(&mut self, inside: Inside) -> Json<'a> {
        let start = self.at;
        // A list that lost its brackets is one text, if there is no space in it.
        let separates = |c: char| c == ',' && inside == Inside::Object;
        let is_part = |c: char| matches!(c, '-' | '+' | '.' | '_' | '/' | 'e' | 'E');
        self.skip_while(|c| c.is_ascii_digit() || is_part(c) || separates(c));
        if self.peek().is_some_and(char::is_alphabetic) {
            self.at = start;
            return self.word(inside);
        }
        let token = &self.text[start..self.at];
        let token = token.strip_suffix(['e', 'E', '-', '/', '+', ',']).unwrap_or(token);
        self.at = start + token.len().max(1);
        let plain = token.trim_start_matches('+');
        let plain = match plain.contains('_') {
            true => plain.replace('_', "").into(),
            false => plain.into(),
        };
        number(plain).unwrap_or(Json::Text(Cow::Borrowed(token)))
    }

    /// Goes to the end of a value without quotes; a comma or apostrophe in its midst is part of it.
    fn skip_word(&mut self, inside: Inside) {
        let is_listed = inside == Inside::List;
        let ends = |c: char| {
            is_quote(c) || matches!(c, ',' | '}' | ']' | ')' | '[' | '{') || c == ':' && !is_listed
        };
        loop {
            self.skip_while(|c| !ends(c));
            let is_escaped = self.text[..self.at].ends_with('\\');
            let goes_on = match self.peek() {
                Some('\'') => {
                    let next = self.rest()[1..].chars().next();
                    next.is_some_and(char::is_alphanumeric)
                }
                Some('"') if is_escaped => true,
                Some('"') if is_listed => {
                    !matches!(self.after_blank(self.at + 1), None | Some(',' | '}' | ']'))
                }
                Some(',') if inside == Inside::Object => !self.is_before_key(self.at + 1),
                _ => false,
            };
            if !goes_on {
                return;
            }
            self.skip();
        }
    }

    /// Whether a key or an object comes next, not more of a text.
    fn is_before_key(&self, at: usize) -> bool {
        match self.after_blank(at) {
            None => true,
            Some(c) if is_quote(c) || matches!(c, '{' | '}' | ']' | '/' | '#' | ',') => true,
            Some(_) => {
                let stop = self.text[at..].find([':', ',', '}', ']', '"', '\'']);
                stop.is_some_and(|stop| self.text[at + stop..].starts_with([':', '"']))
            }
        }
    }

    /// A value without quotes.
    pub(super) fn word(&mut self, inside: Inside) -> Json<'a> {
        let start = self.at;
        self.skip_word(inside);
        let word = strip(&self.text[start..self.at]);
        if let Some(quote) = self.peek().filter(|c| is_quote(*c))
            && inside != Inside::Text
            && self.ends_value(self.at + quote.len_utf8(), inside)
        {
            self.skip();
        }
        match word.to_ascii_lowercase().as_str() {
            "true" => Json::Bool(true),
            "false" => Json::Bool(false),
            "null" | "none" => Json::Null,
            _ => Json::Text(unescaped(word)),
        }
    }
}

/// The number that Python reads.
fn number(text: Cow<'_, str>) -> Option<Json<'_>> {
    let digits = text.strip_prefix('-').unwrap_or(&text);
    if digits.is_empty() || digits.starts_with(['-', '+']) {
        return None;
    }
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Json::Number);
    }
    Some(Json::Integer(match digits.trim_start_matches('0') {
        significant if significant.len() == digits.len() => text,
        significant => {
            let sign = if digits.len() < text.len() { "-" } else { "" };
            let significant = if significant.is_empty() { "0" } else { significant };
            format!("{sign}{significant}").into()
        }
    }))
}

/// A text with its escapes resolved; a backslash before anything else stays.
fn unescaped(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find('\\') else {
        return Cow::Borrowed(text);
    };
    let mut read = text[..first].to_owned();
    let mut rest = &text[first..];
    while let Some(c) = rest.chars().next() {
        let escape = rest.get(..2).filter(|_| c == '\\').and_then(escape);
        read.push(escape.unwrap_or(c));
        rest = &rest[if escape.is_some() { 2 } else { c.len_utf8() }..];
    }
    Cow::Owned(read)
}

fn escape(pair: &str) -> Option<char> {
    Some(match pair {
        r"\n" => '\n',
        r"\t" => '\t',
        r"\r" => '\r',
        r"\b" => '\u{8}',
        r"\f" => '\u{c}',
        r#"\""# => '"',
        r"\'" => '\'',
        r"\\" => '\\',
        r"\/" => '/',
        _ => return None,
    })
}

fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}
