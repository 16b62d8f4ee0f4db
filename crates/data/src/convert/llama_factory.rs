//! LLaMA-Factory's ShareGPT and ms-swift's messages: `messages` of `role` and `content`, or `conversations` of `from` and
//! `value`, with `images` beside them; a list, or one object a line. `<ref-object>` and `<bbox>` of ms-swift are filled from
//! `objects`. Rows that VLM-R1's form cannot hold are left out and counted.

use std::path::Path;

use python::json::parse;
use python::json_dumps::{DumpStyle, json_dumps};
use serde_json::{Map, Value};

use super::json;
use super::sink::{Draft, Sink};
use super::{ConvertError, stem};
use crate::placeholders::placeholders;
use crate::row::{IMAGE_MARK, reserved_tokens};
use crate::unread::{ReadKeys, Why, changes_meaning, has_content, hidden_media};

/// Keys of the turns, of the speaker and of the text.
const FORMS: [(&str, &str, &str); 2] =
    [("messages", "role", "content"), ("conversations", "from", "value")];
/// The keys that become a part of rows.
const READ: &[&str] = &["messages", "conversations", "images", "image", "objects"];
const HUMAN: [&str; 2] = ["user", "human"];
const MODEL: [&str; 2] = ["assistant", "gpt"];
/// Keys of the images.
const IMAGES: [&str; 2] = ["images", "image"];
/// Media that rows cannot hold here.
const OTHER_MEDIA: [&str; 4] = ["videos", "audios", "video", "audio"];
/// Keys of a row that change what is asked or taught, and why their row is left out.
const MEANINGS: [(&str, &str); 17] = [
    ("system", "system_turn"),
    ("tools", "tools"),
    ("functions", "tools"),
    ("history", "history"),
    ("chosen", "preference"),
    ("rejected", "preference"),
    ("rejected_response", "preference"),
    ("rejected_messages", "preference"),
    ("rejected_images", "preference"),
    ("positive_messages", "preference"),
    ("negative_messages", "preference"),
    ("kto_tag", "unwanted_answer"),
    ("loss", "loss"),
    ("loss_scale", "loss"),
    ("mask_history", "loss"),
    ("reasoning_content", "reasoning"),
    ("weight", "loss"),
];
/// The same of a turn.
const TURN_MEANINGS: [(&str, &str); 9] = [
    ("reasoning_content", "reasoning"),
    ("reasoning", "reasoning"),
    ("thinking", "reasoning"),
    ("tool_calls", "tools"),
    ("function_call", "tools"),
    ("loss", "loss"),
    ("loss_scale", "loss"),
    ("weight", "loss"),
    ("train", "loss"),
];
/// What `objects` fills.
const REF_OBJECT: &str = "<ref-object>";
const BBOX: &str = "<bbox>";

/// One row for each conversation of one question and one answer.
pub(super) fn convert(path: &Path, sink: &mut Sink<'_>) -> Result<(), ConvertError> {
    let split = stem(path);
    for item in json::items(path, READ)? {
        let item = item?;
        let object = match item.object {
            Ok(object) => object,
            Err(reason) => {
                sink.skip("bad_row", &item.place, &reason);
                continue;
            }
        };
        match draft(&object) {
            Ok(draft) => sink.row(Draft { place: item.place, split: split.clone(), ..draft })?,
            Err((reason, text)) => sink.skip(reason, &item.place, &text),
        }
    }
    Ok(())
}

