//! What the server answers, request by request; how requests come is [`super::serve`]'s.

use std::borrow::Cow;
use std::fmt::Write as _;

use base::console::printable;
use base::python_json::{Lost, Parsed, parse};
use rewards::RewardError;
use serde_json::{Map, Value, json};

use super::scorer::{Failure, Scored, Scorer};
use crate::rows::{Row, kind_of};

const USAGE: &str = include_str!("usage.txt");

/// Scores what it is sent.
pub struct Service {
    scorer: Scorer,
    /// Whether rows are explained where the request does not say.
    explain: bool,
}

/// A response.
#[derive(Debug, PartialEq)]
pub struct Reply {
    /// HTTP's number.
    pub status: u16,
    /// Type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Reply {
    fn json(status: u16, value: &Value) -> Self {
        Self {
            status,
            content_type: "application/json",
            body: format!("{}\n", escaped(&value.to_string())),
        }
    }

    /// A refusal that says why.
    pub fn refusal(status: u16, why: &str) -> Self {
        Self::json(status, &json!({"error": why}))
    }
}

impl Service {
    /// Scores by `scorer`.
    pub fn new(scorer: Scorer, explain: bool) -> Self {
        Self { scorer, explain }
    }

    /// The answer to a request.
    pub fn answer(&self, method: &str, path: &str, query: Option<&str>, body: &[u8]) -> Reply {
        let answered = match (method, path) {
            ("GET" | "HEAD", "/") => Ok(self.usage()),
            ("POST", "/score") => self.score(body),
            ("POST", "/rows") => self.rows(query, body),
            (_, "/" | "/score" | "/rows") => {
                let why = format!("{method} {path}: got {method}, see GET /");
                Err(Reply::refusal(405, &why))
            }
            _ => {
                let why = format!("no `{path}` here: GET /, POST /score, POST /rows");
                Err(Reply::refusal(404, &why))
            }
        };
        answered.unwrap_or_else(|refusal| refusal)
    }

    fn usage(&self) -> Reply {
        let names = self.scorer.names().join(", ");
        Reply {
            status: 200,
            content_type: "text/plain; charset=utf-8",
            body: USAGE.replace("{rewards}", &printable(&names)),
        }
    }

    /// The protocol of rewards over HTTP.
    fn score(&self, body: &[u8]) -> Result<Reply, Reply> {
        let body = parsed(body)?;
        let mut request = match body.value {
            Value::Object(request) => request,
            other => return Err(unexpected(&other)),
        };
        let rows = match request.remove("rows") {
            Some(Value::Array(rows)) => rows_of(rows, &body.lost, &["rows"])?,
            Some(other) => return Err(unexpected(&other)),
            None => return Err(Reply::refusal(400, "missing key `rows`")),
        };
        let scored = self.scored(&rows, false)?;
        let scores: Vec<Value> = (0..rows.len()).map(|row| total(&scored, row)).collect();
        let mut answer = Map::new();
        if let Some(id) = request.remove("id") {
            answer.insert("id".to_owned(), id);
        }
        answer.insert("scores".to_owned(), json!(scores));
        Ok(Reply::json(200, &Value::Object(answer)))
    }

    /// Rows as the command writes them: one, a list, or `{"rows": [...]}`, each answered in kind.
    fn rows(&self, query: Option<&str>, body: &[u8]) -> Result<Reply, Reply> {
        let explain = self.is_explained(query)?;
        let Parsed { value, mut lost } = parsed(body)?;
        let answer = match value {
            Value::Array(rows) => {
                let rows = rows_of(rows, &lost, &[])?;
                Value::Array(self.written(rows, explain)?)
            }
            Value::Object(mut request) => match request.remove("rows") {
                Some(Value::Array(rows)) => {
                    let rows = rows_of(rows, &lost, &["rows"])?;
                    json!({"rows": self.written(rows, explain)?})
                }
                Some(other) => return Err(unexpected(&other)),
                None => {
                    let only = |lost: &mut Lost| lost.path.insert(0, "0".to_owned());
                    lost.iter_mut().for_each(only);
                    let rows = rows_of(vec![Value::Object(request)], &lost, &[])?;
                    let mut rows = self.written(rows, explain)?;
                    rows.pop().unwrap_or_default()
                }
            },
            other => return Err(unexpected(&other)),
        };
        Ok(Reply::json(200, &answer))
    }

