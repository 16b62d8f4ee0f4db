//! RefCOCO, RefCOCO+ and RefCOCOg as `refer` has them (lichengunc/refer): expressions in
//! `refs(unc).p`, a pickle (or the same list as JSON), boxes in `instances.json`.

use std::collections::HashMap;
use std::path::Path;

use base::DrawKey;
use config::RowPer;
use serde_json::{Value, json};

use super::coco;
use super::detection::cut_corners;
use super::read_pickle;
use super::sink::{Draft, Sink};
use super::{ConvertError, ConvertOptions, json as json_file};
use crate::coco::{CocoAnnotation, CocoImage, Id};

/// One row for each expression, or for each object with an expression that is drawn.
pub(super) fn convert(
    path: &Path,
    options: &ConvertOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ConvertError> {
    let annotations = options.annotations.as_deref().ok_or(ConvertError::Missing {
        flag: "annotations",
        reason: "RefCOCO's boxes are in `instances.json` beside the expressions",
    })?;
    let file = coco::read(annotations, sink)?;
    let instances = Instances {
        boxes: file.annotations.iter().filter_map(|a| Some((a.id.as_ref()?, a))).collect(),
        images: file.images.iter().map(|image| (&image.id, image)).collect(),
    };
    let is_json = path.extension().is_some_and(|end| end == "json");
    let refs: Value = if is_json { json_file::read(path)? } else { read_pickle(path)? };
    let Value::Array(refs) = refs else {
        return Err(ConvertError::Form {
            path: path.to_owned(),
            reason: "expected a list of expressions".to_owned(),
        });
    };
    for (index, reference) in refs.iter().enumerate() {
        let place = format!("{}: ref {}", path.display(), index + 1);
        match instances.target(reference, &place, sink) {
            Err(reason) => sink.skip("bad_row", &place, &reason),
            Ok(target) => {
                for sentence in sentences(reference, index, options) {
                    sink.row(draft(&place, reference, &target, sentence))?;
                }
            }
        }
    }
    Ok(())
}

/// What `instances.json` says.
struct Instances<'a> {
    boxes: HashMap<&'a Id, &'a CocoAnnotation>,
    images: HashMap<&'a Id, &'a CocoImage>,
}

/// The object that an expression means.
struct Target<'a> {
    image: &'a CocoImage,
    corners: [i64; 4],
}

impl Instances<'_> {
    fn target(
        &self,
        reference: &Value,
        place: &str,
        sink: &mut Sink<'_>,
    ) -> Result<Target<'_>, String> {
        let id = |key: &str| {
            let id = reference.get(key).cloned();
            let id = id.and_then(|id| serde_json::from_value::<Id>(id).ok());
            id.ok_or_else(|| format!("no id `{key}`"))
        };
        let (box_id, image_id) = (id("ann_id")?, id("image_id")?);
        let image = self.images.get(&image_id);
        let image = image.ok_or_else(|| format!("no image {image_id} in the annotations"))?;
        let found = self.boxes.get(&box_id);
        let found = found.ok_or_else(|| format!("no annotation {box_id}"))?;
        let bbox = found.bbox.as_ref();
        let bbox = bbox.map_err(|cause| format!("{}: {cause}", found.name()))?;
        let corners = cut_corners(*bbox, image.size, place, sink)?;
        Ok(Target { image, corners })
    }
}

/// The expressions that become rows.
fn sentences<'a>(reference: &'a Value, index: usize, options: &ConvertOptions) -> Vec<&'a Value> {
    let all = reference.get("sentences").and_then(Value::as_array);
    let all: Vec<&Value> = all.into_iter().flatten().collect();
    match options.row_per {
        RowPer::Sentence => all,
        RowPer::Object => {
            let key = DrawKey { seed: options.seed, step: 0, prompt: index as u64, completion: 0 };
            let drawn = (key.uniform(0) * all.len() as f64) as usize;
            all.get(drawn).copied().into_iter().collect()
        }
    }
}

fn draft(place: &str, reference: &Value, target: &Target<'_>, sentence: &Value) -> Draft {
    let text = |key: &str| sentence.get(key).and_then(Value::as_str);
    let query = text("sent").or_else(|| text("raw")).unwrap_or_default().trim();
    let [x1, y1, x2, y2] = target.corners;
    let mut columns = serde_json::Map::new();
    if let Some([width, height]) = target.image.size {
        columns.insert("width".to_owned(), json!(width as u64));
        columns.insert("height".to_owned(), json!(height as u64));
    }
    columns.insert("normal_caption".to_owned(), json!(query));
    // Without words there is nothing to ask: an empty question is counted as a bad row.
    let question = match query {
        "" => String::new(),
        query => format!(
            "Please provide the bounding box coordinate of the region this sentence describes: {query}."
        ),
    };
    Draft {
        place: place.to_owned(),
        split: reference.get("split").and_then(Value::as_str).unwrap_or_default().to_owned(),
        images: vec![target.image.file_name.clone()],
        question,
        answer: json!(format!("[{x1}, {y1}, {x2}, {y2}]")),
        columns,
        stated_size: target.image.size,
    }
}
