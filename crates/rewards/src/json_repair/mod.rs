//! Repairs broken JSON: guesses what a model meant.
//!
//! The guesses agree with the Python package json_repair (0.64), by which VLM-R1 reads broken answers: missing
//! or wrong quotes, brackets, commas and colons; text before and after; comments, `...`, tuples,
//! Python's `None` and `True`; output that is cut off. One pass in linear time, with a bound on depth.

mod leaves;

use std::borrow::Cow;

use python::json::Json;
use python::text::{is_space, strip};

/// Nesting beyond which nothing is read.
const MAX_DEPTH: usize = 200;

/// Keys of an object among which a repeated one is looked for.
const MAX_COMPARED: usize = 16;

/// How often the whole text may be searched in vain for the end of a key or text.
const MAX_DEAD_ENDS: usize = 64;

/// What broken text was meant to say;
/// none where there is no list or object in it, or nothing can be made of it.
pub(crate) fn repair(text: &str) -> Option<Json<'_>> {
    let mut reader = Reader { text, at: 0, dead_ends: 0 };
    let mut values: Vec<Json<'_>> = Vec::new();
    let mut is_listed = false;
    while reader.seek_value(&mut is_listed) {
        let value = reader.value(Inside::Text, 0)?;
        match values.last_mut() {
            // Said again, not said as well.
            Some(last) if !is_listed && is_alike(last, &value) => *last = value,
            _ => values.push(value),
        }
        is_listed = false;
    }
    if values.len() > 1 {
        values.retain(|value| !is_empty(value));
    }
    match values.len() {
        0 => None,
        1 => values.pop(),
        _ => Some(Json::List(values)),
    }
}

/// Whether two values have the same keys and lengths.
fn is_alike(a: &Json<'_>, b: &Json<'_>) -> bool {
    match (a, b) {
        (Json::List(a), Json::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_alike(a, b))
        }
        (Json::Object(a), Json::Object(b)) => {
            let pairs = a.iter().zip(b);
            a.len() == b.len() && pairs.into_iter().all(|(a, b)| a.0 == b.0 && is_alike(&a.1, &b.1))
        }
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

fn is_empty(value: &Json<'_>) -> bool {
    match value {
        Json::List(items) => items.is_empty(),
        Json::Object(pairs) => pairs.is_empty(),
        _ => false,
    }
}

/// Where a value stands.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Text,
    List,
    Object,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    dead_ends: usize,
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '“' | '”')
}

