//! COCO's instances, and files of that form: boxes by category, `[x, y, width, height]`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::detection::{Object, Scene};
use super::sink::Sink;
use super::{ConvertError, ConvertOptions, json, stem};
use crate::once::{Repeat, once};

/// What names an image, a category or an annotation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    /// As COCO has it.
    Number(i64),
    /// As some others have it.
    Text(String),
}

/// A file of annotations; what is not needed is not read.
#[derive(Debug, Deserialize)]
pub(super) struct CocoFile {
    pub(super) images: Vec<CocoImage>,
    pub(super) annotations: Vec<CocoAnnotation>,
    #[serde(default)]
    pub(super) categories: Vec<CocoCategory>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct CocoImage {
    pub(super) id: Id,
    pub(super) file_name: String,
    pub(super) width: Option<f64>,
    pub(super) height: Option<f64>,
    /// OVDEval's labels that are there.
    #[serde(default)]
    pub(super) text: Vec<String>,
    /// OVDEval's labels that are not.
    #[serde(default)]
    pub(super) neg_text: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct CocoAnnotation {
    pub(super) id: Option<Id>,
    pub(super) image_id: Id,
    pub(super) category_id: Option<Id>,
    pub(super) bbox: Option<Vec<Option<f64>>>,
    pub(super) iscrowd: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CocoCategory {
    pub(super) id: Id,
    pub(super) name: String,
}

impl CocoImage {
    pub(super) fn size(&self) -> Option<[f64; 2]> {
        let size = [self.width?, self.height?];
        size.iter().all(|side| *side >= 1.0).then_some(size)
    }
}

impl CocoAnnotation {
    /// The box, where it is four numbers.
    pub(super) fn bbox(&self) -> Option<[f64; 4]> {
        let numbers = self.bbox.as_ref()?.iter().copied();
        numbers.collect::<Option<Vec<f64>>>()?.try_into().ok()
    }
}

impl CocoFile {
    /// Reads a file, each image and each annotation once.
    pub(super) fn read(path: &Path, sink: &mut Sink<'_>) -> Result<Self, ConvertError> {
        let file: Self = json::read(path)?;
        let (images, of_images) = once(file.images, |image| Some(image.id.clone()));
        let (annotations, of_annotations) = once(file.annotations, |found| found.id.clone());
        let place = path.display().to_string();
        let text = |what: &str, repeat: &Repeat<Id>| {
            let other = match repeat.differs {
                true => ", otherwise: this one counts",
                false => "",
            };
            format!("{what} {:?} stands there again{other}", repeat.id)
        };
        for repeat in &of_images {
            sink.skip("repeated_image", &place, &text("image", repeat));
        }
        for repeat in &of_annotations {
            sink.leave_box("repeated_annotation", &place, &text("annotation", repeat));
        }
        Ok(Self {
            images,
            annotations,
            categories: file.categories,
        })
    }

    /// The scenes of the file, in the order of its images.
    pub(super) fn scenes(&self, path: &Path, split: &str, sink: &mut Sink<'_>) -> Vec<Scene> {
        let names: HashMap<&Id, &str> = self
            .categories
            .iter()
            .map(|c| (&c.id, c.name.as_str()))
            .collect();
        let mut scenes: Vec<Scene> = self
            .images
            .iter()
            .enumerate()
            .map(|(index, image)| Scene {
                place: format!("{}: image {}", path.display(), image.file_name),
                index: index as u64,
                image: image.file_name.clone(),
                split: split.to_owned(),
                size: image.size(),
                objects: Vec::new(),
            })
            .collect();
        let by_id: HashMap<&Id, usize> = self
            .images
            .iter()
            .enumerate()
            .map(|(index, image)| (&image.id, index))
            .collect();
        for annotation in &self.annotations {
            let label = annotation.category_id.as_ref().and_then(|id| names.get(id));
            match (by_id.get(&annotation.image_id), label) {
                (Some(index), Some(label)) => scenes[*index].objects.push(Object {
                    label: (*label).to_owned(),
                    bbox: annotation.bbox(),
                    is_crowd: annotation.iscrowd.is_some_and(|crowd| crowd != 0),
                }),
                (image, _) => {
                    let what = match image {
                        None => format!("no image {:?}", annotation.image_id),
                        Some(_) => format!("no category {:?}", annotation.category_id),
                    };
                    let text = format!("annotation {:?}: {what}", annotation.id);
                    sink.leave_box("unknown", &path.display().to_string(), &text);
                }
            }
        }
        scenes
    }
}

/// One row for each image, in the order of the file.
pub(super) fn convert(
    path: &Path,
    options: &ConvertOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ConvertError> {
    let file = CocoFile::read(path, sink)?;
    let absent = [file.categories.iter().map(|c| c.name.as_str()).collect()];
    for scene in file.scenes(path, &stem(path), sink) {
        scene.ask_with_negatives(&absent, options, sink)?;
    }
    Ok(())
}
