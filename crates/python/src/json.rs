//! JSON as Python's `json.loads` reads it.
//!
//! What a model or a user writes is readable or not as Python decides: `NaN` and `Infinity` are numbers, numbers
//! too large for an `f64` are infinite, a lone surrogate is a character, and an integer of more than
//! 4,300 digits is an error. One pass, with a bound on depth.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use crate::text::MAX_INTEGER_DIGITS;

/// Nesting at which Python, too, gives up (its own bound depends on who calls).
const MAX_DEPTH: usize = 900;

/// A JSON value; objects keep their pairs in order, repeated keys too.
#[derive(Clone, Debug, PartialEq)]
pub enum Json<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// The digits of an integer, a minus before them; Python's have no bound.
    Integer(Cow<'a, str>),
    /// A number with a point or an exponent, or one that is not finite.
    Number(f64),
    /// A text; U+FFFD stands for half of a surrogate pair.
    Text(Cow<'a, str>),
    /// A list.
    List(Vec<Json<'a>>),
    /// An object.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// The value of `key`, the last where it repeats; none where this is no object.
    pub fn take(&mut self, key: &str) -> Option<Json<'a>> {
        let Self::Object(pairs) = self else {
            return None;
        };
        let at = pairs.iter().rposition(|(name, _)| name == key)?;
        Some(std::mem::replace(&mut pairs[at].1, Self::Null))
    }

    /// The number that arithmetic of Python takes this for.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(digits) => digits.parse().ok(),
            Self::Number(number) => Some(*number),
            Self::Bool(truth) => Some(f64::from(*truth)),
            _ => None,
        }
    }
}

/// The value that `text` holds; none where `json.loads` raises.
pub fn loads(text: &str) -> Option<Json<'_>> {
    Reader::new(text).whole()
}

/// Why a text is no JSON, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// Offset in bytes, from 0.
    pub at: usize,
    /// What was found.
    pub reason: &'static str,
}

/// A text as a [`Value`], which cannot hold everything that Python reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The value, `null` where a number is not finite.
    pub value: Value,
    /// What was lost, in order.
    pub lost: Vec<Lost>,
}

/// Something that [`Value`] cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its path: `conversations`, `1`, `value`.
    pub path: Vec<String>,
    /// What it is.
    pub what: LostKind,
}

/// What [`Value`] cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LostKind {
    /// `NaN`, `Infinity` or a number too large for an `f64`; read as `null`.
    NotFinite(&'static str),
    /// Half of a surrogate pair; read as U+FFFD.
    Surrogate,
    /// A whole number of more than 64 bits; read as the nearest float.
    BigInteger,
}

/// As [`loads`], into a [`Value`], with what is wrong where it is no JSON.
///
/// # Errors
/// The first place at which Python would raise.
pub fn parse(text: &str) -> Result<Parsed, JsonError> {
    let mut reader = Reader::new(text);
    match reader.whole() {
        Some(json) => {
            let mut owner =
                Owner { torn: &reader.torn, strings: 0, path: Vec::new(), lost: Vec::new() };
            let value = owner.value(json);
            let lost = owner.lost;
            Ok(Parsed { value, lost })
        }
        None => Err(reader.error()),
    }
}

/// A part of an object whose lists are read item by item.
#[derive(Debug)]
pub enum Part<'a> {
    /// A list begins under the key.
    List,
    /// An item of it.
    Item(Json<'a>),
    /// Anything else under the key.
    Value(Json<'a>),
}

/// Calls `visit` with each key of an object and its value, lists item by item, so that only one item is in memory.
///
/// # Errors
/// As [`parse`]; a text that is no object.
pub fn parts<'a>(text: &'a str, visit: &mut dyn FnMut(&str, Part<'a>)) -> Result<(), JsonError> {
    let mut reader = Reader::new(text);
    match reader.parts(visit) {
        Some(()) => Ok(()),
        None => Err(reader.error()),
    }
}

impl std::fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |text: &str| Value::from(text).to_string();
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Integer(digits) => f.write_str(digits),
            Self::Number(number) if number.is_nan() => f.write_str("NaN"),
            Self::Number(number) if number.is_infinite() => {
                f.write_str(if *number > 0.0 { "Infinity" } else { "-Infinity" })
            }
            // Avoids `-0`.
            Self::Number(number) => write!(f, "{}", number + 0.0),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Object(pairs) => {
                f.write_str("{")?;
                for (index, (key, value)) in pairs.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{}: {value}", quoted(key))?;
                }
                f.write_str("}")
            }
        }
    }
}

/// Makes a [`Value`] and notes what it does not hold.
struct Owner<'t> {
    /// Numbers of the texts with half a surrogate pair.
    torn: &'t [usize],
    /// Texts so far.
    strings: usize,
    path: Vec<String>,
    lost: Vec<Lost>,
}

