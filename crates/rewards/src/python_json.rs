//! JSON as Python's `json.loads` reads it.
//!
//! What a model writes is readable or not as Python decides: `NaN` and `Infinity` are numbers, numbers
//! too large for an `f64` are infinite, a lone surrogate is a character, and an integer of more than
//! 4,300 digits is an error. One pass, with a bound on depth.

use std::borrow::Cow;

/// Nesting at which Python, too, gives up (its own bound depends on who calls).
const MAX_DEPTH: usize = 900;

/// `sys.int_info.default_max_str_digits`.
const MAX_INTEGER_DIGITS: usize = 4300;

/// A JSON value; objects keep their pairs in order, repeated keys too.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    /// The digits of an integer, a minus before them; Python's have no bound.
    Integer(Cow<'a, str>),
    Number(f64),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// The value of `key`, the last where it repeats; none where this is no object.
    pub(crate) fn take(&mut self, key: &str) -> Option<Json<'a>> {
        let Self::Object(pairs) = self else {
            return None;
        };
        let at = pairs.iter().rposition(|(name, _)| name == key)?;
        Some(std::mem::replace(&mut pairs[at].1, Self::Null))
    }

    /// The number that arithmetic of Python takes this for.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(digits) => digits.parse().ok(),
            Self::Number(number) => Some(*number),
            Self::Bool(truth) => Some(f64::from(*truth)),
            _ => None,
        }
    }
}

/// The value that `text` holds; none where `json.loads` raises.
pub(crate) fn loads(text: &str) -> Option<Json<'_>> {
    let mut reader = Reader { text, at: 0 };
    reader.skip_spaces();
    let value = reader.value(0)?;
    reader.skip_spaces();
    (reader.at == text.len()).then_some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
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
            return None;
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
            _ => self
                .word("-Infinity", Json::Number(f64::NEG_INFINITY))
                .or_else(|| self.number()),
        }
    }

    fn list(&mut self, depth: usize) -> Option<Json<'a>> {
        self.at += 1;
        self.skip_spaces();
        let mut items = Vec::new();
        if self.eat(b']') {
            return Some(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_spaces();
            if self.eat(b']') {
                return Some(Json::List(items));
            }
            if !self.eat(b',') {
                return None;
            }
            self.skip_spaces();
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json<'a>> {
        self.at += 1;
        self.skip_spaces();
        let mut pairs = Vec::new();
        if self.eat(b'}') {
            return Some(Json::Object(pairs));
        }
        loop {
            if self.peek()? != b'"' {
                return None;
            }
            let key = self.string()?;
            self.skip_spaces();
            if !self.eat(b':') {
                return None;
            }
            self.skip_spaces();
            pairs.push((key, self.value(depth + 1)?));
            self.skip_spaces();
            if self.eat(b'}') {
                return Some(Json::Object(pairs));
            }
            if !self.eat(b',') {
                return None;
            }
            self.skip_spaces();
        }
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
        (integer <= MAX_INTEGER_DIGITS).then_some(Json::Integer(digits.into()))
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.at += 1;
        let mut start = self.at;
        let mut unescaped: Option<String> = None;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            self.at += rest
                .iter()
                .position(|b| matches!(b, b'"' | b'\\' | 0..0x20))?;
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    let text = unescaped.get_or_insert_default();
                    text.push_str(&self.text[start..self.at]);
                    self.at += 1;
                    text.push(self.escape()?);
                    start = self.at;
                }
                _ => return None,
            }
        }
        let rest = &self.text[start..self.at];
        self.at += 1;
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
            _ => return None,
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
        Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |value, &digit| {
            Some(value * 16 + char::from(digit).to_digit(16)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Json<'_> {
        Json::Text(text.into())
    }

    #[test]
    fn reads_what_python_reads() {
        assert_eq!(
            loads(" [1, -0.5e1, true, null, \"a\\u00e9\\ud83d\\ude00\\ud800\"]\n"),
            Some(Json::List(vec![
                Json::Integer("1".into()),
                Json::Number(-5.0),
                Json::Bool(true),
                Json::Null,
                text("aé😀\u{fffd}"),
            ]))
        );
        assert_eq!(loads("1e999"), Some(Json::Number(f64::INFINITY)));
        assert_eq!(loads("-Infinity"), Some(Json::Number(f64::NEG_INFINITY)));
        assert!(matches!(loads("NaN"), Some(Json::Number(nan)) if nan.is_nan()));
        let mut object = loads("{\"a\": 1, \"b\": {}, \"a\": 2}").expect("readable");
        assert_eq!(object.take("a"), Some(Json::Integer("2".into())));
        assert_eq!(object.take("c"), None);
        assert_eq!(loads("\"\\ud800\\u0041\""), Some(text("\u{fffd}A")));
    }

    #[test]
    fn refuses_what_python_refuses() {
        for bad in [
            "",
            "01",
            "1.",
            ".5",
            "+1",
            "-",
            "1e",
            "0x1",
            "[1,]",
            "[1 2]",
            "{\"a\": 1,}",
            "{a: 1}",
            "{\"a\" 1}",
            "'a'",
            "\"a",
            "\"a\nb\"",
            "\"\\x41\"",
            "\"\\u12g4\"",
            "\"\\ud83d\\u12g4\"",
            "True",
            "nan",
            "[1] 2",
            "\u{feff}[]",
            "\u{a0}1",
            "[",
            "{\"a\"",
            "\"\\u12é4\"",
        ] {
            assert_eq!(loads(bad), None, "{bad}");
        }
        assert!(loads(&"9".repeat(4300)).is_some());
        assert_eq!(loads(&"9".repeat(4301)), None);
        assert!(loads(&format!("{}.0", "9".repeat(4301))).is_some());
        assert_eq!(loads(&"[".repeat(100_000)), None);
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(loads(&nested(MAX_DEPTH)).is_some());
        assert_eq!(loads(&nested(MAX_DEPTH + 2)), None);
    }
}
