//! Grounding: one box for an expression. What a base model learns, what it is then trained on, and
//! held-out questions like these (`in_domain`) and unlike them.
//!
//! Training after the base model has expressions by look, place and size. Unlike them are
//! relations, which the base model has met (`relation`); pairs of a relation and a kind of anchor
//! that it has not (`new_relation`); and colours of kinds that no training ever names (`new_pair`).

use std::path::Path;

use anyhow::{Context, Result};
use data::template::TASK_TEMPLATES;
use rand::{Rng, RngExt};
use serde_json::Value;
use tiny::scenes::{Colour, Kind, Scene, Shape};

use crate::drawing::{Drawer, corners, row, write_rows};
use crate::plan::GroundingSizes;
use crate::tokenizer_corpus::{ANSWER, END, THINK};

/// VLM-R1's question about a region, before and after what it describes.
pub const QUESTION: [&str; 2] =
    ["Please provide the bounding box coordinate of the region this sentence describes: ", "."];
/// How a shape may lie to another.
pub const DIRECTIONS: [&str; 4] = ["left of", "right of", "above", "below"];
/// Files of held-out questions.
pub const TEST_PARTS: [&str; 4] = ["in_domain", "relation", "new_relation", "new_pair"];

/// Colours of kinds that no training names.
const HELD_OUT: [(Colour, Kind); 4] = [
    (Colour::Red, Kind::Cross),
    (Colour::Green, Kind::Triangle),
    (Colour::Blue, Kind::Square),
    (Colour::Yellow, Kind::Disc),
];
/// Share of the base model's questions that are relations, where a scene has one.
const RELATIONS: f64 = 0.3;
/// Share of the base model's questions that ask for thinking.
const THINKING: f64 = 0.5;
/// Share of its answers to these that keep the form.
const FORM: f64 = 0.9;

/// What an expression asks of its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look, place or size.
    Simple,
    /// A relation of the base model's training.
    Relation,
    /// A relation that is not in it.
    NewRelation,
    /// A colour of a kind that no training names.
    NewPair,
}

/// An expression and the shape that it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Such as `the shape left of the red disc`.
    pub text: String,
    /// What it asks for.
    pub step: Step,
    /// The shape.
    pub target: Shape,
}

/// The text of a template of VLM-R1.
pub fn template(name: &str) -> String {
    let found = TASK_TEMPLATES.iter().find(|(known, _)| *known == name);
    found.map_or_else(String::new, |(_, text)| (*text).to_owned())
}

fn is_held_out(shape: &Shape) -> bool {
    HELD_OUT.contains(&(shape.colour, shape.kind))
}

/// All expressions of a scene that belong to one of the steps.
pub fn expressions(scene: &Scene) -> Vec<Asked> {
    let mut all = Vec::new();
    for expression in scene.expressions() {
        let target = scene.shapes[expression.shape];
        let names_all = expression.text.ends_with(&target.name());
        let step = match (is_held_out(&target), names_all) {
            (false, _) => Step::Simple,
            (true, true) => Step::NewPair,
            // It would teach the model where such a shape is.
            (true, false) => continue,
        };
        all.push(Asked { text: expression.text, step, target });
    }
    let known = scene.shapes.iter().filter(|shape| !is_held_out(shape));
    for anchor in known {
        for (index, direction) in DIRECTIONS.into_iter().enumerate() {
            let mut there = scene.shapes.iter().filter(|shape| lies(shape, index, anchor));
            let (Some(target), None) = (there.next(), there.next()) else {
                continue;
            };
            if is_held_out(target) {
                continue;
            }
            let is_new = index >= 2 && matches!(anchor.kind, Kind::Triangle | Kind::Cross);
            all.push(Asked {
                text: format!("the shape {direction} the {}", anchor.name()),
                step: if is_new { Step::NewRelation } else { Step::Relation },
                target: *target,
            });
        }
    }
    all
}

