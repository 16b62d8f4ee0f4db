//! The reader of COCO's instances and files of that form: images, and boxes `[x, y, width, height]` by category. It accepts
//! what pycocotools 2.0.11 accepts; a broken entry does not stop the others.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;

use python::json::{Json, Part, parts};

pub use crate::coco_id::Id;
use crate::convert::{ConvertError, json_error, text_of};
use crate::once::{Repeat, once};

/// Characters of a value that are shown.
const SHOWN: usize = 60;
/// Areas outside of which pycocotools does not count a true box.
const AREAS: RangeInclusive<f64> = 0.0..=1e10;

/// A file of annotations; what is not needed is not read.
#[derive(Debug, Default)]
pub struct CocoFile {
    /// The images, each id once.
    pub images: Vec<CocoImage>,
    /// The annotations, each id once.
    pub annotations: Vec<CocoAnnotation>,
    /// The categories, each id once.
    pub categories: Vec<CocoCategory>,
    /// Images that are none, in words.
    pub bad_images: Vec<String>,
    /// Ids that stood there before, and whether another entry did.
    pub repeated: Repeated,
    /// What is odd about the file, in lines.
    pub notes: Vec<String>,
}

/// Ids that a file lists more than once.
#[derive(Debug, Default)]
pub struct Repeated {
    /// Of images.
    pub images: Vec<Repeat<Id>>,
    /// Of annotations.
    pub annotations: Vec<Repeat<Id>>,
    /// Of categories.
    pub categories: Vec<Repeat<Id>>,
}

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct CocoImage {
    /// Its id.
    pub id: Id,
    /// Its file.
    pub file_name: String,
    /// Width and height, px, where the file has them.
    pub size: Option<[f64; 2]>,
    /// OVDEval's labels that are there, if the image names any.
    pub text: Option<Result<Vec<String>, String>>,
    /// OVDEval's labels that are not there.
    pub neg_text: Option<Result<Vec<String>, String>>,
}

/// A box of an image, or what is wrong with it.
#[derive(Clone, Debug)]
pub struct CocoAnnotation {
    /// Its id, if it has one.
    pub id: Option<Id>,
    /// Its number in the list, from 1.
    number: usize,
    /// Its image.
    pub image_id: Result<Id, String>,
    /// Its category.
    pub category_id: Result<Id, String>,
    /// `[x, y, width, height]`.
    pub bbox: Result<[f64; 4], String>,
    /// Whether it stands for many objects.
    pub is_crowd: Result<bool, String>,
}

/// A category.
#[derive(Clone, Debug, PartialEq)]
pub struct CocoCategory {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: String,
}

impl PartialEq for CocoAnnotation {
    /// Wherever they stand.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.image_id == other.image_id
            && self.category_id == other.category_id
            && self.bbox == other.bbox
            && self.is_crowd == other.is_crowd
    }
}

impl CocoAnnotation {
    /// What it is called in messages.
    pub fn name(&self) -> String {
        match &self.id {
            Some(id) => format!("annotation {id}"),
            None => format!("annotation without an id, the {}. of the list", self.number),
        }
    }
}

/// The annotations of a file by image and category.
#[derive(Debug)]
pub struct Index<'a> {
    images: HashMap<&'a Id, usize>,
    categories: HashMap<&'a Id, &'a str>,
}

/// Why an annotation is left aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// The file has no such image.
    NoImage(String),
    /// It is bad, and its image is this one, by its number in the list.
    Bad(usize, String),
}

impl<'a> Index<'a> {
    /// Number of the image of an annotation, and the name of its category.
    ///
    /// # Errors
    /// Those that the file does not have.
    pub fn place(&self, annotation: &CocoAnnotation) -> Result<(usize, &'a str), Unplaced> {
        let name = annotation.name();
        let id = annotation.image_id.as_ref();
        let id = id.map_err(|cause| Unplaced::NoImage(format!("{name}: {cause}")))?;
        let Some(image) = self.images.get(id) else {
            let cause = missing("image", id, self.images.keys());
            return Err(Unplaced::NoImage(format!("{name}: {cause}")));
        };
        let bad = |cause: String| Unplaced::Bad(*image, format!("{name}: {cause}"));
        let id = annotation.category_id.as_ref();
        let id = id.map_err(|cause| bad(cause.clone()))?;
        match self.categories.get(id) {
            Some(name) => Ok((*image, name)),
            None => Err(bad(missing("category", id, self.categories.keys()))),
        }
    }
}

