//! Questions of detection from COCO's JSON, and from OVDEval's, which adds `text` and `neg_text` to each
//! image.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use base::config::{EvalConfig, EvalTask, LabelList};
use base::{Sample, SourceLine};
use data::convert::detection_question;
use data::{DataFile, ImageFolder, Repeat, once};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::EvalError;
use crate::questions::{Question, Truth};

/// Files of OVDEval whose prompts name all categories.
const NAMED_BY_ALL: [&str; 4] = ["coco", "celebrity", "logo", "landmark"];

/// The labelled boxes of an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// COCO's id of the image: average precision takes images in its order.
    pub image_id: u64,
    /// The true boxes.
    pub truths: Vec<Object>,
    /// Categories that were left out here: what is predicted of them does not count.
    pub left_out: Vec<String>,
    /// Categories of the file: a predicted label means the one that it equals but for case and space.
    pub categories: std::sync::Arc<Vec<String>>,
}

/// A true box.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its category.
    pub label: String,
    /// `[x1, y1, x2, y2]`, px of the image.
    pub corners: [f64; 4],
    /// Whether it stands for many objects.
    pub is_crowd: bool,
}

/// What a file holds.
pub struct Read {
    /// A question for each image.
    pub rows: Vec<Question>,
    /// What was left out.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(PartialEq, Deserialize)]
struct Image {
    id: u64,
    file_name: String,
    #[serde(default)]
    text: Option<Value>,
    #[serde(default)]
    neg_text: Option<Value>,
}

#[derive(PartialEq, Deserialize)]
struct Annotation {
    #[serde(default)]
    id: Option<Value>,
    image_id: u64,
    category_id: u64,
    bbox: Vec<f64>,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(PartialEq, Deserialize)]
struct Category {
    id: u64,
    name: String,
}

impl File {
    /// Each id once, as pycocotools' index has images and categories. An annotation that is listed twice counts once too, where
    /// pycocotools counts it as two objects.
    fn once(self, path: &Path, notes: &mut Vec<String>) -> Self {
        let (images, of_images) = once(self.images, |image| Some(image.id));
        let annotation_id = |annotation: &Annotation| annotation.id.as_ref().map(Value::to_string);
        let (annotations, of_annotations) = once(self.annotations, annotation_id);
        let (categories, of_categories) = once(self.categories, |category| Some(category.id));
        let mut note = |what: &str, repeats: &[(String, bool)]| {
            let Some((first, _)) = repeats.first() else {
                return;
            };
            let differing = repeats.iter().find(|(_, differs)| *differs);
            let differing = differing.map_or(String::new(), |(id, _)| {
                format!(
                    "; entries of one id differ, the first of them those of {id}: the last counts"
                )
            });
            notes.push(format!(
                "warning: {}: {} {what} under an id that stood there before are taken once, the first of them {first}{differing}",
                path.display(),
                repeats.len()
            ));
        };
        note("images", &told(&of_images));
        note("annotations", &told(&of_annotations));
        note("categories", &told(&of_categories));
        Self {
            images,
            annotations,
            categories,
        }
    }
}

/// Repeated ids in words, and whether their items differ.
fn told<I: std::fmt::Display>(repeats: &[Repeat<I>]) -> Vec<(String, bool)> {
    let repeats = repeats.iter();
    repeats
        .map(|repeat| (repeat.id.to_string(), repeat.differs))
        .collect()
}

/// Reads a file.
///
/// # Errors
/// A file that cannot be read, or has no images.
pub fn read(file: &DataFile, config: &EvalConfig, subset: &str) -> Result<Read, EvalError> {
    let path = &file.path;
    let io = |source| EvalError::Io {
        path: path.clone(),
        source,
    };
    let parsed: File =
        serde_json::from_str(&fs::read_to_string(path).map_err(io)?).map_err(|e| {
            EvalError::Json {
                path: path.clone(),
                source: e,
            }
        })?;
    if parsed.images.is_empty() {
        return Err(EvalError::Coco {
            path: path.clone(),
            cause: "no images".to_owned(),
        });
    }
    let mut notes = Vec::new();
    let parsed = parsed.once(path, &mut notes);
    let truths = Truths::of(&parsed, file, &mut notes);
    let folder = ImageFolder::new(file.image_folder.as_deref());
    let labels = config.labels.unwrap_or(match config.task {
        Some(EvalTask::OvdEval) if !NAMED_BY_ALL.contains(&subset) => LabelList::Image,
        _ => LabelList::All,
    });
    let mut reader = Reader {
        file,
        folder,
        follow_links: config.follow_links,
        labels,
        truths,
        limit: config.max_boxes_per_category,
        empty: 0,
    };
    let rows: Vec<Question> = parsed
        .images
        .iter()
        .filter_map(|image| reader.question(image))
        .collect();
    if reader.empty > 0 {
        notes.push(format!(
            "{}: {} of {} images left out: no label to ask for, or no true box left",
            path.display(),
            reader.empty,
            parsed.images.len()
        ));
    }
    if rows.is_empty() {
        return Err(EvalError::Coco {
            path: path.clone(),
            cause: "no image is left to ask about".to_owned(),
        });
    }
    Ok(Read { rows, notes })
}

/// True boxes by image, with what is wrong with some.
struct Truths {
    categories: std::sync::Arc<Vec<String>>,
    of_image: HashMap<u64, Vec<Object>>,
    bad: HashMap<u64, String>,
}

impl Truths {
    fn of(parsed: &File, file: &DataFile, notes: &mut Vec<String>) -> Self {
        let names: HashMap<u64, &str> = parsed
            .categories
            .iter()
            .map(|category| (category.id, category.name.as_str()))
            .collect();
        let mut of_image: HashMap<u64, Vec<Object>> = parsed
            .images
            .iter()
            .map(|image| (image.id, Vec::new()))
            .collect();
        let mut bad = HashMap::new();
        let mut homeless = 0;
        for annotation in &parsed.annotations {
            let Some(objects) = of_image.get_mut(&annotation.image_id) else {
                homeless += 1;
                continue;
            };
            match object(annotation, &names) {
                Ok(object) => objects.push(object),
                Err(cause) => {
                    bad.entry(annotation.image_id).or_insert(cause);
                }
            }
        }
        if homeless > 0 {
            notes.push(format!(
                "{}: {homeless} annotations of images that the file does not list",
                file.path.display()
            ));
        }
        let categories = parsed.categories.iter().map(|c| c.name.clone()).collect();
        Self {
            categories: std::sync::Arc::new(categories),
            of_image,
            bad,
        }
    }
}

fn object(annotation: &Annotation, names: &HashMap<u64, &str>) -> Result<Object, String> {
    let name = names.get(&annotation.category_id);
    let Some(name) = name else {
        return Err(format!(
            "an annotation of category {}, which the file does not list",
            annotation.category_id
        ));
    };
    let is_box = |b: &[f64]| b.iter().all(|x| x.is_finite()) && b[2] >= 0.0 && b[3] >= 0.0;
    match annotation.bbox[..] {
        [x, y, width, height] if is_box(&annotation.bbox) => Ok(Object {
            label: (*name).to_owned(),
            corners: [x, y, x + width, y + height],
            is_crowd: annotation.iscrowd != 0,
        }),
        _ => Err(format!(
            "`bbox` is {:?}, expected [x, y, width, height]",
            annotation.bbox
        )),
    }
}

struct Reader<'a> {
    file: &'a DataFile,
    folder: ImageFolder,
    follow_links: bool,
    labels: LabelList,
    truths: Truths,
    limit: Option<usize>,
    empty: usize,
}