/// Whether the centre of `shape` lies in direction `index` of that of `anchor`.
fn lies(shape: &Shape, index: usize, anchor: &Shape) -> bool {
    let ([x, y], [ax, ay]) = (shape.centre(), anchor.centre());
    [x < ax, x > ax, y < ay, y > ay][index]
}

/// Writes the dataset below `folder`.
///
/// # Errors
/// A file that cannot be written.
pub fn write(folder: &Path, sizes: &GroundingSizes, seed: u64) -> Result<()> {
    let mut drawer = Drawer::new(folder.join("images"), seed);
    let steps = [Step::Simple, Step::Relation, Step::NewRelation, Step::NewPair];
    // Held-out scenes first: they stay when the training parts change in size.
    for (part, step) in TEST_PARTS.into_iter().zip(steps) {
        let rows = questions(&mut drawer, part, sizes.test, 1, |_| step)?.into_iter().map(
            |(id, image, asked)| row(&id, &image, &question(&asked), &corners(asked.target.bbox)),
        );
        let file = folder.join(format!("{part}.jsonl"));
        write_rows(&file, rows)?;
    }
    let train = questions(&mut drawer, "train", sizes.train, 1, |_| Step::Simple)?;
    let rows = |answer: fn(&Shape) -> String| {
        train
            .iter()
            .map(move |(id, image, asked)| row(id, image, &question(asked), &answer(&asked.target)))
    };
    write_rows(&folder.join("train.jsonl"), rows(|shape| corners(shape.bbox)))?;
    write_rows(&folder.join("train_thinking.jsonl"), rows(thought))?;
    let base = questions(&mut drawer, "base", sizes.base, sizes.base_questions, |rng| {
        if rng.random_bool(RELATIONS) { Step::Relation } else { Step::Simple }
    })?;
    let rows: Vec<Value> = base
        .into_iter()
        .map(|(id, image, asked)| base_row(&id, &image, &asked, &mut drawer.rng))
        .collect();
    write_rows(&folder.join("base.jsonl"), rows)
}

type Row = (String, String, Asked);

/// Scenes and questions of the wished steps; a scene without one is passed over.
fn questions(
    drawer: &mut Drawer,
    part: &str,
    num_scenes: usize,
    per_scene: usize,
    mut wished: impl FnMut(&mut rand_chacha::ChaCha8Rng) -> Step,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for index in 0..num_scenes {
        let (scene, chosen) = loop {
            let scene = drawer.scene();
            let mut all = expressions(&scene);
            let mut chosen = Vec::new();
            for _ in 0..per_scene {
                let step = wished(&mut drawer.rng);
                let fitting: Vec<usize> = (0..all.len()).filter(|&i| all[i].step == step).collect();
                if !fitting.is_empty() {
                    let one = fitting[drawer.rng.random_range(0..fitting.len())];
                    chosen.push(all.swap_remove(one));
                }
            }
            if !chosen.is_empty() {
                break (scene, chosen);
            }
        };
        let image = drawer.shown_image(part, index, &scene).context("images")?;
        let numbered = chosen.into_iter().enumerate();
        rows.extend(
            numbered.map(|(n, asked)| (format!("{part}-{index:05}-{n}"), image.clone(), asked)),
        );
    }
    Ok(rows)
}

fn question(asked: &Asked) -> String {
    let [before, after] = QUESTION;
    format!("{before}{}{after}", asked.text)
}

/// A thinking text that names the shape, and its box.
fn thought(shape: &Shape) -> String {
    format!("{THINK}{}{ANSWER}{{\"bbox\": {}}}{END}", shape.name(), corners(shape.bbox))
}