/// That there is no such id, and why where texts stand beside numbers.
fn missing<'i>(what: &str, id: &Id, known: impl Iterator<Item = &'i &'i Id>) -> String {
    let plain = |id: &Id| match id {
        Id::Text(text) => text.clone(),
        number => number.to_string(),
    };
    let mut alike = known.filter(|other| other.is_text() != id.is_text());
    match alike.find(|other| plain(other) == plain(id)) {
        None => format!("no {what} {id}"),
        Some(other) => {
            let [text, number] = if id.is_text() { [id, *other] } else { [*other, id] };
            format!(
                "no {what} {id}, but {other}: {text} is a text, {number} a number, and the two are not equal"
            )
        }
    }
}

impl CocoFile {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is no JSON or is not of this form.
    pub fn read(path: &Path) -> Result<Self, ConvertError> {
        let text = text_of(path)?;
        let mut lists = Lists::default();
        parts(&text, &mut |key, part| lists.take(key, part))
            .map_err(|error| json_error(path, &text, error))?;
        if let Some(key) = lists.absent() {
            return Err(ConvertError::Form {
                path: path.to_owned(),
                reason: format!(
                    "no list `{key}`: COCO's form is one object with `images`, `annotations` and `categories`"
                ),
            });
        }
        let mut file = lists.file;
        file.count_once();
        file.note_alike_categories();
        if lists.odd_areas > 0 {
            file.notes.push(format!(
                "{} annotations have an `area` below 0 or above 1e10: pycocotools leaves such out of its figures, here they count",
                lists.odd_areas
            ));
        }
        Ok(file)
    }

    /// Where annotations belong.
    pub fn index(&self) -> Index<'_> {
        let images = self.images.iter().enumerate();
        let categories = self.categories.iter();
        Index {
            images: images.map(|(index, image)| (&image.id, index)).collect(),
            categories: categories.map(|c| (&c.id, c.name.as_str())).collect(),
        }
    }

    /// Each id once, the last of them, as pycocotools' index has images and categories. An annotation that is listed twice counts
    /// once too, where pycocotools counts it as two objects.
    fn count_once(&mut self) {
        let take = std::mem::take::<Vec<CocoImage>>;
        let (images, of_images) = once(take(&mut self.images), |image| Some(image.id.clone()));
        let annotations = std::mem::take(&mut self.annotations);
        let (annotations, of_annotations) = once(annotations, |found| found.id.clone());
        let categories = std::mem::take(&mut self.categories);
        let (categories, of_categories) = once(categories, |found| Some(found.id.clone()));
        (self.images, self.annotations, self.categories) = (images, annotations, categories);
        self.repeated =
            Repeated { images: of_images, annotations: of_annotations, categories: of_categories };
    }

    fn note_alike_categories(&mut self) {
        let mut first: HashMap<&str, &Id> = HashMap::new();
        let mut alike = None;
        for category in &self.categories {
            let id = *first.entry(&category.name).or_insert(&category.id);
            if *id != category.id {
                alike = alike.or(Some((&category.name, id, &category.id)));
            }
        }
        if let Some((name, a, b)) = alike {
            let note = format!(
                "categories {a} and {b} are both called `{name}`: their boxes count as those of one"
            );
            self.notes.push(note);
        }
    }
}

/// The lists of a file on their way.
#[derive(Default)]
struct Lists {
    file: CocoFile,
    /// Whether `images` and `annotations` are there.
    has: [bool; 2],
    num_images: usize,
    num_annotations: usize,
    odd_areas: usize,
}

impl Lists {
    /// Takes a part of the object; of a repeated key the last counts.
    fn take(&mut self, key: &str, part: Part<'_>) {
        let file = &mut self.file;
        match (key, part) {
            ("images", Part::List) => {
                self.has[0] = true;
                self.num_images = 0;
                file.images.clear();
                file.bad_images.clear();
            }
            ("annotations", Part::List) => {
                self.has[1] = true;
                self.num_annotations = 0;
                file.annotations.clear();
            }
            ("categories", Part::List) => file.categories.clear(),
            ("images", Part::Item(item)) => {
                self.num_images += 1;
                match image(item) {
                    Ok(image) => file.images.push(image),
                    Err(cause) => {
                        let text = format!("image {} of the list: {cause}", self.num_images);
                        file.bad_images.push(text);
                    }
                }
            }
            ("annotations", Part::Item(item)) => {
                self.num_annotations += 1;
                let (annotation, area) = annotation(item, self.num_annotations);
                file.annotations.push(annotation);
                let is_odd = area.is_some_and(|area| !area.is_nan() && !AREAS.contains(&area));
                self.odd_areas += usize::from(is_odd);
            }
            ("categories", Part::Item(mut item)) => {
                let id = item.take("id").and_then(|id| Id::of(&id));
                if let (Some(id), Some(Json::Text(name))) = (id, item.take("name")) {
                    let name = name.into_owned();
                    file.categories.push(CocoCategory { id, name });
                }
            }
            _ => {}
        }
    }