impl Reader<'_> {
    /// The question about an image; none where it is left out on purpose.
    fn question(&mut self, image: &Image) -> Option<Question> {
        let mut objects = Objects {
            image_id: image.id,
            truths: self.truths.of_image.remove(&image.id).unwrap_or_default(),
            left_out: Vec::new(),
            categories: std::sync::Arc::clone(&self.truths.categories),
        };
        if let Some(limit) = self.limit {
            leave_out(&mut objects, limit);
            if objects.truths.iter().all(|object| object.is_crowd) {
                self.empty += 1;
                return None;
            }
        }
        let bad = self.truths.bad.get(&image.id).cloned();
        let labels = self.labels_of(image, &objects);
        let sample = match (bad, labels) {
            (Some(cause), _) | (None, Err(cause)) => Err(cause),
            (None, Ok(labels)) if labels.is_empty() => {
                self.empty += 1;
                return None;
            }
            (None, Ok(labels)) => self.sample(image, &labels),
        };
        Some(Question {
            subset: 0,
            place: self.place(image),
            sample,
            truth: Truth::Objects(objects),
        })
    }

    fn place(&self, image: &Image) -> String {
        let (path, name) = (self.file.path.display(), &image.file_name);
        format!("{path}: image {} ({name})", image.id)
    }

    fn labels_of(&self, image: &Image, objects: &Objects) -> Result<Vec<String>, String> {
        let is_left = |label: &String| !objects.left_out.contains(label);
        let mut labels: Vec<String> = match self.labels {
            LabelList::All => self.truths.categories.to_vec(),
            LabelList::Image => match (&image.text, &image.neg_text) {
                (None, None) => {
                    let present = |name: &&String| objects.truths.iter().any(|o| o.label == **name);
                    self.truths
                        .categories
                        .iter()
                        .filter(present)
                        .cloned()
                        .collect()
                }
                (text, negative) => {
                    let mut labels = texts("text", text.as_ref())?;
                    labels.extend(texts("neg_text", negative.as_ref())?);
                    labels
                }
            },
        };
        labels.retain(is_left);
        let mut seen = std::collections::HashSet::new();
        labels.retain(|label| seen.insert(label.clone()));
        Ok(labels)
    }

    fn sample(&self, image: &Image, labels: &[String]) -> Result<Sample, String> {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let path = self.folder.resolve(&image.file_name, self.follow_links);
        let columns = json!({"image": image.file_name, "image_id": image.id});
        let Value::Object(columns) = columns else {
            return Err("no row".to_owned());
        };
        Ok(Sample {
            source: SourceLine::new(&self.file.path, 0),
            images: vec![path.map_err(|cause| cause.to_string())?],
            problem: detection_question(&labels),
            solution: String::new(),
            answer: String::new(),
            accu_reward_method: None,
            columns,
        })
    }
}