/// A row of the base model's training: the demand stands in it, since it has two.
fn base_row(id: &str, image: &str, asked: &Asked, rng: &mut impl Rng) -> Value {
    let thinks = rng.random_bool(THINKING);
    let text =
        template(if thinks { "rec" } else { "sft_rec" }).replace("{Question}", &question(asked));
    let answer = if thinks && rng.random_bool(FORM) {
        thought(&asked.target)
    } else {
        corners(asked.target.bbox)
    };
    row(id, image, &text, &answer)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use super::*;

    const SIZES: GroundingSizes =
        GroundingSizes { base: 200, base_questions: 3, train: 80, test: 40 };

    fn rows(folder: &Path, part: &str) -> Vec<Value> {
        let text = fs::read_to_string(folder.join(format!("{part}.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn asked(row: &Value) -> String {
        let text = row["conversations"][0]["value"].as_str().unwrap();
        let rest = text.split_once(QUESTION[0]).unwrap().1;
        rest.split_once('.').unwrap().0.to_owned()
    }

    #[test]
    fn parts_ask_what_they_are_named_for() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &SIZES, 3).unwrap();
        let held_out: Vec<String> =
            HELD_OUT.map(|(colour, kind)| format!("{} {}", colour.word(), kind.word())).into();
        let is_relation = |text: &str| DIRECTIONS.iter().any(|d| text.contains(d));
        let is_new = |text: &str| {
            (text.contains("above") || text.contains("below"))
                && (text.ends_with("triangle") || text.ends_with("cross"))
        };
        for part in ["train", "in_domain", "base"] {
            for row in rows(folder.path(), part) {
                let text = asked(&row);
                assert!(!held_out.iter().any(|name| row.to_string().contains(name)), "{row}");
                assert!(part == "base" || !is_relation(&text), "{text}");
                assert!(!is_new(&text), "{text}");
            }
        }
        assert!(rows(folder.path(), "base").iter().any(|row| is_relation(&asked(row))));
        for row in rows(folder.path(), "relation") {
            assert!(is_relation(&asked(&row)) && !is_new(&asked(&row)));
        }
        assert!(rows(folder.path(), "new_relation").iter().all(|row| is_new(&asked(row))));
        let new_pairs = rows(folder.path(), "new_pair");
        assert!(
            new_pairs.iter().all(|row| held_out.iter().any(|n| asked(row) == format!("the {n}")))
        );
    }

    #[test]
    fn no_image_is_in_two_parts_and_a_seed_fixes_the_rows() {
        let [a, b, c] = [5, 5, 6].map(|seed| {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &SIZES, seed).unwrap();
            folder
        });
        let mut part_of: HashMap<Vec<u8>, &str> = HashMap::new();
        for part in TEST_PARTS.into_iter().chain(["train", "base"]) {
            let file = format!("{part}.jsonl");
            let bytes = [&a, &b, &c].map(|folder| fs::read(folder.path().join(&file)).unwrap());
            assert!(bytes[0] == bytes[1] && bytes[0] != bytes[2]);
            for row in rows(a.path(), part) {
                let image = a.path().join("images").join(row["image"].as_str().unwrap());
                let first = *part_of.entry(fs::read(image).unwrap()).or_insert(part);
                assert_eq!(first, part, "{row}");
            }
        }
        assert_eq!(part_of.len(), 4 * SIZES.test + SIZES.train + SIZES.base);
    }

    #[test]
    fn a_relation_means_the_only_shape_there() {
        let shape = |bbox, kind, colour| Shape { bbox, kind, colour };
        let scene = Scene {
            shapes: vec![
                shape([0, 16, 16, 32], Kind::Disc, Colour::Red),
                shape([32, 0, 64, 32], Kind::Disc, Colour::Blue),
                shape([40, 40, 56, 56], Kind::Triangle, Colour::Blue),
            ],
        };
        let of = |step| {
            let all = expressions(&scene).into_iter().filter(move |asked| asked.step == step);
            all.map(|asked| (asked.text, asked.target.name())).collect::<Vec<_>>()
        };
        let relations = of(Step::Relation);
        assert!(relations.contains(&("the shape left of the blue disc".into(), "red disc".into())));
        // Both others lie right of it.
        assert!(!relations.iter().any(|(text, _)| text == "the shape right of the red disc"));
        assert!(of(Step::NewPair).is_empty());
        assert!(of(Step::NewRelation).is_empty(), "two shapes lie above the triangle");
    }
}