/// The quote that ends what `open` begins.
fn closing(open: char) -> char {
    if open == '“' { '”' } else { open }
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn skip_while(&mut self, skips: impl Fn(char) -> bool) {
        self.at = self.text.len() - self.rest().trim_start_matches(skips).len();
    }

    /// Skips white space, comments and dots that stand for what was left out.
    fn skip_blank(&mut self) {
        loop {
            self.skip_while(is_space);
            let rest = self.rest();
            let end = if rest.starts_with("//") || rest.starts_with('#') {
                rest.find(['\n', '\r']).unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                rest.find("*/").map_or(rest.len(), |end| end + 2)
            } else if rest.starts_with("...") {
                3
            } else {
                return;
            };
            self.at += end;
        }
    }

    /// The first character of `text` from `from` on that is no white space.
    fn after_blank(&self, from: usize) -> Option<char> {
        let rest = &self.text[from..];
        rest.chars().find(|c| !is_space(*c))
    }

    /// Goes to the next bracket of the text around the values; a comma on the way joins them.
    fn seek_value(&mut self, is_listed: &mut bool) -> bool {
        let start = self.at;
        let Some(skipped) = self.rest().find(['[', '{']) else {
            return false;
        };
        self.at += skipped;
        *is_listed = strip(&self.text[start..self.at]) == ",";
        true
    }

    /// A value; none where it lies too deep.
    fn value(&mut self, inside: Inside, depth: usize) -> Option<Json<'a>> {
        if depth > MAX_DEPTH || self.dead_ends > MAX_DEAD_ENDS {
            return None;
        }
        self.skip_blank();
        Some(match self.peek() {
            Some('{') => {
                self.skip();
                self.object(inside, depth)?
            }
            Some('[' | '(') => {
                self.skip();
                self.list(inside, depth)?
            }
            Some(c) if is_quote(c) => Json::Text(self.quoted(c, inside)),
            Some('0'..='9' | '-' | '+' | '.' | '_') => self.number(inside),
            Some(_) => self.word(inside),
            None => Json::Text("".into()),
        })
    }

    fn list(&mut self, inside: Inside, depth: usize) -> Option<Json<'a>> {
        let mut items = Vec::new();
        loop {
            let is_item_before = !items.is_empty() && !self.text[..self.at].ends_with(',');
            self.skip_blank();
            match self.peek() {
                None => break,
                Some('}') if inside != Inside::Object && is_item_before => self.skip(),
                Some(']' | '}' | ')') => {
                    self.skip();
                    break;
                }
                Some(',' | ';' | ':' | '%' | '*') => self.skip(),
                Some(c) => {
                    let start = self.at;
                    let item = self.value(Inside::List, depth + 1)?;
                    let is_key = is_quote(c) && self.after_blank(self.at) == Some(':');
                    if is_key {
                        self.at = start;
                        let is_flat =
                            |item: &Json<'_>| !matches!(item, Json::List(_) | Json::Object(_));
                        if inside == Inside::Object && items.iter().all(is_flat) {
                            break;
                        }
                        items.push(self.object(Inside::List, depth + 1)?);
                    } else if self.at == start {
                        self.skip();
                    } else if !self.is_cut_off(&item) {
                        items.push(item);
                    }
                }
            }
        }
        Some(Json::List(items))
    }

    /// Whether the text ended before anything of a value was said.
    fn is_cut_off(&self, item: &Json<'_>) -> bool {
        self.at == self.text.len()
            && (is_empty(item) || matches!(item, Json::Text(text) if text.is_empty()))
    }

    fn object(&mut self, inside: Inside, depth: usize) -> Option<Json<'a>> {
        let mut pairs = Vec::new();
        let mut lone_keys = Vec::new();
        loop {
            self.skip_blank();
            match self.peek() {
                None => break,
                Some('}') => {
                    self.skip();
                    break;
                }
                // The brace before the next object was left out.
                Some('{') if self.begins_another(&pairs) => break,
                Some(c) if is_quote(c) && self.is_stray(c) => self.skip(),
                Some(c) if is_quote(c) || c.is_alphanumeric() || c == '_' => {
                    let (key, has_value) = self.key(c);
                    if !has_value {
                        if !key.is_empty() {
                            lone_keys.push(Json::Text(key));
                        }
                        continue;
                    }
                    pairs.push((key, self.value_of_key(depth)?));
                    self.skip_blank();
                    // The brace before the end of the list was left out.
                    if inside == Inside::List && self.peek() == Some(']') {
                        self.skip_bracket_for_brace();
                        break;
                    }
                }
                Some(_) => self.skip(),
            }
        }
        Some(if pairs.is_empty() && !lone_keys.is_empty() {
            Json::List(lone_keys)
        } else {
            Json::Object(pairs)
        })
    }

    /// Skips the bracket here if the next object of the list follows it.
    fn skip_bracket_for_brace(&mut self) {
        let rest = self.rest()[1..].trim_start_matches(is_space);
        let next = rest.strip_prefix(',').map(|rest| rest.trim_start_matches(is_space));
        if next.is_some_and(|next| next.starts_with('{')) {
            self.skip();
        }
    }

    /// Whether the brace here begins another object, not more of this one: a key repeats.
    fn begins_another(&self, pairs: &[(Cow<'a, str>, Json<'a>)]) -> bool {
        let rest = self.rest()[1..].trim_start_matches(|c| is_space(c) || is_quote(c));
        let repeats = |(name, _): &(Cow<'a, str>, Json<'a>)| {
            let after = rest.strip_prefix(name.as_ref());
            after.is_some_and(|after| after.starts_with(|c| is_quote(c) || c == ':'))
        };
        match pairs.len() {
            0 => false,
            1..=MAX_COMPARED => rest.starts_with(['{', ']', '}']) || pairs.iter().any(repeats),
            _ => true,
        }
    }

    /// Whether the quote here stands before another kind of quote.
    fn is_stray(&self, quote: char) -> bool {
        let next = self.after_blank(self.at + quote.len_utf8());
        next.is_some_and(|next| {
            is_quote(next) && next != closing(quote) || matches!(next, ',' | '}' | ']')
        })
    }

    fn value_of_key(&mut self, depth: usize) -> Option<Json<'a>> {
        self.skip_blank();
        while matches!(self.peek(), Some(']' | ';')) {
            self.skip();
            self.skip_blank();
        }
        match self.peek() {
            None | Some(',' | '}') => Some(Json::Text("".into())),
            _ => self.value(Inside::Object, depth + 1),
        }
    }

    /// A key, and whether its value follows: a colon, or what a value begins with.
    fn key(&mut self, first: char) -> (Cow<'a, str>, bool) {
        let key = if is_quote(first) {
            self.quoted_key(first)
        } else {
            let start = self.at;
            self.skip_while(|c| !is_quote(c) && !matches!(c, ':' | ',' | '{' | '}' | '[' | ']'));
            let key = strip(&self.text[start..self.at]);
            if self.peek().is_some_and(is_quote) {
                self.skip();
            }
            Cow::Borrowed(key)
        };
        self.skip_blank();
        let mut is_misquoted = false;
        if let Some(stray) = self.peek().filter(|_| is_quote(first)) {
            let after = self.after_blank(self.at + stray.len_utf8());
            is_misquoted = is_quote(stray) && matches!(after, Some(':' | '['))
                || matches!(stray, ';' | ',' | ']' | '}') && after == Some('[');
            if is_misquoted {
                self.skip();
                self.skip_blank();
            }
        }
        let starts_value = |c: char| is_quote(first) && (is_quote(c) || c.is_ascii_digit());
        let has_value = match self.peek() {
            Some(':') => {
                self.skip_while(|c| c == ':' || is_space(c));
                true
            }
            Some('[') if is_misquoted => true,
            Some('[') if is_quote(first) => {
                self.skip();
                true
            }
            Some(',') if is_quote(first) && self.is_comma_for_colon(closing(first)) => {
                self.skip();
                true
            }
            next => next.is_some_and(starts_value),
        };
        (key, has_value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use python::json::loads;

    #[track_caller]
    fn assert_means(broken: &str, whole: &str) {
        let whole = loads(whole).expect("readable");
        assert_eq!(repair(broken), Some(whole), "{broken}");
    }

    const TWO: &str =
        r#"[{"bbox_2d": [1, 2], "label": "cat"}, {"bbox_2d": [3, 4], "label": "dog"}]"#;

    #[test]
    fn what_is_missing_is_added() {
        for broken in [
            r#"[{"bbox_2d": [1, 2], "label": "cat"}, {"bbox_2d": [3, 4], "label": "dog"#,
            r#"[{"bbox_2d": [1, 2], "label": "cat"} {"bbox_2d": [3, 4] "label": "dog"}]"#,
            r#"[{"bbox_2d": [1 2], "label": "cat", {"bbox_2d": [3, 4], "label": "dog"}]"#,
            r#"["bbox_2d": [1, 2], "label": "cat"}, "bbox_2d": [3, 4], "label": "dog"}]"#,
            r#"[{"bbox_2d": [1, 2], "label": "cat}, {"bbox_2d": [3, 4, "label": "dog"}]"#,
            r#"[{bbox_2d: [1, 2], label: cat}, {'bbox_2d': [3, 4], 'label' 'dog'}]"#,
            r#"{"bbox_2d": [1, 2], "label": "cat"}, {"bbox_2d": [3, 4], "label": "dog"}"#,
        ] {
            assert_means(broken, TWO);
        }
        assert_means(
            "[{\"label\": \"cat\", \"bbox_2d\": ",
            "[{\"label\": \"cat\", \"bbox_2d\": \"\"}]",
        );
        assert_means(
            "[{\"score\" 0.9, \"label\": \"cat\"}]",
            "[{\"score\": 0.9, \"label\": \"cat\"}]",
        );
        assert_means(
            "[{'label': 'the man's hat'\n}, {'label': 'cat'}]",
            "[{\"label\": \"the man's hat'\"}, {\"label\": \"cat\"}]",
        );
        assert_means("[{\"label\": \"cat\", \"bbox", "[{\"label\": \"cat\"}]");
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        for broken in [
            r#"Here: [{"bbox_2d": [1, 2], "label": "cat"}, {"bbox_2d": [3, 4], "label": "dog"}] so"#,
            r#"[{"bbox_2d": [1, 2,], "label": "cat"},, {"bbox_2d": [3, 4], "label": "dog",},]]"#,
            "[{\"bbox_2d\": [1, 2], \"label\": \"cat\"}, // one\n {\"bbox_2d\": [3, /* x */ 4], \"label\": \"dog\"}, ...]",
            r#"[{"bbox_2d": (1, 2), "label": "cat"}}, {{"bbox_2d": [3, 4], ""label"": "dog"}]"#,
        ] {
            assert_means(broken, TWO);
        }
        assert_means("[None, True, false x", "[null, true, \"false x\"]");
        assert_means("[1_000, .5, +2, 3px, 007]", "[1000, 0.5, 2, \"3px\", 7]");
        assert_means(r#"[{"label": "a "big" cat"}]"#, r#"[{"label": "a \"big\" cat"}]"#);
    }

    /// Places were once counted as if white space and quotes were one byte long.
    #[test]
    fn wide_space_and_quotes_are_stepped_over_whole() {
        assert!(repair("[{\"a\"\u{3000}\": 1}]").is_some());
        assert!(repair("[{\"a\": b“}, c“]").is_some());
    }

    #[test]
    fn hostile_texts_end_soon() {
        assert_eq!(repair("nothing to read"), None);
        assert_eq!(repair(&"[".repeat(100_000)), None);
        assert_eq!(repair(&"{\"a\":".repeat(100_000)), None);
        for part in
            ["{\"a:1,", "{\"a\":1,{", "'", "{“a: “b, ", "\"a\",", "]...", "{x", "[{\"", "#", ",\""]
        {
            let text = format!("[{}", part.repeat(50_000));
            let start = std::time::Instant::now();
            let _ = repair(&text);
            assert!(start.elapsed().as_secs() < 5, "{part}");
        }
    }
}