fn texts(key: &str, value: Option<&Value>) -> Result<Vec<String>, String> {
    let wrong = || format!("`{key}` is no list of texts");
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        Some(_) => Err(wrong()),
    }
}

/// Takes categories with more than `limit` boxes out of an image.
fn leave_out(objects: &mut Objects, limit: usize) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for object in &objects.truths {
        *counts.entry(object.label.clone()).or_default() += 1;
    }
    let over = counts.into_iter().filter(|(_, count)| *count > limit);
    objects.left_out = over.map(|(label, _)| label).collect();
    objects
        .truths
        .retain(|object| !objects.left_out.contains(&object.label));
}

impl Objects {
    /// The category that a predicted label means, or the label.
    pub fn label<'a>(&'a self, predicted: &'a str) -> &'a str {
        let normal = |text: &str| text.trim().to_lowercase();
        let exact = self.categories.iter().find(|name| *name == predicted);
        let same = || {
            let wanted = normal(predicted);
            self.categories.iter().find(|name| normal(name) == wanted)
        };
        exact.or_else(same).map_or(predicted, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_file(file: &Value) -> Read {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("val.json");
        fs::write(&path, file.to_string()).expect("writes");
        let file = DataFile {
            path,
            image_folder: None,
            reward_method: None,
        };
        let config = EvalConfig {
            task: Some(EvalTask::Ovd),
            ..EvalConfig::default()
        };
        read(&file, &config, "val").expect("a file of COCO's form")
    }

    /// The second copy of a picture had no truths left, and all that was found in it counted as false.
    #[test]
    fn what_is_listed_twice_counts_once_and_is_said() {
        let image = |id: u32, name: &str| json!({"id": id, "file_name": name});
        let boxed = |id: Value, image: u32, x: u32| json!({"id": id, "image_id": image, "category_id": 1, "bbox": [x, 0, 5, 5]});
        let read = read_file(&json!({
            "images": [image(1, "a.png"), image(2, "b.png"), image(1, "a.png"), image(2, "c.png")],
            "annotations": [
                boxed(json!(1), 1, 10), boxed(json!(1), 1, 10), boxed(json!("x"), 2, 10),
                boxed(json!("x"), 2, 30), boxed(Value::Null, 2, 10), boxed(Value::Null, 2, 10),
            ],
            "categories": [{"id": 1, "name": "cup"}, {"id": 1, "name": "cup"}],
        }));
        let truths: Vec<(u64, Vec<f64>)> = read
            .rows
            .iter()
            .map(|row| match &row.truth {
                Truth::Objects(objects) => {
                    let lefts = objects.truths.iter().map(|object| object.corners[0]);
                    (objects.image_id, lefts.collect())
                }
                _ => panic!("boxes"),
            })
            .collect();
        assert_eq!(truths, [(1, vec![10.0]), (2, vec![30.0, 10.0, 10.0])]);
        assert!(read.rows[1].place.ends_with("image 2 (c.png)"));
        let notes = read.notes.join("\n");
        for note in [
            "val.json: 2 images under an id that stood there before are taken once, the first of them 1; entries of one id differ, the first of them those of 2: the last counts",
            "val.json: 2 annotations under an id that stood there before are taken once, the first of them 1; entries of one id differ, the first of them those of \"x\": the last counts",
            "val.json: 1 categories under an id that stood there before are taken once, the first of them 1",
        ] {
            assert!(notes.contains(note), "{note}\n{notes}");
        }
        assert_eq!(read.notes.len(), 3);
    }
}