type Refusal = (&'static str, String);

fn draft(object: &Map<String, Value>) -> Result<Draft, Refusal> {
    let is_there = |key: &str| object.get(key).is_some_and(has_content);
    if let Some(key) = OTHER_MEDIA.iter().find(|key| is_there(key)) {
        return Err(("other_media", format!("`{key}`")));
    }
    refuse_meanings(object, &MEANINGS)?;
    // A label that is a truth value is ms-swift's of a wanted answer, else anything.
    if object.get("label") == Some(&Value::Bool(false)) {
        return Err(("unwanted_answer", "`label` is false".to_owned()));
    }
    let [(question_by, question), (answer_by, answer)] = turns(object)?;
    if !HUMAN.contains(&question_by) || !MODEL.contains(&answer_by) {
        return Err(("turns", format!("turns of `{question_by}` and `{answer_by}`")));
    }
    let images = images(object)?;
    let objects = objects(object.get("objects"))?;
    let [question, answer] = filled([question, answer], objects.as_ref())?;
    let marks = placeholders(&question).into_iter();
    let marks = marks.filter(|mark| *mark != IMAGE_MARK);
    if let Some(mark) = marks.chain(placeholders(&answer)).next() {
        let text = format!("nothing says what `{mark}` stands for");
        // The check of rows reports these.
        if !reserved_tokens().any(|token| token == mark) {
            return Err(("placeholder", text));
        }
    }
    Ok(Draft { images, question, answer: Value::String(answer), ..Draft::default() })
}

/// Refuses what would be dropped although it changes the meaning.
fn refuse_meanings(
    object: &Map<String, Value>,
    meanings: &[(&str, &'static str)],
) -> Result<(), Refusal> {
    let is_said = |key: &str| {
        let value = object.get(key).filter(|value| has_content(value));
        value.is_some_and(changes_meaning)
    };
    match meanings.iter().find(|(key, _)| is_said(key)) {
        Some((key, reason)) => Err((
            reason,
            format!("`{key}`, for which rows have no place: {}", shortened(&object[*key])),
        )),
        None => Ok(()),
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text,
    }
}

/// `objects`, which tables keep as JSON text.
fn objects(given: Option<&Value>) -> Result<Option<Value>, Refusal> {
    match given {
        Some(Value::String(text)) if !text.trim().is_empty() => match parse(text) {
            Ok(parsed) => Ok(Some(parsed.value)),
            Err(error) => {
                let text =
                    format!("`objects`: broken JSON at column {}: {}", error.at + 1, error.reason);
                Err(("bad_row", text))
            }
        },
        given => Ok(given.cloned()),
    }
}

/// The texts with `<ref-object>` and `<bbox>` filled in their order, boxes as lists of their numbers.
fn filled(texts: [&str; 2], objects: Option<&Value>) -> Result<[String; 2], Refusal> {
    let mut texts = texts.map(str::to_owned);
    for (mark, key) in [(REF_OBJECT, "ref"), (BBOX, "bbox")] {
        let count: usize = texts.iter().map(|text| text.matches(mark).count()).sum();
        if count == 0 {
            continue;
        }
        let values = objects.and_then(|objects| objects.get(key));
        let values = values.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if values.len() != count {
            let text = format!("{count} `{mark}` but {} in `objects.{key}`", values.len());
            return Err(("placeholder", text));
        }
        let mut values = values.iter();
        for text in &mut texts {
            let mut parts = text.split(mark);
            let mut whole = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                whole.push_str(&value_of(key, values.next(), objects)?);
                whole.push_str(part);
            }
            *text = whole;
        }
    }
    Ok(texts)
}

/// The text that replaces a mark: a name, or a box in pixels of the image.
fn value_of(key: &str, value: Option<&Value>, objects: Option<&Value>) -> Result<String, Refusal> {
    let refused = |what: &str| Err(("placeholder", format!("`objects.{key}`: {what}")));
    let units = objects.and_then(|objects| objects.get("bbox_type")?.as_str());
    match value {
        Some(Value::String(name)) if key == "ref" => Ok(name.clone()),
        Some(Value::Array(numbers)) if key == "bbox" => {
            let is_box = matches!(numbers.len(), 2 | 4) && numbers.iter().all(Value::is_number);
            match units {
                _ if !is_box => refused("expected two or four numbers"),
                None | Some("real") => {
                    Ok(json_dumps(&Value::Array(numbers.clone()), &DumpStyle::default()))
                }
                Some(units) => refused(&format!("boxes in `{units}`, expected pixels (`real`)")),
            }
        }
        _ => refused("expected a name for each `ref` and a list for each `bbox`"),
    }
}

/// Speaker and text of the two turns.
fn turns(object: &Map<String, Value>) -> Result<[(&str, &str); 2], Refusal> {
    let form = FORMS.iter().find(|(key, ..)| object.contains_key(*key));
    let Some((key, by, said)) = form else {
        return Err(("bad_row", "neither `messages` nor `conversations`".to_owned()));
    };
    let wrong = |what: String| ("bad_row", what);
    let turns = object[*key].as_array();
    let turns = turns.ok_or_else(|| wrong(format!("`{key}` is no list")))?;
    if turns.iter().any(|turn| turn[*by] == "system") {
        return Err(("system_turn", "rows have no place for a system's turn".to_owned()));
    }
    for turn in turns.iter().filter_map(Value::as_object) {
        refuse_meanings(turn, &TURN_MEANINGS)?;
    }
    let [question, answer] = turns.as_slice() else {
        return Err(("turns", format!("{} turns, expected a question and an answer", turns.len())));
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

fn images(object: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let given = IMAGES.iter().filter_map(|key| object.get(*key));
    let mut lists = Vec::new();
    for value in given.filter(|value| has_content(value)) {
        lists.push(names(value)?);
    }
    if lists.windows(2).any(|lists| lists[0] != lists[1]) {
        return Err(("bad_row", "`images` and `image` differ".to_owned()));
    }
    if let Some(names) = lists.into_iter().next() {
        return Ok(names);
    }
    let read = ReadKeys {
        image: "images",
        others: &["messages", "conversations", "objects"],
        is_asked: false,
    };
    match hidden_media(object, &read) {
        Some(found) if found.why == Why::OtherMedia => {
            Err(("other_media", format!("`{}`", found.key)))
        }
        Some(found) => Err(("hidden_media", found.text_of_blind_row("images"))),
        None => Ok(Vec::new()),
    }
}

fn names(value: &Value) -> Result<Vec<String>, Refusal> {
    let wrong = || ("bad_row", "images that are no file names".to_owned());
    match value {
        Value::String(name) => Ok(vec![name.clone()]),
        Value::Array(names) => {
            names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}
