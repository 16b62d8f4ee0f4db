//! Detection: boxes of the named things. What a base model learns, two kinds of training data, and
//! held-out images in COCO's form.
//!
//! The hard data asks for colour and kind, with near misses that are not there; the plain data asks
//! for kinds alone, all of which are there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use data::convert::detection_question;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde_json::{Value, json};
use tiny::scenes::{Colour, IMAGE_PX, Kind, Scene, Shape};

use crate::drawing::{Drawer, corners, row, write_rows};
use crate::plan::DetectionSizes;
use crate::tokenizer_corpus::{
    ANSWER, BOX, BOX_END, END, LABEL, LIST, LIST_END, LOOK, NOTHING, THINK,
};

/// Share of the base model's questions that are plain.
const PLAIN: f64 = 0.3;
/// Share of hard questions none of whose things is there.
const ABSENT: f64 = 0.1;
/// Most near misses in a hard question.
const NEAR_MISSES: usize = 3;
/// Of the base model's answers, how many name in their thinking what is there, and how many
/// repeat the whole list; the rest say nothing of either.
const HABITS: [f64; 2] = [0.35, 0.35];

/// All names of shapes.
pub fn all_names() -> Vec<String> {
    let kinds = Kind::ALL.into_iter();
    kinds
        .flat_map(|kind| Colour::ALL.map(|colour| format!("{} {}", colour.word(), kind.word())))
        .collect()
}

/// A question: what is asked for, and the boxes of it that are there.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    /// Names, in the order of the question.
    names: Vec<String>,
    /// Label and box of all that is there.
    found: Vec<(String, [u32; 4])>,
}

/// Colour and kind of what is there, and near misses.
fn hard(scene: &Scene, rng: &mut impl Rng) -> Asked {
    let mut misses = near_misses(scene);
    misses.shuffle(rng);
    misses.truncate(rng.random_range(1..=NEAR_MISSES));
    let found: Vec<_> = if rng.random_bool(ABSENT) {
        Vec::new()
    } else {
        scene.shapes.iter().map(|shape| (shape.name(), shape.bbox)).collect()
    };
    let mut names: Vec<String> = found.iter().map(|(name, _)| name.clone()).chain(misses).collect();
    names.shuffle(rng);
    Asked { names, found }
}

/// The kinds that are there.
fn plain(scene: &Scene, rng: &mut impl Rng) -> Asked {
    let found: Vec<_> =
        scene.shapes.iter().map(|shape| (shape.kind.word().to_owned(), shape.bbox)).collect();
    let mut names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    names.dedup();
    names.shuffle(rng);
    Asked { names, found }
}

/// Names that share colour or kind with a shape, and are none's.
fn near_misses(scene: &Scene) -> Vec<String> {
    let is_there = |name: &String| scene.shapes.iter().any(|shape| shape.name() == *name);
    let is_near = |name: &String| {
        let words = |shape: &Shape| {
            name.starts_with(shape.colour.word()) || name.ends_with(shape.kind.word())
        };
        scene.shapes.iter().any(words)
    };
    all_names().into_iter().filter(|name| !is_there(name) && is_near(name)).collect()
}

