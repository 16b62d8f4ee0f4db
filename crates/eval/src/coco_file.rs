//! Questions of detection from COCO's JSON, and from OVDEval's, which adds `text` and `neg_text` to each
//! image.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use base::{Example, SourceLine};
use config::{EvalConfig, EvalTask, LabelList};
use data::coco::{CocoAnnotation, CocoFile, CocoImage, Id, Unplaced};
use data::convert::detection_question;
use data::image::other_size;
use data::{DataFile, ImageFolder, Repeat};
use serde_json::{Value, json};

use crate::EvalError;
use crate::questions::{Question, Truth};

/// Files of OVDEval whose prompts name all categories.
const NAMED_BY_ALL: [&str; 4] = ["coco", "celebrity", "logo", "landmark"];

/// Images of another size that are named.
const MAX_SHOWN: usize = 3;

/// The labelled boxes of an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// COCO's id of the image: average precision takes images in its order. Rows have none.
    pub image_id: Option<Id>,
    /// The true boxes.
    pub truths: Vec<Object>,
    /// Categories that were left out here: what is predicted of them does not count.
    pub left_out: Vec<String>,
    /// Categories of the file: a predicted label means the one that it equals but for case and space.
    pub categories: Arc<Vec<String>>,
    /// Whether the boxes are a row's, in the units of solutions.
    pub is_of_row: bool,
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

/// Reads a file.
///
/// # Errors
/// A file that cannot be read, or has no images.
pub fn read(file: &DataFile, config: &EvalConfig, subset: &str) -> Result<Read, EvalError> {
    let path = &file.path;
    let refuse = |cause: String| EvalError::Coco { path: path.clone(), cause };
    let parsed = CocoFile::read(path)?;
    if parsed.images.is_empty() && parsed.bad_images.is_empty() {
        return Err(refuse("no images".to_owned()));
    }
    let mut notes = notes_of(&parsed, path);
    let truths = Truths::of(&parsed, file, &mut notes);
    let folder = ImageFolder::new(file.image_folder.as_deref());
    let labels = config.questions.labels.unwrap_or(match config.questions.task {
        Some(EvalTask::OvdEval) if !NAMED_BY_ALL.contains(&subset) => LabelList::Image,
        _ => LabelList::All,
    });
    let mut reader = Reader {
        file,
        folder,
        follow_links: config.load.follow_links,
        labels,
        truths,
        limit: config.questions.max_boxes_per_category,
        empty: 0,
        other_sizes: Vec::new(),
    };
    let images = parsed.images.iter().enumerate();
    let mut rows: Vec<Question> =
        images.filter_map(|(index, image)| reader.question(index, image)).collect();
    if reader.empty > 0 {
        notes.push(format!(
            "{}: {} of {} images left out: no label to ask for, or no true box left",
            path.display(),
            reader.empty,
            parsed.images.len()
        ));
    }
    notes.extend(reader.size_note());
    let bad = parsed.bad_images.iter();
    rows.extend(bad.map(|cause| Question {
        subset: 0,
        place: path.display().to_string(),
        example: Err(cause.clone()),
        truth: Truth::InSolution,
    }));
    if rows.is_empty() {
        return Err(refuse("no image is left to ask about".to_owned()));
    }
    Ok(Read { rows, notes })
}

/// What is odd about a file, in lines.
fn notes_of(file: &CocoFile, path: &Path) -> Vec<String> {
    let path = path.display();
    let note = |what: &str, repeats: &[Repeat<Id>]| {
        let first = &repeats.first()?.id;
        let differing = repeats.iter().find(|repeat| repeat.differs);
        let differing = differing.map_or(String::new(), |repeat| {
            format!(
                "; entries of one id differ, the first of them those of {}: the last counts",
                repeat.id
            )
        });
        Some(format!(
            "warning: {path}: {} {what} under an id that stood there before are taken once, the first of them {first}{differing}",
            repeats.len()
        ))
    };
    let repeated = &file.repeated;
    let repeated = [
        note("images", &repeated.images),
        note("annotations", &repeated.annotations),
        note("categories", &repeated.categories),
    ];
    let odd = file.notes.iter();
    let odd = odd.map(|note| format!("warning: {path}: {note}"));
    repeated.into_iter().flatten().chain(odd).collect()
}

/// True boxes by image, with what is wrong with some.
struct Truths {
    categories: Arc<Vec<String>>,
    /// Of each image, by its number in the file.
    of_image: Vec<Vec<Object>>,
    bad: HashMap<usize, String>,
}

impl Truths {
    fn of(parsed: &CocoFile, file: &DataFile, notes: &mut Vec<String>) -> Self {
        let mut of_image = vec![Vec::new(); parsed.images.len()];
        let mut bad = HashMap::new();
        let mut homeless = Vec::new();
        let index = parsed.index();
        for annotation in &parsed.annotations {
            let placed = index.place(annotation);
            match placed.and_then(|(image, name)| Ok((image, object(annotation, image, name)?))) {
                Ok((image, object)) => of_image[image].push(object),
                Err(Unplaced::NoImage(cause)) => homeless.push(cause),
                Err(Unplaced::Bad(image, cause)) => {
                    bad.entry(image).or_insert(cause);
                }
            }
        }
        if let Some(first) = homeless.first() {
            notes.push(format!(
                "{}: {} annotations of images that the file does not list: {first}",
                file.path.display(),
                homeless.len()
            ));
        }
        let mut categories: Vec<String> = Vec::new();
        for category in &parsed.categories {
            if !categories.contains(&category.name) {
                categories.push(category.name.clone());
            }
        }
        Self { categories: Arc::new(categories), of_image, bad }
    }
}

