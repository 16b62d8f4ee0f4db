//! Steps with a NaN or infinity: what it was, and the dump of the batch in `bad_steps/`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::TrainError;

/// What was not finite in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NonFinite {
    /// Where it was, if there are several ranks; none of a norm, which is over all of them.
    pub rank: Option<usize>,
    /// `loss` or `gradient norm`.
    pub quantity: Cow<'static, str>,
    /// Its value.
    #[serde(with = "as_text")]
    pub value: f64,
    /// The micro-batch whose loss it is, from 1; none of a norm, which is over all of them.
    pub micro_batch: Option<usize>,
    /// Weights whose gradients are not finite; of a norm, none where only its square overflows.
    pub weights: Vec<String>,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rank) = self.rank {
            write!(f, "rank {rank}: ")?;
        }
        write!(f, "{}", self.quantity)?;
        if let Some(index) = self.micro_batch {
            write!(f, " of micro-batch {index}")?;
        }
        write!(f, " is not finite ({})", self.value)?;
        match self.weights.as_slice() {
            [] => Ok(()),
            [first] => write!(f, ": gradient of {first}"),
            [first, rest @ ..] => write!(f, ": gradients of {first} and {} more", rest.len()),
        }
    }
}

impl NonFinite {
    /// Refuses the loss of micro-batch `index`, from 1, where it is not finite.
    pub(crate) fn check_loss(value: f64, index: usize) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        Err(TrainError::NonFinite(Box::new(NonFinite {
            rank: None,
            quantity: "loss".into(),
            value,
            micro_batch: Some(index),
            weights: Vec::new(),
        })))
    }

    /// The first line of a dump; `updates` of the step's were applied before.
    pub(crate) fn head(&self, step: u64, updates: usize) -> Value {
        let mut head = json!({
            "step": step,
            "quantity": self.quantity,
            "value": number(self.value),
            "micro_batch": self.micro_batch,
            "weights": self.weights,
            "updates_before": updates,
        });
        if let Some(rank) = self.rank {
            head["rank"] = json!(rank);
        }
        head
    }
}

/// JSON has no NaN.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A number as JSON can hold it: `"NaN"`, `"inf"` and `"-inf"` are texts.
pub(crate) fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// As [`number`], a list of them.
pub(crate) fn numbers(values: &[f32]) -> Value {
    values.iter().map(|&v| number(f64::from(v))).collect()
}

/// The log-probabilities of a completion's tokens, for the dump.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenRecord {
    /// From 1; `None` before any pass.
    pub micro_batch: Option<usize>,
    /// `None` where the step did not get so far.
    pub old_logprobs: Option<Vec<f32>>,
    pub ref_logprobs: Option<Vec<f32>>,
}

impl TokenRecord {
    pub fn write(&self, row: &mut Map<String, Value>) {
        let list = |values: &Option<Vec<f32>>| values.as_deref().map_or(Value::Null, numbers);
        row.insert("micro_batch".into(), json!(self.micro_batch));
        row.insert("old_logprobs".into(), list(&self.old_logprobs));
        row.insert("ref_logprobs".into(), list(&self.ref_logprobs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_cannot_hold_is_text() {
        let values = [1.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(numbers(&values), json!([1.5, "NaN", "inf", "-inf"]));
    }

    #[test]
    fn what_was_not_finite_is_named() {
        let loss = NonFinite {
            rank: None,
            quantity: "loss".into(),
            value: f64::NAN,
            micro_batch: Some(2),
            weights: Vec::new(),
        };
        assert_eq!(loss.to_string(), "loss of micro-batch 2 is not finite (NaN)");
        let norm = NonFinite {
            rank: None,
            quantity: "gradient norm".into(),
            value: f64::INFINITY,
            micro_batch: None,
            weights: vec!["a".into(), "b".into()],
        };
        assert_eq!(
            norm.to_string(),
            "gradient norm is not finite (inf): gradients of a and 1 more"
        );
        assert_eq!(norm.head(7, 1)["value"], "inf");
        let of_rank = NonFinite { rank: Some(2), ..loss };
        let sent = serde_json::to_string(&of_rank).unwrap();
        let got: NonFinite = serde_json::from_str(&sent).unwrap();
        assert_eq!(got.to_string(), "rank 2: loss of micro-batch 2 is not finite (NaN)");
        assert_eq!(got.head(7, 1)["rank"], 2);
    }
}
