//! COCO's instances as rows; the file itself is [`crate::coco`]'s matter.

use std::path::Path;

use super::detection::{Object, Scene};
use super::sink::Sink;
use super::{ConvertError, ConvertOptions, stem};
use crate::coco::{CocoFile, Id, Unplaced};
use crate::once::Repeat;

/// Reads a file and counts what is listed twice or broken.
pub(super) fn read(path: &Path, sink: &mut Sink<'_>) -> Result<CocoFile, ConvertError> {
    let file = CocoFile::read(path)?;
    let place = path.display().to_string();
    let text = |what: &str, repeat: &Repeat<Id>| {
        let other = match repeat.differs {
            true => ", otherwise: this one counts",
            false => "",
        };
        format!("{what} {} stands there again{other}", repeat.id)
    };
    for repeat in &file.repeated.images {
        sink.skip("repeated_image", &place, &text("image", repeat));
    }
    for repeat in &file.repeated.annotations {
        sink.leave_box("repeated_annotation", &place, &text("annotation", repeat));
    }
    for repeat in &file.repeated.categories {
        sink.note(format!("warning: {place}: {}", text("category", repeat)));
    }
    for bad in &file.bad_images {
        sink.skip("bad_row", &place, bad);
    }
    for note in &file.notes {
        sink.note(format!("warning: {place}: {note}"));
    }
    Ok(file)
}

/// The scenes of a file, in the order of its images.
///
/// # Errors
/// Where no annotation belongs to any of them.
pub(super) fn scenes(
    file: &CocoFile,
    path: &Path,
    split: &str,
    sink: &mut Sink<'_>,
) -> Result<Vec<Scene>, ConvertError> {
    let images = file.images.iter().enumerate();
    let mut scenes: Vec<Scene> = images
        .map(|(index, image)| Scene {
            place: format!("{}: image {}", path.display(), image.file_name),
            index: index as u64,
            image: image.file_name.clone(),
            split: split.to_owned(),
            size: image.size,
            objects: Vec::new(),
            doubt: None,
        })
        .collect();
    let index = file.index();
    let mut homeless = 0;
    for annotation in &file.annotations {
        match index.place(annotation) {
            Ok((image, label)) => {
                let named = |cause: &String| format!("{}: {cause}", annotation.name());
                let is_crowd = annotation.is_crowd.as_ref();
                let bbox = match is_crowd.err() {
                    Some(cause) => Err(named(cause)),
                    None => annotation.bbox.as_ref().map(|bbox| *bbox).map_err(named),
                };
                scenes[image].objects.push(Object {
                    label: label.to_owned(),
                    bbox,
                    is_crowd: is_crowd.is_ok_and(|is_crowd| *is_crowd),
                });
            }
            Err(Unplaced::NoImage(cause)) => {
                homeless += 1;
                if homeless == file.annotations.len() {
                    return Err(ConvertError::Form {
                        path: path.to_owned(),
                        reason: format!(
                            "no annotation belongs to an image of the file; the last: {cause}"
                        ),
                    });
                }
                sink.leave_box("unknown", &path.display().to_string(), &cause);
            }
            Err(Unplaced::Bad(image, cause)) => {
                scenes[image].doubt.get_or_insert(cause);
            }
        }
    }
    Ok(scenes)
}

/// One row for each image, in the order of the file.
pub(super) fn convert(
    path: &Path,
    options: &ConvertOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ConvertError> {
    let file = read(path, sink)?;
    let absent = [file.categories.iter().map(|c| c.name.as_str()).collect()];
    for scene in scenes(&file, path, &stem(path), sink)? {
        scene.ask_with_negatives(&absent, options, sink)?;
    }
    Ok(())
}
