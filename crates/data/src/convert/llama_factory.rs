//! LLaMA-Factory's ShareGPT: `messages` of `role` and `content`, or `conversations` of `from` and
//! `value`, with `images` beside them; a list, or one object a line.

use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use super::sink::{Draft, Sink};
use super::{ConvertError, stem};

/// Keys of the turns, of who speaks, and of what is said.
const FORMS: [(&str, &str, &str); 2] = [
    ("messages", "role", "content"),
    ("conversations", "from", "value"),
];
const HUMAN: [&str; 2] = ["user", "human"];
const MODEL: [&str; 2] = ["assistant", "gpt"];
/// Keys of the images.
const IMAGES: [&str; 2] = ["images", "image"];
/// What rows of ours cannot show.
const OTHER_MEDIA: [&str; 4] = ["videos", "audios", "video", "audio"];

/// One row for each conversation of one question and one answer.
pub(super) fn convert(path: &Path, sink: &mut Sink<'_>) -> Result<(), ConvertError> {
    let split = stem(path);
    for item in json::items(path)? {
        let Some(object) = item.object else {
            sink.skip("bad_row", &item.place, "no JSON object");
            continue;
        };
        match draft(&object) {
            Ok(draft) => sink.row(Draft {
                place: item.place,
                split: split.clone(),
                ..draft
            })?,
            Err((reason, text)) => sink.skip(reason, &item.place, &text),
        }
    }
    Ok(())
}

type Refusal = (&'static str, String);

fn draft(object: &Map<String, Value>) -> Result<Draft, Refusal> {
    let is_there = |key: &str| object.get(key).is_some_and(|value| !is_empty(value));
    if let Some(key) = OTHER_MEDIA.iter().find(|key| is_there(key)) {
        return Err(("other_media", format!("`{key}`")));
    }
    let [(question_by, question), (answer_by, answer)] = turns(object)?;
    if !HUMAN.contains(&question_by) || !MODEL.contains(&answer_by) {
        return Err((
            "turns",
            format!("turns of `{question_by}` and `{answer_by}`"),
        ));
    }
    Ok(Draft {
        images: images(object)?,
        question: question.to_owned(),
        answer: Value::String(answer.to_owned()),
        ..Draft::default()
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Speaker and text of the two turns.
fn turns(object: &Map<String, Value>) -> Result<[(&str, &str); 2], Refusal> {
    let form = FORMS.iter().find(|(key, ..)| object.contains_key(*key));
    let Some((key, by, said)) = form else {
        return Err((
            "bad_row",
            "neither `messages` nor `conversations`".to_owned(),
        ));
    };
    let wrong = |what: String| ("bad_row", what);
    let turns = object[*key].as_array();
    let turns = turns.ok_or_else(|| wrong(format!("`{key}` is no list")))?;
    if is_text(object.get("system")) || turns.iter().any(|turn| turn[*by] == "system") {
        return Err((
            "system_turn",
            "rows have no place for a system's turn".to_owned(),
        ));
    }
    let [question, answer] = turns.as_slice() else {
        return Err((
            "turns",
            format!("{} turns, expected a question and an answer", turns.len()),
        ));
    };
    let mut texts = [("", ""); 2];
    for (text, turn) in texts.iter_mut().zip([question, answer]) {
        let of = |key: &str| {
            let text = turn.get(key).and_then(Value::as_str);
            text.ok_or_else(|| wrong(format!("a turn without the text `{key}`")))
        };
        *text = (of(by)?, of(said)?);
    }
    Ok(texts)
}

fn is_text(value: Option<&Value>) -> bool {
    value
        .and_then(Value::as_str)
        .is_some_and(|text| !text.is_empty())
}

fn images(object: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let wrong = || ("bad_row", "images that are no file names".to_owned());
    let Some(value) = IMAGES.iter().find_map(|key| object.get(*key)) else {
        return Ok(Vec::new());
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(name) => Ok(vec![name.clone()]),
        Value::Array(names) => names
            .iter()
            .map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}
