//! Texts and YAML values brought to the kind of their field.

use serde_json::{Number, Value};

use super::Kind;

/// Why a value does not fit: what it is.
pub(crate) struct TypeMismatch {
    pub got: String,
    pub expected: String,
}

impl Kind {
    /// What the kind takes, for messages.
    pub fn expected(&self) -> String {
        match self {
            Kind::Bool => "`true` or `false`".into(),
            Kind::BoolOrText => "`true`, `false` or text".into(),
            Kind::Numbers(names) => {
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                format!(
                    "numbers by name, as `{{\"{}\": 0.1}}`: {}",
                    names[0].trim_matches('`'),
                    names.join(", ")
                )
            }
            Kind::UnsignedInt => "a whole number from 0".into(),
            Kind::Int => "a whole number".into(),
            Kind::Float => "a finite number".into(),
            Kind::Text => "text".into(),
            Kind::ColonList => "texts joined by `:`".into(),
            Kind::Choice(words) | Kind::ChoiceOrBool { words, .. } => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                format!("one of {}", words.join(", "))
            }
            Kind::List(item) => format!("a list, each {}", item.expected()),
            Kind::Optional(inner) => format!("{} or `none`", inner.expected()),
        }
    }

    fn mismatch(&self, got: impl Into<String>) -> TypeMismatch {
        TypeMismatch { got: got.into(), expected: self.expected() }
    }

    /// The value of a flag that was followed by `texts`.
    pub(crate) fn read_flag(&self, texts: &[String]) -> Result<Value, TypeMismatch> {
        match (self, texts) {
            (Kind::Optional(_), [one]) => self.read_text(one),
            (Kind::Optional(inner), _) => inner.read_flag(texts),
            (Kind::List(item), _) => texts
                .iter()
                .map(|text| item.read_text(text))
                .collect::<Result<_, _>>()
                .map(Value::Array),
            (Kind::Bool | Kind::BoolOrText, []) => Ok(Value::Bool(true)),
            (Kind::ChoiceOrBool { .. }, []) => self.read_text("true"),
            (_, [one]) => self.read_text(one),
            (_, []) => Err(self.mismatch("nothing")),
            _ => Err(self.mismatch(format!("{} values", texts.len()))),
        }
    }

    /// The value that one text means; lists are split at commas.
    pub(crate) fn read_text(&self, text: &str) -> Result<Value, TypeMismatch> {
        let mismatch = || self.mismatch(format!("`{text}`"));
        match self {
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(Value::Bool(true)),
                "false" | "no" | "off" | "0" => Ok(Value::Bool(false)),
                _ => Err(mismatch()),
            },
            Kind::UnsignedInt => text.parse::<u64>().map(Value::from).map_err(|_| mismatch()),
            Kind::Int => text.parse::<i64>().map(Value::from).map_err(|_| mismatch()),
            Kind::Float => text
                .parse::<f64>()
                .ok()
                .and_then(Number::from_f64)
                .map(Value::Number)
                .ok_or_else(mismatch),
            Kind::BoolOrText => {
                Ok(Kind::Bool.read_text(text).unwrap_or_else(|_| Value::from(text)))
            }
            Kind::Text | Kind::ColonList => Ok(Value::from(text)),
            Kind::Numbers(_) => {
                let value: Value = serde_json::from_str(text).map_err(|_| mismatch())?;
                match value {
                    Value::Object(_) => self.read_yaml(&value),
                    _ => Err(mismatch()),
                }
            }
            Kind::Choice(words) if words.contains(&text) => Ok(Value::from(text)),
            Kind::ChoiceOrBool { words, .. } if words.contains(&text) => Ok(Value::from(text)),
            Kind::ChoiceOrBool { words, on, off } => {
                let value = Kind::Bool.read_text(text).map_err(|_| mismatch())?;
                Ok(Value::from(words[if value == Value::Bool(true) { *on } else { *off }]))
            }
            Kind::List(item) => {
                let items = text.split(',').map(|part| item.read_text(part.trim()));
                items.collect::<Result<_, _>>().map(Value::Array)
            }
            // A text may well be the word `none`; in YAML it is unset by `null`.
            Kind::Optional(inner) if is_none(text) && **inner != Kind::Text => Ok(Value::Null),
            Kind::Optional(inner) => inner.read_text(text),
            Kind::Choice(_) => Err(mismatch()),
        }
    }

    /// The value that a YAML value means. Numbers and booleans may stand in quotes.
    pub(crate) fn read_yaml(&self, value: &Value) -> Result<Value, TypeMismatch> {
        let mismatch = || self.mismatch(described(value));
        match (self, value) {
            (Kind::Optional(_), Value::Null) => Ok(Value::Null),
            (Kind::Optional(_), Value::String(text)) => self.read_text(text),
            (Kind::Optional(inner), _) => inner.read_yaml(value),
            (Kind::List(item), Value::Array(values)) => values
                .iter()
                .map(|value| item.read_yaml(value))
                .collect::<Result<_, _>>()
                .map(Value::Array),
            (Kind::List(item), _) => Ok(Value::Array(vec![item.read_yaml(value)?])),
            (Kind::ColonList, Value::Array(values)) => {
                let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
                texts.map(|texts| Value::from(texts.join(":"))).ok_or_else(mismatch)
            }
            (_, Value::String(text)) => self.read_text(text),
            (Kind::Bool | Kind::BoolOrText, Value::Bool(_)) => Ok(value.clone()),
            (Kind::ChoiceOrBool { .. }, Value::Bool(value)) => self.read_text(&value.to_string()),
            // Some words are numbers.
            (Kind::Choice(_), Value::Number(number)) => self.read_text(&number.to_string()),
            (Kind::Numbers(names), Value::Object(values)) => {
                let read = |(name, value): (&String, &Value)| {
                    let is_known = names.contains(&name.as_str());
                    let known =
                        is_known.then_some(()).ok_or_else(|| self.mismatch(format!("`{name}`")));
                    known.and_then(|()| Ok((name.clone(), Kind::Float.read_yaml(value)?)))
                };
                let numbers: Result<_, TypeMismatch> = values.iter().map(read).collect();
                numbers.map(Value::Object)
            }
            (Kind::UnsignedInt, Value::Number(number)) if number.is_u64() => Ok(value.clone()),
            (Kind::Int, Value::Number(number)) if number.is_i64() => Ok(value.clone()),
            (Kind::Float, Value::Number(number)) => {
                let number = number.as_f64().and_then(Number::from_f64);
                number.map(Value::Number).ok_or_else(mismatch)
            }
            _ => Err(mismatch()),
        }
    }
}

/// The words that unset a field.
fn is_none(text: &str) -> bool {
    matches!(text, "none" | "None" | "null")
}

pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("boolean `{value}`"),
        Value::Number(value) => format!("number `{value}`"),
        Value::String(value) => format!("text `{value}`"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}