    fn absent(&self) -> Option<&'static str> {
        let keys = ["images", "annotations"].into_iter().zip(self.has);
        keys.filter(|(_, has)| !has).map(|(key, _)| key).next()
    }
}

fn image(mut item: Json<'_>) -> Result<CocoImage, String> {
    let id = id_of(&mut item, "id")?;
    let file_name = match item.take("file_name") {
        Some(Json::Text(name)) if !name.is_empty() => name.into_owned(),
        other => {
            return Err(format!("image {id}: {}", wrong("file_name", other.as_ref(), "a name")));
        }
    };
    let [width, height] = ["width", "height"].map(|key| item.take(key)?.number());
    let size = width.zip(height).map(|(width, height)| [width, height]);
    Ok(CocoImage {
        id,
        file_name,
        size: size.filter(|size| size.iter().all(|side| *side >= 1.0 && side.is_finite())),
        text: labels(&mut item, "text"),
        neg_text: labels(&mut item, "neg_text"),
    })
}

fn annotation(mut item: Json<'_>, number: usize) -> (CocoAnnotation, Option<f64>) {
    let annotation = CocoAnnotation {
        id: item.take("id").and_then(|id| Id::of(&id)),
        number,
        image_id: id_of(&mut item, "image_id"),
        category_id: id_of(&mut item, "category_id"),
        bbox: bbox(item.take("bbox")),
        is_crowd: is_crowd(item.take("iscrowd")),
    };
    (annotation, item.take("area").and_then(|area| area.number()))
}

fn id_of(item: &mut Json<'_>, key: &str) -> Result<Id, String> {
    let value = item.take(key);
    let id = value.as_ref().and_then(Id::of);
    id.ok_or_else(|| wrong(key, value.as_ref(), "a number or a text"))
}

fn bbox(value: Option<Json<'_>>) -> Result<[f64; 4], String> {
    let numbers = match &value {
        Some(Json::List(items)) => items.iter().map(edge).collect::<Option<Vec<f64>>>(),
        _ => None,
    };
    let bbox = numbers.and_then(|numbers| <[f64; 4]>::try_from(numbers).ok());
    bbox.ok_or_else(|| wrong("bbox", value.as_ref(), "[x, y, width, height]"))
}

fn edge(json: &Json<'_>) -> Option<f64> {
    let is_number = matches!(json, Json::Integer(_) | Json::Number(_));
    json.number().filter(|edge| is_number && edge.is_finite())
}

/// pycocotools takes whatever is true in Python; null, at which it fails, is taken for no crowd.
fn is_crowd(value: Option<Json<'_>>) -> Result<bool, String> {
    match &value {
        None | Some(Json::Null) => Ok(false),
        Some(Json::Bool(truth)) => Ok(*truth),
        Some(json) => match edge(json).filter(|number| number.fract() == 0.0) {
            Some(number) => Ok(number != 0.0),
            None => Err(wrong("iscrowd", value.as_ref(), "0 or 1")),
        },
    }
}

fn labels(item: &mut Json<'_>, key: &str) -> Option<Result<Vec<String>, String>> {
    let value = item.take(key)?;
    let texts = match &value {
        Json::Null => return None,
        Json::Text(text) => Some(vec![text.to_string()]),
        Json::List(items) => items.iter().map(text).collect(),
        _ => None,
    };
    Some(texts.ok_or_else(|| wrong(key, Some(&value), "a list of texts")))
}

fn text(json: &Json<'_>) -> Option<String> {
    match json {
        Json::Text(text) => Some(text.to_string()),
        _ => None,
    }
}

fn wrong(key: &str, got: Option<&Json<'_>>, expected: &str) -> String {
    let Some(got) = got else {
        return format!("no `{key}`, expected {expected}");
    };
    let text = got.to_string();
    let shown = match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text,
    };
    format!("`{key}` is {shown}, expected {expected}")
}

#[cfg(test)]
#[path = "coco_tests.rs"]
mod tests;
