//! VLM-R1's evaluation files: a list of `image`, `problem` and `solution`, other keys kept.

use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use super::sink::{Draft, Sink};
use super::{ConvertError, stem};

/// One row for each item; a solution that is a list becomes the text of the list.
pub(super) fn convert(path: &Path, sink: &mut Sink<'_>) -> Result<(), ConvertError> {
    let split = stem(path);
    for item in json::items(path)? {
        match item.object.as_ref().ok_or("no JSON object").and_then(draft) {
            Ok(draft) => sink.row(Draft {
                place: item.place,
                split: split.clone(),
                ..draft
            })?,
            Err(reason) => sink.skip("bad_row", &item.place, reason),
        }
    }
    Ok(())
}

fn draft(object: &Map<String, Value>) -> Result<Draft, &'static str> {
    let problem = object.get("problem").and_then(Value::as_str);
    let answer = match object.get("solution") {
        Some(answer @ (Value::String(_) | Value::Number(_))) => answer.clone(),
        Some(list @ Value::Array(_)) => Value::String(spaced(list)),
        _ => return Err("`solution`: expected a list, a text or a number"),
    };
    let images = match object.get("image") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) => names
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or("`image`: expected file names")?,
        Some(_) => return Err("`image`: expected file names"),
    };
    let others = object.iter();
    let others =
        others.filter(|(key, _)| !["image", "problem", "solution"].contains(&key.as_str()));
    Ok(Draft {
        images,
        question: problem.ok_or("`problem`: expected a text")?.to_owned(),
        answer,
        columns: others
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        ..Draft::default()
    })
}

/// A list as Python prints it.
fn spaced(list: &Value) -> String {
    crate::python::json_dumps(list, &crate::python::DumpStyle::default())
}
