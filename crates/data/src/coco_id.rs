//! Ids of images, categories and annotations in COCO files: numbers and texts, compared as in Python.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use python::json::Json;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// An id. `7`, `7.0` and `"7"` are two: a number is never equal to a text.
#[derive(Clone, Debug)]
pub enum Id {
    /// A whole number.
    Whole(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(String),
}

impl Id {
    /// The id that a value is, if it can be one.
    pub fn of(json: &Json<'_>) -> Option<Self> {
        match json {
            Json::Bool(truth) => Some(Self::Whole(i64::from(*truth))),
            Json::Integer(digits) => match digits.parse() {
                Ok(number) => Some(Self::Whole(number)),
                Err(_) => digits.parse().ok().and_then(Self::of_float),
            },
            Json::Number(number) => Self::of_float(*number),
            Json::Text(text) => Some(Self::Text(text.to_string())),
            Json::Null | Json::List(_) | Json::Object(_) => None,
        }
    }

    fn of_float(number: f64) -> Option<Self> {
        // Beyond, floats leave whole numbers out.
        let is_whole = number.fract() == 0.0 && number.abs() < 9e15;
        match is_whole {
            true => Some(Self::Whole(number as i64)),
            false => number.is_finite().then_some(Self::Float(number)),
        }
    }

    /// Whether it is a text.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    fn float(&self) -> f64 {
        match self {
            Self::Whole(number) => *number as f64,
            Self::Float(number) => *number,
            Self::Text(_) => f64::NAN,
        }
    }
}

impl Ord for Id {
    /// Numbers before texts.
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Text(_), _) => Ordering::Greater,
            (_, Self::Text(_)) => Ordering::Less,
            (a, b) => a.float().total_cmp(&b.float()),
        }
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Text(text) => text.hash(state),
            number => number.float().to_bits().hash(state),
        }
    }
}

impl fmt::Display for Id {
    /// As the file has it: texts in quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{}", Value::from(text.as_str())),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Whole(number) => serializer.serialize_i64(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || serde::de::Error::custom("expected a number or a text");
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Number(number) => match number.as_i64() {
                Some(number) => Ok(Self::Whole(number)),
                None => number.as_f64().and_then(Self::of_float).ok_or_else(wrong),
            },
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use python::json::loads;

    use super::*;

    fn id(json: &str) -> Id {
        Id::of(&loads(json).expect("JSON")).expect(json)
    }

    #[test]
    fn ids_are_equal_as_in_python() {
        for (a, b) in [("7", "7.0"), ("-0", "0"), ("1", "true"), ("-3", "-3.0"), ("1e3", "1000")] {
            assert_eq!(id(a), id(b));
            assert!(HashSet::from([id(a)]).contains(&id(b)));
        }
        for (a, b) in [("7", "\"7\""), ("7", "7.5"), ("\"a\"", "\"A\"")] {
            assert_ne!(id(a), id(b));
        }
        for none in ["null", "[1]", "{}", "NaN", "Infinity"] {
            assert_eq!(Id::of(&loads(none).expect("JSON")), None, "{none}");
        }
        let mut ids = ["\"b\"", "10", "9.5", "\"a\"", "-2", "9"].map(id);
        ids.sort();
        let told = ids.map(|id| id.to_string());
        assert_eq!(told, ["-2", "9", "9.5", "10", "\"a\"", "\"b\""]);
    }

    #[test]
    fn ids_are_written_and_read() {
        for json in ["7", "-7", "9.5", "\"a \\\" b\""] {
            let text = serde_json::to_string(&id(json)).expect("JSON");
            assert_eq!(text, json);
            assert_eq!(serde_json::from_str::<Id>(&text).expect("an id"), id(json));
        }
    }
}
