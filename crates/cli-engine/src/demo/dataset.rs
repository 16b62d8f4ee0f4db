//! The demo's dataset in VLM-R1's form: PNG images, `cold_start.jsonl`, `train.jsonl` and
//! `test.jsonl`. No scene stands in two of these.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;
use serde_json::{Value, json};
use tiny::scenes::{Clue, Expression, Scene, Shape};

/// VLM-R1's question about a region, before and after what it describes.
pub const QUESTION: [&str; 2] =
    ["Please provide the bounding box coordinate of the region this sentence describes: ", "."];

/// Of how many cold-start answers to questions by look, place and size keep the demanded form.
///
/// Uneven, as a base model's habit depends on the question: so a greedy answer keeps the form for
/// some questions and not for others.
const FORM_SHARES: [f64; 3] = [0.15, 0.7, 0.3];

/// How much to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetSizes {
    /// Scenes of the cold start.
    pub cold_start_scenes: usize,
    /// Questions about each scene of the cold start.
    pub cold_start_questions: usize,
    /// Scenes of reinforcement learning, one question each.
    pub train_scenes: usize,
    /// Held-out scenes, one question each.
    pub test_scenes: usize,
}

/// Where the parts lie.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The images.
    pub images: PathBuf,
    /// Rows of the cold start, each answer in one form or another.
    pub cold_start: PathBuf,
    /// Rows of reinforcement learning; their answers are bare boxes.
    pub train: PathBuf,
    /// The same rows with answers in the demanded form, for comparison with SFT.
    pub train_answers: PathBuf,
    /// Held-out rows.
    pub test: PathBuf,
}

impl Dataset {
    /// The parts of a dataset in `folder`, written or not.
    pub fn at(folder: &Path) -> Self {
        Self {
            images: folder.join("images"),
            cold_start: folder.join("cold_start.jsonl"),
            train: folder.join("train.jsonl"),
            train_answers: folder.join("train_answers.jsonl"),
            test: folder.join("test.jsonl"),
        }
    }

    /// Draws and writes a dataset; the same seed and sizes give the same bytes.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(folder: &Path, sizes: &DatasetSizes, seed: u64) -> Result<Self> {
        let dataset = Self::at(folder);
        fs::create_dir_all(&dataset.images)
            .with_context(|| dataset.images.display().to_string())?;
        let mut drawer = Drawer {
            images: &dataset.images,
            seen: HashSet::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        };
        // Held-out scenes first: they stay the same when the training parts change in size.
        let test = drawer.part("test", sizes.test_scenes, 1)?;
        write_rows(&dataset.test, &test, bare)?;
        let train = drawer.part("train", sizes.train_scenes, 1)?;
        write_rows(&dataset.train, &train, bare)?;
        write_rows(&dataset.train_answers, &train, demanded)?;
        let cold_start =
            drawer.part("cold_start", sizes.cold_start_scenes, sizes.cold_start_questions)?;
        write_rows(&dataset.cold_start, &cold_start, |question| {
            let keeps_form = drawer.rng.random_bool(FORM_SHARES[question.clue as usize]);
            if keeps_form { demanded(question) } else { bare(question) }
        })?;
        Ok(dataset)
    }
}

/// One row to be.
struct Question {
    id: String,
    image: String,
    text: String,
    clue: Clue,
    shape: Shape,
}

struct Drawer<'a> {
    images: &'a Path,
    seen: HashSet<Scene>,
    rng: ChaCha8Rng,
}

impl Drawer<'_> {
    /// New scenes, their images in a folder of their own, and questions about them.
    fn part(
        &mut self,
        name: &str,
        num_scenes: usize,
        num_questions: usize,
    ) -> Result<Vec<Question>> {
        ensure!(num_scenes > 0 && num_questions > 0, "`{name}`: no scenes or no questions to draw");
        let folder = self.images.join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut questions = Vec::new();
        for index in 0..num_scenes {
            let scene = self.new_scene();
            let image = format!("{name}/{index:05}.png");
            let path = self.images.join(&image);
            scene.render().save(&path).with_context(|| path.display().to_string())?;
            for (number, expression) in
                choose(&scene, num_questions, &mut self.rng).into_iter().enumerate()
            {
                questions.push(Question {
                    id: format!("{name}-{index:05}-{number}"),
                    image: image.clone(),
                    text: expression.text,
                    clue: expression.clue,
                    shape: scene.shapes[expression.shape],
                });
            }
        }
        Ok(questions)
    }

    fn new_scene(&mut self) -> Scene {
        loop {
            let scene = Scene::draw(&mut self.rng);
            if self.seen.insert(scene.clone()) {
                return scene;
            }
        }
    }
}

/// Up to `num` different expressions, each of a clue drawn first: looks alone would be most of them.
fn choose(scene: &Scene, num: usize, rng: &mut impl Rng) -> Vec<Expression> {
    let mut all = scene.expressions();
    let mut chosen = Vec::new();
    while chosen.len() < num && !all.is_empty() {
        let clue = Clue::ALL[rng.random_range(0..Clue::ALL.len())];
        let fitting: Vec<usize> = (0..all.len()).filter(|&i| all[i].clue == clue).collect();
        if !fitting.is_empty() {
            chosen.push(all.swap_remove(fitting[rng.random_range(0..fitting.len())]));
        }
    }
    chosen
}

