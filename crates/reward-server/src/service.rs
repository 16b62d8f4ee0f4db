//! Responses to requests; how requests come is [`crate::routes`]'s.

use base::console::printable;
use base::describe;
use python::json::{Lost, Parsed, parse};
use serde_json::{Map, Value, json};
use web::Reply;

use crate::{AskedRow, Failure, Score};

const USAGE: &str = include_str!("usage.txt");

/// Scores what it is sent.
pub(crate) struct Service {
    scorer: Box<dyn Score>,
    /// Whether rows are explained where the request does not say.
    explain: bool,
}

impl Service {
    /// Scores by `scorer`.
    pub fn new(scorer: Box<dyn Score>, explain: bool) -> Self {
        Self { scorer, explain }
    }

    /// What can be asked.
    pub fn usage(&self) -> Reply {
        let names = self.scorer.names().join(", ");
        Reply {
            status: 200,
            content_type: "text/plain; charset=utf-8",
            body: USAGE.replace("{rewards}", &printable(&names)),
        }
    }

    /// The protocol of rewards over HTTP.
    pub fn score(&self, body: &[u8]) -> Reply {
        self.scores(body).unwrap_or_else(|refusal| refusal)
    }

    /// Rows as the command writes them: one, a list, or `{"rows": [...]}`, each answered in kind.
    pub fn rows(&self, query: Option<&str>, body: &[u8]) -> Reply {
        self.scored_rows(query, body).unwrap_or_else(|refusal| refusal)
    }

    fn scores(&self, body: &[u8]) -> Result<Reply, Reply> {
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
        let scores = self.scorer.totals(rows).map_err(refusal)?;
        let mut response = Map::new();
        if let Some(id) = request.remove("id") {
            response.insert("id".to_owned(), id);
        }
        response.insert("scores".to_owned(), json!(scores));
        Ok(Reply::json(200, &Value::Object(response)))
    }

    fn scored_rows(&self, query: Option<&str>, body: &[u8]) -> Result<Reply, Reply> {
        let explain = self.is_explained(query)?;
        let Parsed { value, mut lost } = parsed(body)?;
        let response = match value {
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
        Ok(Reply::json(200, &response))
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

    fn written(&self, rows: Vec<AskedRow>, explain: bool) -> Result<Vec<Value>, Reply> {
        self.scorer.written(rows, explain).map_err(refusal)
    }
}

fn refusal(Failure { row, is_of_reward, error }: Failure) -> Reply {
    let mut why = json!({"error": error});
    if let Some(row) = row {
        why["row"] = json!(row);
    }
    Reply::json(if is_of_reward { 500 } else { 422 }, &why)
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
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        let why = format!("broken JSON at line {line}, column {column}: {}", error.reason);
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
        is_inside.then(|| Lost { path: lost.path[depth..].to_vec(), what: lost.what.clone() })
    };
    lost.iter().filter_map(inside).collect()
}

fn unexpected(got: &Value) -> Reply {
    let why = format!("got {}, expected `{{\"rows\": [...]}}`", describe(got));
    Reply::refusal(400, &why)
}

fn rows_of(values: Vec<Value>, lost: &[Lost], under: &[&str]) -> Result<Vec<AskedRow>, Reply> {
    let rows = values.into_iter().enumerate();
    let rows = rows.map(|(index, value)| match value {
        Value::Object(columns) => Ok(AskedRow { columns, lost: lost_in(lost, under, index) }),
        other => {
            let why = format!("row {index}: got {}, expected a JSON object", describe(&other));
            Err(Reply::json(422, &json!({"error": why, "row": index})))
        }
    });
    rows.collect()
}