impl Owner<'_> {
    fn lose(&mut self, what: LostKind) {
        self.lost.push(Lost { path: self.path.clone(), what });
    }

    fn text(&mut self, text: Cow<'_, str>) -> String {
        if self.torn.first() == Some(&self.strings) {
            self.torn = &self.torn[1..];
            self.lose(LostKind::Surrogate);
        }
        self.strings += 1;
        text.into_owned()
    }

    fn value(&mut self, json: Json<'_>) -> Value {
        match json {
            Json::Null => Value::Null,
            Json::Bool(truth) => Value::Bool(truth),
            Json::Integer(digits) => self.integer(&digits),
            Json::Number(number) => Number::from_f64(number).map_or_else(
                || {
                    self.lose(LostKind::NotFinite(match number {
                        n if n.is_nan() => "NaN",
                        n if n > 0.0 => "Infinity",
                        _ => "-Infinity",
                    }));
                    Value::Null
                },
                Value::Number,
            ),
            Json::Text(text) => Value::String(self.text(text)),
            Json::List(items) => {
                let numbered = items.into_iter().enumerate();
                let values = numbered.map(|(index, item)| self.inside(index.to_string(), item));
                Value::Array(values.collect())
            }
            Json::Object(pairs) => {
                let mut map = Map::new();
                for (key, value) in pairs {
                    let key = self.text(key);
                    let value = self.inside(key.clone(), value);
                    map.insert(key, value);
                }
                Value::Object(map)
            }
        }
    }

    fn inside(&mut self, step: String, json: Json<'_>) -> Value {
        self.path.push(step);
        let value = self.value(json);
        self.path.pop();
        value
    }

    fn integer(&mut self, digits: &str) -> Value {
        if let Ok(number) = digits.parse::<i64>() {
            return number.into();
        }
        if let Ok(number) = digits.parse::<u64>() {
            return number.into();
        }
        let float = digits.parse::<f64>().ok();
        let float = float.filter(|float| float.is_finite());
        match float.and_then(Number::from_f64) {
            Some(number) => {
                self.lose(LostKind::BigInteger);
                Value::Number(number)
            }
            None => {
                self.lose(LostKind::NotFinite("a number too large"));
                Value::Null
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Texts read so far.
    strings: usize,
    /// The numbers of those with half a surrogate pair.
    torn: Vec<usize>,
    is_torn: bool,
    /// Why reading stopped, where the text at `at` does not tell.
    failed: Option<&'static str>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Reader { text, at: 0, strings: 0, torn: Vec::new(), is_torn: false, failed: None }
    }

    fn whole(&mut self) -> Option<Json<'a>> {
        self.skip_spaces();
        let value = self.value(0)?;
        self.skip_spaces();
        if self.at < self.text.len() {
            return self.fail("more after the end of the value");
        }
        Some(value)
    }

    fn error(&self) -> JsonError {
        JsonError { at: self.at.min(self.text.len()), reason: self.reason() }
    }

    fn parts(&mut self, visit: &mut dyn FnMut(&str, Part<'a>)) -> Option<()> {
        self.skip_spaces();
        if self.peek()? != b'{' {
            return self.fail("expected an object");
        }
        self.at += 1;
        self.skip_spaces();
        let mut is_open = !self.eat(b'}');
        while is_open {
            let key = self.key()?;
            match self.peek()? {
                b'[' => {
                    visit(&key, Part::List);
                    self.each(&mut |item| visit(&key, Part::Item(item)))?;
                }
                _ => visit(&key, Part::Value(self.value(1)?)),
            }
            is_open = self.goes_on(b'}', "expected `,` or `}`")?;
        }
        self.skip_spaces();
        match self.at < self.text.len() {
            true => self.fail("more after the end of the value"),
            false => Some(()),
        }
    }

    fn each(&mut self, visit: &mut dyn FnMut(Json<'a>)) -> Option<()> {
        self.at += 1;
        self.skip_spaces();
        let mut is_open = !self.eat(b']');
        while is_open {
            visit(self.value(2)?);
            is_open = self.goes_on(b']', "expected `,` or `]`")?;
        }
        Some(())
    }

    /// Whether a comma follows, and not the end.
    fn goes_on(&mut self, end: u8, expected: &'static str) -> Option<bool> {
        self.skip_spaces();
        if self.eat(end) {
            return Some(false);
        }
        if !self.eat(b',') {
            return self.missing(expected);
        }
        self.skip_spaces();
        Some(true)
    }

    /// A key with its colon.
    fn key(&mut self) -> Option<Cow<'a, str>> {
        if self.peek()? != b'"' {
            return self.fail("expected a key in double quotes");
        }
        let key = self.string()?;
        self.skip_spaces();
        if !self.eat(b':') {
            return self.missing("expected `:`");
        }
        self.skip_spaces();
        Some(key)
    }

    fn fail<T>(&mut self, reason: &'static str) -> Option<T> {
        self.failed = Some(reason);
        None
    }

    fn reason(&self) -> &'static str {
        match self.failed {
            Some(reason) => reason,
            None if self.at >= self.text.len() => "it ends too early",
            None => "expected a value",
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Option<Json<'a>> {
        self.text.as_bytes()[self.at..]
            .starts_with(word.as_bytes())
            .then(|| self.at += word.len())
            .map(|()| value)
    }

    fn skip_spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json<'a>> {
        if depth > MAX_DEPTH {
            return self.fail("nested more than 900 deep");
        }
        match self.peek()? {
            b'"' => self.string().map(Json::Text),
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'n' => self.word("null", Json::Null),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            b'N' => self.word("NaN", Json::Number(f64::NAN)),
            b'I' => self.word("Infinity", Json::Number(f64::INFINITY)),
            _ => self.word("-Infinity", Json::Number(f64::NEG_INFINITY)).or_else(|| self.number()),
        }
    }

    fn list(&mut self, depth: usize) -> Option<Json<'a>> {
        self.at += 1;
        self.skip_spaces();
        let mut items = Vec::new();
        let mut is_open = !self.eat(b']');
        while is_open {
            items.push(self.value(depth + 1)?);
            is_open = self.goes_on(b']', "expected `,` or `]`")?;
        }
        Some(Json::List(items))
    }

    fn object(&mut self, depth: usize) -> Option<Json<'a>> {
        self.at += 1;
        self.skip_spaces();
        let mut pairs = Vec::new();
        let mut is_open = !self.eat(b'}');
        while is_open {
            let key = self.key()?;
            pairs.push((key, self.value(depth + 1)?));
            is_open = self.goes_on(b'}', "expected `,` or `}`")?;
        }
        Some(Json::Object(pairs))
    }

    /// What was expected, unless the text ends here.
    fn missing<T>(&mut self, expected: &'static str) -> Option<T> {
        self.peek()?;
        self.fail(expected)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    /// A part of a number that counts only if `digits` follow its `head`.
    fn optional(&mut self, head: impl FnOnce(&mut Self) -> bool) -> bool {
        let start = self.at;
        let found = head(self) && self.digits() > 0;
        if !found {
            self.at = start;
        }
        found
    }

    fn number(&mut self) -> Option<Json<'a>> {
        let start = self.at;
        self.eat(b'-');
        let integer = if self.eat(b'0') { 1 } else { self.digits() };
        if integer == 0 {
            self.at = start;
            return None;
        }
        let is_fraction = self.optional(|reader| reader.eat(b'.'));
        let has_exponent = self.optional(|reader| {
            let found = reader.eat(b'e') || reader.eat(b'E');
            if found && !reader.eat(b'-') {
                reader.eat(b'+');
            }
            found
        });
        let digits = &self.text[start..self.at];
        if is_fraction || has_exponent {
            return digits.parse().ok().map(Json::Number);
        }
        if integer > MAX_INTEGER_DIGITS {
            return self.fail("a whole number of more than 4300 digits");
        }
        Some(Json::Integer(digits.into()))
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.at += 1;
        let mut start = self.at;
        let mut unescaped: Option<String> = None;
        self.is_torn = false;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let end = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20));
            self.at += end.unwrap_or(rest.len());
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    let text = unescaped.get_or_insert_default();
                    text.push_str(&self.text[start..self.at]);
                    self.at += 1;
                    text.push(self.escape()?);
                    start = self.at;
                }
                _ => return self.fail("a control character in a text"),
            }
        }
        let rest = &self.text[start..self.at];
        self.at += 1;
        if self.is_torn {
            self.torn.push(self.strings);
        }
        self.strings += 1;
        Some(match unescaped {
            Some(text) => Cow::Owned(text + rest),
            None => Cow::Borrowed(rest),
        })
    }

    fn escape(&mut self) -> Option<char> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'"' | b'\\' | b'/' => byte.into(),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return self.fail("an escape that JSON does not have"),
        })
    }

    /// A character by its UTF-16 units; U+FFFD stands for a surrogate without its other half.
    fn unicode(&mut self) -> Option<char> {
        let unit = self.hex()?;
        let after = self.at;
        if (0xd800..0xdc00).contains(&unit) && self.eat(b'\\') && self.eat(b'u') {
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                return char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
            }
        }
        self.at = after;
        let whole = char::from_u32(unit);
        self.is_torn |= whole.is_none();
        Some(whole.unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4)?;
        self.at += 4;
        digits
            .iter()
            .try_fold(0, |value, &digit| Some(value * 16 + char::from(digit).to_digit(16)?))
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