/// The box alone.
fn bare(question: &Question) -> String {
    let [x1, y1, x2, y2] = question.shape.bbox;
    format!("[{x1}, {y1}, {x2}, {y2}]")
}

/// A thinking text that names the object, and the box as JSON.
fn demanded(question: &Question) -> String {
    let (object, bbox) = (question.shape.name(), bare(question));
    format!("<think>{object}</think><answer>{{\"bbox\": {bbox}}}</answer>")
}

fn write_rows(
    file: &Path,
    questions: &[Question],
    mut answer: impl FnMut(&Question) -> String,
) -> Result<()> {
    let context = || file.display().to_string();
    let mut out = BufWriter::new(File::create(file).with_context(context)?);
    for question in questions {
        let answer = answer(question);
        writeln!(out, "{}", row(question, &answer)).with_context(context)?;
    }
    out.flush().with_context(context)
}

fn row(question: &Question, answer: &str) -> Value {
    let [before, after] = QUESTION;
    json!({
        "id": question.id,
        "image": question.image,
        "conversations": [
            {"from": "human", "value": format!("<image>{before}{}{after}", question.text)},
            {"from": "gpt", "value": answer},
        ],
        "clue": question.clue.word(),
        "object": question.shape.name(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SIZES: DatasetSizes = DatasetSizes {
        cold_start_scenes: 150,
        cold_start_questions: 3,
        train_scenes: 60,
        test_scenes: 60,
    };

    fn write(seed: u64) -> (tempfile::TempDir, Dataset) {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Dataset::write(folder.path(), &SIZES, seed).unwrap();
        (folder, dataset)
    }

    fn rows(file: &Path) -> Vec<Value> {
        let text = fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn shown_image(dataset: &Dataset, row: &Value) -> Vec<u8> {
        image::open(dataset.images.join(row["image"].as_str().unwrap()))
            .unwrap()
            .into_rgb8()
            .into_raw()
    }

    #[test]
    fn held_out_images_are_in_no_other_part() {
        let (_folder, dataset) = write(1);
        let mut part_of: HashMap<Vec<u8>, &str> = HashMap::new();
        let mut images = HashSet::new();
        for (name, file) in [
            ("test", &dataset.test),
            ("train", &dataset.train),
            ("cold_start", &dataset.cold_start),
        ] {
            for row in rows(file) {
                images.insert(row["image"].to_string());
                let first = *part_of.entry(shown_image(&dataset, &row)).or_insert(name);
                assert_eq!(first, name, "{row}");
            }
        }
        assert_eq!(images.len(), 270);
        assert_eq!(part_of.len(), 270, "two scenes look the same");
    }

    #[test]
    fn a_seed_fixes_every_byte() {
        let ((_a, a), (_b, b), (_c, c)) = (write(5), write(5), write(6));
        for part in [|d: &Dataset| d.test.clone(), |d: &Dataset| d.cold_start.clone()] {
            assert_eq!(fs::read(part(&a)).unwrap(), fs::read(part(&b)).unwrap());
            assert_ne!(fs::read(part(&a)).unwrap(), fs::read(part(&c)).unwrap());
        }
        for row in rows(&a.test) {
            assert_eq!(shown_image(&a, &row), shown_image(&b, &row));
        }
    }

    #[test]
    fn rows_are_what_the_loader_takes() {
        let (_folder, dataset) = write(2);
        let [images, test] =
            [&dataset.images, &dataset.test].map(|p| p.to_str().unwrap().to_owned());
        let files = data::rows::DataFiles::from_lists(&test, Some(&images), None).unwrap();
        let checks = data::row::RowChecks { expect_box: true, ..Default::default() };
        let report = data::rows::load_rows(&files, &checks, data::rows::OnBadRow::Stop).unwrap();
        assert_eq!(report.rows.len(), 60);
        let first = &report.rows[0];
        assert!(first.problem.starts_with(QUESTION[0]), "{}", first.problem);
        let columns = &first.columns["conversations"][1]["value"];
        assert_eq!(first.solution, format!("<answer> {} </answer>", columns.as_str().unwrap()));
    }

    fn answer(row: &Value) -> &str {
        row["conversations"][1]["value"].as_str().unwrap()
    }

    #[test]
    fn some_cold_start_answers_keep_the_demanded_form() {
        let (_folder, dataset) = write(3);
        let rows = rows(&dataset.cold_start);
        let kept: Vec<&Value> =
            rows.iter().filter(|row| answer(row).starts_with("<think>")).collect();
        let share = kept.len() as f64 / rows.len() as f64;
        assert!((0.2..0.6).contains(&share), "{share}");
        for row in kept {
            let inner = answer(row)
                .strip_prefix(&format!("<think>{}</think>", row["object"].as_str().unwrap()));
            assert!(inner.unwrap().starts_with("<answer>{\"bbox\": ["), "{row}");
        }
    }

    #[test]
    fn both_files_of_training_rows_ask_the_same() {
        let (_folder, dataset) = write(4);
        let (plain, formed) = (rows(&dataset.train), rows(&dataset.train_answers));
        assert_eq!(plain.len(), formed.len());
        for (plain, formed) in plain.iter().zip(&formed) {
            assert_eq!(plain["conversations"][0], formed["conversations"][0]);
            assert!(answer(formed).contains(answer(plain)), "{formed}");
        }
    }
}
