//! OVDEval: COCO's form with the labels to ask for at each image (om-ai-lab/OVDEval at 2ba0aa9,
//! `Evaluation.md`). One file is one subset, named after it.

use std::path::Path;

use super::coco;
use super::sink::Sink;
use super::{ConvertError, ConvertOptions, stem};

/// Subsets of which the evaluation asks for all categories of the file.
const OF_ALL_CATEGORIES: [&str; 3] = ["celebrity", "logo", "landmark"];

/// One row for each image: what is there and the hard negatives, or all categories of the file.
pub(super) fn convert(
    path: &Path,
    options: &ConvertOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ConvertError> {
    let file = coco::read(path, sink)?;
    let subset = stem(path);
    let all = options.all_categories.unwrap_or(OF_ALL_CATEGORIES.contains(&subset.as_str()));
    let categories: Vec<&str> = file.categories.iter().map(|c| c.name.as_str()).collect();
    let scenes = coco::scenes(&file, path, &subset, sink)?;
    for (scene, image) in scenes.iter().zip(&file.images) {
        if let Some(cause) = &scene.doubt {
            sink.skip("bad_row", &scene.place, cause);
            continue;
        }
        let mut asked: Vec<&str> = Vec::new();
        let own: Result<Vec<&Vec<String>>, &String> =
            [&image.text, &image.neg_text].into_iter().flatten().map(Result::as_ref).collect();
        let own = match own {
            Ok(own) => own.into_iter().flatten().map(String::as_str),
            Err(cause) => {
                sink.skip("bad_row", &scene.place, cause);
                continue;
            }
        };
        let labels: Vec<&str> = if all { categories.clone() } else { own.collect() };
        for label in labels {
            if !asked.contains(&label) {
                asked.push(label);
            }
        }
        if asked.is_empty() {
            sink.skip("nothing_to_ask", &scene.place, "neither `text` nor `neg_text`");
            continue;
        }
        scene.ask(&asked, sink)?;
    }
    Ok(())
}
