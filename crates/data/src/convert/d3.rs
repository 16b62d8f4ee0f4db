//! D-cube (D3, shikras/d-cube `doc.md`): a folder of `sentences.pkl`, `annotations.pkl` and
//! `images.pkl`, with `groups.pkl` beside them where hard negatives are wanted. Boxes are
//! `[x, y, width, height]`, or NumPy arrays with one such row, as the published files have them.
//! Every description was looked for in every image, so one without an annotation is absent.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::detection::{Object, Scene};
use super::read_pickle;
use super::sink::Sink;
use super::{ConvertError, ConvertOptions};

/// One row for each image, in the order of their numbers; negatives are drawn from descriptions of the
/// image's group first.
pub(super) fn convert(
    folder: &Path,
    options: &ConvertOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ConvertError> {
    let sentences = table(&folder.join("sentences.pkl"))?;
    let annotations = table(&folder.join("annotations.pkl"))?;
    let images = table(&folder.join("images.pkl"))?;
    let groups = match folder.join("groups.pkl") {
        path if path.exists() => table(&path)?,
        _ => Map::new(),
    };
    let names: HashMap<&str, &str> = sentences
        .iter()
        .filter_map(|(id, sentence)| Some((id.as_str(), sentence.get("raw_sent")?.as_str()?)))
        .collect();
    let mut all: Vec<(i64, &str)> = names.iter().map(|(id, name)| (number(id), *name)).collect();
    all.sort_unstable();
    let all: Vec<&str> = all.into_iter().map(|(_, name)| name).collect();
    let mut ordered: Vec<(&String, &Value)> = images.iter().collect();
    ordered.sort_by_key(|(id, _)| number(id));
    for (index, (id, image)) in ordered.into_iter().enumerate() {
        let place = format!("{}: image {id}", folder.display());
        let Some(file_name) = image.get("file_name").and_then(Value::as_str) else {
            sink.skip("bad_row", &place, "no `file_name`");
            continue;
        };
        let side = |key: &str| image.get(key).and_then(Value::as_f64).filter(|side| *side >= 1.0);
        let scene = Scene {
            place,
            index: index as u64,
            image: file_name.to_owned(),
            size: side("width").zip(side("height")).map(|(w, h)| [w, h]),
            objects: objects(image, &annotations, &names),
            ..Scene::default()
        };
        let own = image.get("group_id").and_then(key).and_then(|id| groups.get(&id));
        let of_group = own.map(|group| ids(group, "inner_sent_id")).unwrap_or_default();
        let hard = of_group.iter().filter_map(|id| names.get(id.as_str()).copied()).collect();
        scene.ask_with_negatives(&[hard, all.clone()], options, sink)?;
    }
    Ok(())
}

/// A pickle of objects by number.
fn table(path: &Path) -> Result<Map<String, Value>, ConvertError> {
    match read_pickle(path)? {
        Value::Object(table) => Ok(table),
        _ => Err(ConvertError::Form {
            path: path.to_owned(),
            reason: "expected a dict of objects by number".to_owned(),
        }),
    }
}

/// What is annotated in an image: one object for each description that a box fits.
fn objects(
    image: &Value,
    annotations: &Map<String, Value>,
    names: &HashMap<&str, &str>,
) -> Vec<Object> {
    let mut objects = Vec::new();
    for annotation in ids(image, "anno_id").iter().filter_map(|id| annotations.get(id)) {
        let is_crowd = annotation.get("iscrowd").and_then(Value::as_f64) == Some(1.0);
        for sentence in ids(annotation, "sent_id") {
            if let Some(name) = names.get(sentence.as_str()) {
                objects.push(Object {
                    label: (*name).to_owned(),
                    bbox: annotation
                        .get("bbox")
                        .and_then(bbox)
                        .ok_or_else(|| "no `bbox` of four numbers".to_owned()),
                    is_crowd,
                });
            }
        }
    }
    objects
}

/// Four numbers, or a list of one list of them.
fn bbox(value: &Value) -> Option<[f64; 4]> {
    let items = value.as_array()?;
    if let [inner @ Value::Array(_)] = items.as_slice() {
        return bbox(inner);
    }
    let numbers: Option<Vec<f64>> = items.iter().map(Value::as_f64).collect();
    numbers?.try_into().ok()
}

/// The numbers under a key, as keys of the other tables.
fn ids(value: &Value, name: &str) -> Vec<String> {
    let list = value.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(key).collect()
}

fn key(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// A key as a number, for an order that does not depend on the file's.
fn number(id: &str) -> i64 {
    id.parse().unwrap_or(i64::MAX)
}