fn object(annotation: &CocoAnnotation, image: usize, name: &str) -> Result<Object, Unplaced> {
    let bad = |cause: String| Unplaced::Bad(image, format!("{}: {cause}", annotation.name()));
    let [x, y, width, height] = annotation.bbox.clone().map_err(bad)?;
    let is_crowd = annotation.is_crowd.clone().map_err(bad)?;
    if width < 0.0 || height < 0.0 {
        let shown = format!("[{x}, {y}, {width}, {height}]");
        return Err(bad(format!("`bbox` is {shown}, expected [x, y, width, height]")));
    }
    Ok(Object { label: name.to_owned(), corners: [x, y, x + width, y + height], is_crowd })
}

struct Reader<'a> {
    file: &'a DataFile,
    folder: ImageFolder,
    follow_links: bool,
    labels: LabelList,
    truths: Truths,
    limit: Option<usize>,
    empty: usize,
    /// Images of another size than the file says.
    other_sizes: Vec<String>,
}

impl Reader<'_> {
    /// The question about an image; none where it is left out on purpose.
    fn question(&mut self, index: usize, image: &CocoImage) -> Option<Question> {
        let mut objects = Objects {
            image_id: Some(image.id.clone()),
            truths: std::mem::take(&mut self.truths.of_image[index]),
            left_out: Vec::new(),
            categories: Arc::clone(&self.truths.categories),
            is_of_row: false,
        };
        if let Some(limit) = self.limit {
            leave_out(&mut objects, limit);
            if objects.truths.iter().all(|object| object.is_crowd) {
                self.empty += 1;
                return None;
            }
        }
        let bad = self.truths.bad.get(&index).cloned();
        let labels = self.labels_of(image, &objects);
        let example = match (bad, labels) {
            (Some(cause), _) | (None, Err(cause)) => Err(cause),
            (None, Ok(labels)) if labels.is_empty() => {
                self.empty += 1;
                return None;
            }
            (None, Ok(labels)) => self.example(image, &labels),
        };
        Some(Question {
            subset: 0,
            place: self.place(image),
            example,
            truth: Truth::Objects(objects),
        })
    }

    fn size_note(&self) -> Option<String> {
        let shown = self.other_sizes.iter().take(MAX_SHOWN);
        let shown: Vec<&str> = shown.map(String::as_str).collect();
        (!shown.is_empty()).then(|| {
            format!(
                "warning: {}: {} of the images have another size than the file says: {}\n\
                 hint: true boxes fit images of the stated size: give the images that were annotated",
                self.file.path.display(),
                self.other_sizes.len(),
                shown.join(", ")
            )
        })
    }

    fn place(&self, image: &CocoImage) -> String {
        let (path, name) = (self.file.path.display(), &image.file_name);
        format!("{path}: image {} ({name})", image.id)
    }

    fn labels_of(&self, image: &CocoImage, objects: &Objects) -> Result<Vec<String>, String> {
        let is_left = |label: &String| !objects.left_out.contains(label);
        let mut labels: Vec<String> = match self.labels {
            LabelList::All => self.truths.categories.to_vec(),
            LabelList::Image => match (&image.text, &image.neg_text) {
                (None, None) => {
                    let present = |name: &&String| objects.truths.iter().any(|o| o.label == **name);
                    self.truths.categories.iter().filter(present).cloned().collect()
                }
                (text, negative) => {
                    let mut labels = Vec::new();
                    for named in [text, negative].into_iter().flatten() {
                        labels.extend(named.clone()?);
                    }
                    labels
                }
            },
        };
        labels.retain(is_left);
        let mut seen = std::collections::HashSet::new();
        labels.retain(|label| seen.insert(label.clone()));
        Ok(labels)
    }

    fn example(&mut self, image: &CocoImage, labels: &[String]) -> Result<Example, String> {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let path = self.folder.resolve(&image.file_name, self.follow_links);
        if let (Ok(path), Some(stated)) = (&path, image.size)
            && let Some(text) = other_size(path, stated)
        {
            self.other_sizes.push(format!("{} ({text})", image.file_name));
        }
        let columns = json!({"image": image.file_name, "image_id": image.id});
        let Value::Object(columns) = columns else {
            return Err("no row".to_owned());
        };
        Ok(Example {
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

/// Takes categories with more than `limit` boxes out of an image.
fn leave_out(objects: &mut Objects, limit: usize) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for object in &objects.truths {
        *counts.entry(object.label.clone()).or_default() += 1;
    }
    let over = counts.into_iter().filter(|(_, count)| *count > limit);
    objects.left_out = over.map(|(label, _)| label).collect();
    objects.truths.retain(|object| !objects.left_out.contains(&object.label));
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
    use std::fs;

    use super::*;

    fn read_file(file: &Value) -> Read {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("val.json");
        fs::write(&path, file.to_string()).expect("writes");
        let file = DataFile { path, image_folder: None, reward_method: None };
        let config = EvalConfig::default().with(|c| c.questions.task = Some(EvalTask::Ovd));
        read(&file, &config, "val").expect("a file of COCO's form")
    }

    /// The second copy of an image had no truths left, and all that was found in it counted as false.
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
        let truths: Vec<(Option<Id>, Vec<f64>)> = read
            .rows
            .iter()
            .map(|row| match &row.truth {
                Truth::Objects(objects) => {
                    let lefts = objects.truths.iter().map(|object| object.corners[0]);
                    (objects.image_id.clone(), lefts.collect())
                }
                _ => panic!("boxes"),
            })
            .collect();
        let of = |id, lefts| (Some(Id::Whole(id)), lefts);
        assert_eq!(truths, [of(1, vec![10.0]), of(2, vec![30.0, 10.0, 10.0])]);
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
