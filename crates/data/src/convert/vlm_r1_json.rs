//! VLM-R1's evaluation files: a list of `image`, `problem` and `solution`, other keys kept.

use std::path::Path;

use python::repr::str_of;
use serde_json::{Map, Value};

use super::json;
use super::sink::{Draft, Sink};
use super::{ConvertError, stem};

/// The keys that are read.
const READ: &[&str] = &["image", "problem", "solution"];

/// One row for each item; a solution that is no text becomes the text that Python's `str` makes of it.
pub(super) fn convert(path: &Path, sink: &mut Sink<'_>) -> Result<(), ConvertError> {
    let split = stem(path);
    for item in json::items(path, READ)? {
        let item = item?;
        let drafted = item.object.and_then(|object| draft(&object).map_err(str::to_owned));
        match drafted {
            Ok(draft) => {
                sink.note_lost(&item.place, &item.lost);
                sink.row(Draft { place: item.place, split: split.clone(), ..draft })?;
            }
            Err(reason) => sink.skip("bad_row", &item.place, &reason),
        }
    }
    Ok(())
}

fn draft(object: &Map<String, Value>) -> Result<Draft, &'static str> {
    let problem = object.get("problem").and_then(Value::as_str);
    let answer = match object.get("solution") {
        Some(answer @ (Value::String(_) | Value::Number(_))) => answer.clone(),
        None | Some(Value::Null) => return Err("no `solution`"),
        Some(other) => Value::String(str_of(other)),
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
    let others = others.filter(|(key, _)| !READ.contains(&key.as_str()));
    Ok(Draft {
        images,
        question: problem.ok_or("`problem`: expected a text")?.to_owned(),
        answer,
        columns: others.map(|(key, value)| (key.clone(), value.clone())).collect(),
        ..Draft::default()
    })
}