impl Asked {
    fn question(&self) -> String {
        detection_question(&self.names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A list in a block, or `None`.
    fn answer(&self) -> String {
        if self.found.is_empty() {
            return NOTHING.to_owned();
        }
        let boxes = self.found.iter().map(|(label, bbox)| {
            let corners = corners(*bbox);
            let numbers = corners.trim_matches(['[', ']']);
            format!("{BOX}{numbers}{LABEL}{label}{BOX_END}")
        });
        format!("{LIST}{}{LIST_END}", boxes.collect::<Vec<_>>().join(", "))
    }

    /// The answer with a thinking text before it, by one habit or another.
    fn thought(&self, rng: &mut impl Rng) -> String {
        let draw: f64 = rng.random();
        let mut there: Vec<&str> = Vec::new();
        for (label, _) in &self.found {
            if !there.contains(&label.as_str()) {
                there.push(label);
            }
        }
        let said = if draw >= HABITS[0] + HABITS[1] {
            LOOK.to_owned()
        } else if draw >= HABITS[0] {
            self.names.join(", ")
        } else if there.is_empty() {
            NOTHING.to_owned()
        } else {
            there.join(", ")
        };
        format!("{THINK}{said}{ANSWER}{}{END}", self.answer())
    }
}

/// Writes the dataset below `folder`.
///
/// # Errors
/// A file that cannot be written.
pub fn write(folder: &Path, sizes: &DetectionSizes, seed: u64) -> Result<()> {
    // Apart from the scenes of grounding with the same seed.
    let mut drawer = Drawer::new(folder.join("images"), seed.wrapping_add(1_000_000));
    write_test(folder, &mut drawer, sizes.test)?;
    let (mut hard_rows, mut plain_rows) = (Vec::new(), Vec::new());
    for index in 0..sizes.train {
        let scene = drawer.scene();
        let image = drawer.shown_image("train", index, &scene)?;
        let id = format!("train-{index:05}");
        for (rows, asked) in [
            (&mut hard_rows, hard(&scene, &mut drawer.rng)),
            (&mut plain_rows, plain(&scene, &mut drawer.rng)),
        ] {
            rows.push(row(&id, &image, &asked.question(), &asked.answer()));
        }
    }
    write_rows(&folder.join("train_hard.jsonl"), hard_rows)?;
    write_rows(&folder.join("train_plain.jsonl"), plain_rows)?;
    let mut rows = Vec::new();
    for index in 0..sizes.base {
        let scene = drawer.scene();
        let image = drawer.shown_image("base", index, &scene)?;
        for number in 0..sizes.base_questions {
            let asked = if drawer.rng.random_bool(PLAIN) {
                plain(&scene, &mut drawer.rng)
            } else {
                hard(&scene, &mut drawer.rng)
            };
            let answer = asked.thought(&mut drawer.rng);
            rows.push(row(
                &format!("base-{index:05}-{number}"),
                &image,
                &asked.question(),
                &answer,
            ));
        }
    }
    write_rows(&folder.join("base.jsonl"), rows)
}

/// Held-out images with hard questions, as COCO's JSON with OVDEval's `text` and `neg_text`.
fn write_test(folder: &Path, drawer: &mut Drawer, num: usize) -> Result<()> {
    let names = all_names();
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for index in 0..num {
        let scene = drawer.scene();
        let file_name = drawer.shown_image("test", index, &scene)?;
        let mut misses = near_misses(&scene);
        misses.shuffle(&mut drawer.rng);
        misses.truncate(drawer.rng.random_range(1..=NEAR_MISSES));
        // All in one list: `text` before `neg_text` would tell which of them are there.
        let mut text: Vec<String> = scene.shapes.iter().map(Shape::name).chain(misses).collect();
        text.shuffle(&mut drawer.rng);
        for shape in &scene.shapes {
            let [x1, y1, x2, y2] = shape.bbox;
            let category = names.iter().position(|name| *name == shape.name());
            annotations.push(json!({
                "id": annotations.len() + 1,
                "image_id": index + 1,
                "category_id": category.map(|category| category + 1),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }));
        }
        images.push(json!({
            "id": index + 1, "file_name": file_name, "width": IMAGE_PX, "height": IMAGE_PX,
            "text": text, "neg_text": [],
        }));
    }
    let categories: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(index, name)| json!({"id": index + 1, "name": name}))
        .collect();
    let file = json!({"images": images, "annotations": annotations, "categories": categories});
    let path = folder.join("test.json");
    fs::write(&path, file.to_string()).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: DetectionSizes =
        DetectionSizes { base: 60, base_questions: 2, train: 60, test: 20 };

    fn answers(folder: &Path, file: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let value = |row: &Value, turn: usize| {
            row["conversations"][turn]["value"].as_str().unwrap().to_owned()
        };
        rows.map(|row| (value(&row, 0), value(&row, 1))).collect()
    }

    #[test]
    fn plain_questions_have_no_near_misses_and_hard_ones_do() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &SIZES, 1).unwrap();
        let list = |question: &str| {
            let inner = question.split_once("objects: [").unwrap().1;
            let names = inner.split_once(']').unwrap().0.split(", ");
            names.map(|name| name.trim_matches('\'').to_owned()).collect::<Vec<_>>()
        };
        for (question, answer) in answers(folder.path(), "train_plain.jsonl") {
            assert!(
                list(&question).iter().all(|name| answer.contains(&format!("\"{name}\""))),
                "{question}"
            );
        }
        let hard = answers(folder.path(), "train_hard.jsonl");
        for (question, answer) in &hard {
            let absent =
                list(question).into_iter().filter(|name| !answer.contains(&format!("\"{name}\"")));
            assert!(absent.count() >= 1, "{question} {answer}");
        }
        assert!(hard.iter().any(|(_, answer)| answer == NOTHING));
    }

    #[test]
    fn the_order_of_a_held_out_question_does_not_tell_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &SIZES, 4).unwrap();
        let text = fs::read_to_string(folder.path().join("test.json")).unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        let names = all_names();
        let true_ones = |image: &Value| {
            let all = file["annotations"].as_array().unwrap().iter();
            let here = all.filter(|a| a["image_id"] == image["id"]);
            here.map(|a| names[a["category_id"].as_u64().unwrap() as usize - 1].clone())
                .collect::<Vec<_>>()
        };
        let images = file["images"].as_array().unwrap();
        let first_is_there = images.iter().filter(|image| {
            true_ones(image).contains(&image["text"][0].as_str().unwrap().to_owned())
        });
        let num = first_is_there.count();
        // Of two or three things there and one to three near misses, half to three quarters.
        assert!(num < SIZES.test, "{num} of {}", SIZES.test);
        for image in images {
            let asked: Vec<&str> =
                image["text"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
            assert!(true_ones(image).iter().all(|name| asked.contains(&name.as_str())));
            assert!(asked.len() > true_ones(image).len());
        }
    }

    #[test]
    fn answers_are_the_json_that_the_rewards_read() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &SIZES, 2).unwrap();
        let mut thinking_of_all = 0;
        for (_, answer) in answers(folder.path(), "base.jsonl") {
            let inner = answer.split_once(ANSWER).unwrap().1.strip_suffix(END).unwrap();
            if inner == NOTHING {
                continue;
            }
            let json = inner.strip_prefix("```json\n").unwrap().strip_suffix("\n```").unwrap();
            let boxes: Vec<Value> = serde_json::from_str(json).unwrap();
            assert!(boxes.iter().all(|b| b["bbox_2d"].as_array().unwrap().len() == 4), "{json}");
            let said = answer.split_once(ANSWER).unwrap().0;
            let named = |b: &Value| said.contains(b["label"].as_str().unwrap());
            thinking_of_all += usize::from(boxes.iter().all(named));
        }
        assert!((60..110).contains(&thinking_of_all), "{thinking_of_all} of 120");
    }
}
