//! The messages of user rewards: one JSON object each way.
//!
//! Request: `{"id": 7, "step": 3, "rows": [{"completion": "...", "solution": "...", ...}, ...]}`.
//! Answer: `{"id": 7, "scores": [0.5, null]}`, or `{"id": 7, "error": "why", "row": 1}`.

use serde_json::{Map, Value, json};

use crate::registry::RewardInput;

/// Longest part of a response that a message shows, characters.
const SHOWN: usize = 200;

/// Why a response holds no scores.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    /// The row at fault within the request, where one is.
    pub(super) row: Option<usize>,
    /// What is wrong.
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn whole(reason: impl Into<String>) -> Self {
        Self { row: None, reason: reason.into() }
    }
}

/// One request. The user's columns come first, so that ours win on equal names.
pub(super) fn request(id: u64, rows: &[RewardInput<'_>]) -> Value {
    let step = rows.first().and_then(|row| row.step);
    let rows: Vec<Value> = rows.iter().map(row).collect();
    json!({"id": id, "step": step, "rows": rows})
}

fn row(input: &RewardInput<'_>) -> Value {
    let mut row: Map<String, Value> = input.columns.clone();
    let mut set = |key: &str, value: Value| row.insert(key.to_owned(), value);
    set("completion", json!(input.completion));
    set("solution", json!(input.solution));
    set("problem", json!(input.problem));
    set("accu_reward_method", json!(input.accu_reward_method));
    let images: Vec<_> = input.images.iter().map(|i| i.to_string_lossy()).collect();
    set("image_path", json!(images));
    set("image_size", json!(input.image_sizes));
    set("image_grid_thw", json!(input.image_grid_thw));
    set("sample", json!(input.sample));
    Value::Object(row)
}

/// Reads the response to request `id` of `rows` rows.
pub(super) fn scores(answer: &str, id: u64, rows: usize) -> Result<Vec<Option<f64>>, Refusal> {
    let malformed = |what: String| {
        let got = shortened(answer.trim());
        Refusal::whole(format!(
            "{what}: got `{got}`, expected `{{\"id\": {id}, \"scores\": [...]}}`"
        ))
    };
    let value: Value = serde_json::from_str(answer)
        .map_err(|error| malformed(format!("the answer is not JSON ({error})")))?;
    if let Some(reason) = value.get("error").filter(|error| !error.is_null()) {
        let row = value.get("row").and_then(Value::as_u64);
        let row = row.and_then(|row| usize::try_from(row).ok());
        let reason = reason.as_str().map_or_else(|| reason.to_string(), str::to_owned);
        return Err(Refusal { row: row.filter(|&row| row < rows), reason });
    }
    // HTTP pairs responses with requests: there the id may be left out.
    match value.get("id") {
        None | Some(Value::Null) => {}
        Some(got) if got.as_u64() == Some(id) => {}
        Some(got) => return Err(malformed(format!("the answer is to request {got}"))),
    }
    let list = match value.get("scores") {
        Some(Value::Array(list)) => list,
        None => return Err(malformed("the answer has no list `scores`".to_owned())),
        Some(other) => {
            return Err(malformed(format!("`scores` is {}, no list", base::describe(other))));
        }
    };
    if list.len() != rows {
        let got = list.len();
        return Err(Refusal::whole(format!("got {got} scores, expected {rows}, one for each row")));
    }
    list.iter()
        .enumerate()
        .map(|(row, score)| match score {
            Value::Null => Ok(None),
            Value::Bool(score) => Ok(Some(f64::from(*score))),
            score => score.as_f64().map(Some).ok_or_else(|| Refusal {
                row: Some(row),
                reason: format!(
                    "got score `{}`, expected a number or `null`",
                    shortened(&score.to_string())
                ),
            }),
        })
        .collect()
}

/// What a server's refusal says of a row, where it is one of a reward: `{"error": "why", "row": 1}`. Others may pass.
pub(super) fn refusal(answer: &str) -> Option<Refusal> {
    let value: Value = serde_json::from_str(answer).ok()?;
    let row = value.get("row")?.as_u64()?;
    Some(Refusal {
        row: usize::try_from(row).ok(),
        reason: value.get("error")?.as_str()?.to_owned(),
    })
}

/// The samples of a request for a message: `a.jsonl:3`, or the first and the last.
pub(super) fn samples(rows: &[RewardInput<'_>]) -> String {
    let (Some(first), Some(last)) =
        (rows.first().and_then(|row| row.sample), rows.last().and_then(|row| row.sample))
    else {
        return base::console::count(rows.len() as u64, "row");
    };
    if first == last { first.to_owned() } else { format!("{first} to {last}") }
}

/// The start of a text, for a message.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_hand() {
        assert_eq!(
            scores(r#"{"id": 7, "scores": [0.5, null, 1, true]}"#, 7, 4),
            Ok(vec![Some(0.5), None, Some(1.0), Some(1.0)])
        );
        let refusal = |text| scores(text, 7, 1).expect_err("a refusal");
        assert_eq!(
            refusal(r#"{"id": 7, "error": "no", "row": 0}"#),
            Refusal { row: Some(0), reason: "no".to_owned() }
        );
        assert_eq!(refusal(r#"{"error": "no", "row": 5}"#).row, None);
        assert!(refusal("hello").reason.contains("not JSON"));
        assert!(refusal("[1]").reason.contains("no list `scores`"));
        assert!(refusal(r#"{"id": 6, "scores": [1]}"#).reason.contains("to request 6"));
        assert!(refusal(r#"{"id": 7, "scores": []}"#).reason.contains("got 0 scores"));
        assert_eq!(refusal(r#"{"id": 7, "scores": ["x"]}"#).row, Some(0));
    }
}