    fn is_explained(&self, query: Option<&str>) -> Result<bool, Reply> {
        match query {
            None | Some("") => Ok(self.explain),
            Some("explain=true") => Ok(true),
            Some("explain=false") => Ok(false),
            Some(other) => {
                let why = format!("got `?{other}`, expected `?explain=true` or `?explain=false`");
                Err(Reply::refusal(400, &why))
            }
        }
    }

    fn written(&self, rows: Vec<Row>, explain: bool) -> Result<Vec<Value>, Reply> {
        let scored = self.scored(&rows, explain)?;
        let rows = rows.into_iter().enumerate();
        Ok(rows
            .map(|(index, row)| self.scorer.output(row, index, &scored))
            .collect())
    }

    fn scored(&self, rows: &[Row], explain: bool) -> Result<Scored, Reply> {
        let failed = |Failure { row, error }: Failure| {
            // A reward of the user's own that does not answer is no fault of the row.
            let is_ours = matches!(
                error.downcast_ref(),
                Some(RewardError::Plugin { .. } | RewardError::JudgeFailed { .. })
            );
            let mut why = json!({"error": crate::message(&error)});
            if let Some(row) = row {
                why["row"] = json!(row);
            }
            Reply::json(if is_ours { 500 } else { 422 }, &why)
        };
        self.scorer.score(rows, explain).map_err(failed)
    }
}

/// JSON of the same meaning without a character that a terminal obeys: who asks by `curl` sees texts of
/// completions and tracebacks.
fn escaped(json: &str) -> Cow<'_, str> {
    if let Cow::Borrowed(same) = printable(json) {
        return Cow::Borrowed(same);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    let mut buffer = [0; 4];
    for c in json.chars() {
        match printable(c.encode_utf8(&mut buffer)) {
            Cow::Borrowed(same) => escaped.push_str(same),
            // Such characters stand in texts only, and none is beyond 16 bits.
            Cow::Owned(_) => {
                // A text takes all that is written to it.
                let _ = write!(escaped, "\\u{:04x}", c as u32);
            }
        }
    }
    Cow::Owned(escaped)
}

/// The weighted sum; none where no reward applies.
fn total(scored: &Scored, row: usize) -> Value {
    let mut each = scored.scores.per_reward.iter();
    match each.any(|scores| scores[row].is_some()) {
        true => json!(scored.scores.total[row]),
        false => Value::Null,
    }
}

/// A body, as Python's `json` reads it.
fn parsed(body: &[u8]) -> Result<Parsed, Reply> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let why = format!("broken JSON: no UTF-8 at byte {}", error.valid_up_to());
        Reply::refusal(400, &why)
    })?;
    parse(text).map_err(|error| {
        let before = &body[..error.at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before
            .iter()
            .rev()
            .take_while(|byte| **byte != b'\n')
            .count()
            + 1;
        let why = format!(
            "broken JSON at line {line}, column {column}: {}",
            error.reason
        );
        Reply::refusal(400, &why)
    })
}

/// Of what JSON does not have that of the row `index` of a list under `under`.
fn lost_in(lost: &[Lost], under: &[&str], index: usize) -> Vec<Lost> {
    let index = index.to_string();
    let inside = |lost: &Lost| {
        let path = lost.path.iter().map(String::as_str);
        let mut start = under.iter().copied().chain([index.as_str()]);
        let depth = under.len() + 1;
        let is_inside = path.take(depth).eq(start.by_ref());
        is_inside.then(|| Lost {
            path: lost.path[depth..].to_vec(),
            what: lost.what.clone(),
        })
    };
    lost.iter().filter_map(inside).collect()
}

fn unexpected(got: &Value) -> Reply {
    let why = format!("got {}, expected `{{\"rows\": [...]}}`", kind_of(got));
    Reply::refusal(400, &why)
}

fn rows_of(values: Vec<Value>, lost: &[Lost], under: &[&str]) -> Result<Vec<Row>, Reply> {
    let rows = values.into_iter().enumerate();
    let rows = rows.map(|(index, value)| match value {
        Value::Object(columns) => Ok(Row {
            place: format!("row {index}"),
            columns,
            lost: lost_in(lost, under, index),
        }),
        other => {
            let why = format!(
                "row {index}: got {}, expected a JSON object",
                kind_of(&other)
            );
            Err(Reply::json(422, &json!({"error": why, "row": index})))
        }
    });
    rows.collect()
}
