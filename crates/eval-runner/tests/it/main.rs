//! The evaluator over a real checkpoint: a tiny random Qwen2.5-VL, whose completions mean nothing, asked
//! about images of several sizes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[cfg(test)]
mod evaluation;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Example;
use data::template::PromptTemplate;
use data::{DataFiles, OnBadRow, Processor, ProcessorOptions, ResizeBackend, RowChecks, load_rows};
use eval::{EvalError, RecEvaluation, shuffled_images};
use eval_runner::{RecEvaluator, RecOptions};
use models::{LoadOptions, TrainedParts, VisionLanguageModel, load_model};
use rewards::RewardFamily;
use tch::{Device, Kind};

const IMAGES: [&str; 3] = ["scene.png", "small.png", "wide.png"];

fn golden() -> PathBuf {
    testing::golden("parity")
}

fn examples(folder: &Path) -> Vec<Example> {
    let rows: String = IMAGES
        .iter()
        .map(|image| {
            let row = serde_json::json!({
                "id": image,
                "image": image,
                "conversations": [
                    {"from": "human", "value": "<image>Where is the square?"},
                    {"from": "gpt", "value": "[1, 2, 30, 20]"},
                ],
            });
            format!("{row}\n")
        })
        .collect();
    let file = folder.join("test.jsonl");
    fs::write(&file, rows).unwrap();
    let [file, images] = [file, golden().join("images")].map(|path| path.display().to_string());
    let files = DataFiles::from_lists(&file, Some(&images), None).unwrap();
    let checks = RowChecks { expect_box: true, ..RowChecks::default() };
    load_rows(&files, &checks, OnBadRow::Stop).unwrap().rows
}

fn processor() -> Arc<Processor> {
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        apply_exif: false,
        max_prompt_length: None,
    };
    Arc::new(Processor::from_dir(&testing::checkpoint("nested"), &options).unwrap())
}

fn model() -> Box<dyn VisionLanguageModel> {
    let options =
        LoadOptions { kind: Kind::Float, device: Device::Cpu, trained: TrainedParts::NONE };
    load_model(&testing::checkpoint("nested"), options).unwrap()
}

struct Fixture {
    model: Box<dyn VisionLanguageModel>,
    processor: Arc<Processor>,
    examples: Vec<Example>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            model: model(),
            processor: processor(),
            examples: examples(folder.path()),
            _folder: folder,
        }
    }

    fn evaluate(&self, examples: &[Example], max_concurrent: usize) -> RecEvaluation {
        RecEvaluator::new(
            examples,
            Arc::clone(&self.processor),
            RewardFamily::WITHOUT_MODEL,
            options(3, max_concurrent),
        )
        .unwrap()
        .evaluate(self.model.as_ref(), &mut |_, _| (), &|| false)
        .unwrap()
    }
}

fn options(completions_per_question: usize, max_concurrent: usize) -> RecOptions {
    RecOptions {
        template: PromptTemplate::resolve("rec").unwrap(),
        temperature: 1.0,
        completions_per_question,
        max_new_tokens: 6,
        max_concurrent,
        seed: 11,
    }
}

#[test]
fn completions_stand_with_their_rows_and_sizes_whatever_the_batch() {
    let fixture = Fixture::new();
    let whole = fixture.evaluate(&fixture.examples, 9);
    let rows: Vec<usize> = whole.completions.iter().map(|completion| completion.row).collect();
    assert_eq!(rows, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    for completion in &whole.completions {
        assert_eq!(completion.image, IMAGES[completion.row]);
        let (width, height) = image_size(completion.row);
        assert_eq!(completion.image_size, [height, width], "height comes first");
        assert!(
            completion.input_size.iter().all(|side| side % 28 == 0),
            "{:?}",
            completion.input_size
        );
        assert_eq!((completion.iou, completion.correct, completion.well_formed), (0.0, 0, false));
    }
    let outputs = |evaluation: &RecEvaluation| -> Vec<String> {
        evaluation.completions.iter().map(|completion| completion.model_output.clone()).collect()
    };
    let first = outputs(&whole);
    assert!(first.windows(2).any(|pair| pair[0] != pair[1]), "{first:?}");
    // One completion at a time, questions loaded in more than one go: the draws are keyed.
    assert_eq!(outputs(&fixture.evaluate(&fixture.examples, 1)), first);
}

fn image_size(row: usize) -> (u32, u32) {
    let image = fs::read(golden().join("images").join(IMAGES[row])).unwrap();
    // A PNG's header holds width and height at byte 16.
    let word = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap());
    (word(16), word(20))
}

#[test]
fn shuffled_images_change_sizes_and_completions_only() {
    let fixture = Fixture::new();
    let shuffled = shuffled_images(&fixture.examples);
    let evaluation = fixture.evaluate(&shuffled, 9);
    for (row, (before, after)) in fixture.examples.iter().zip(&shuffled).enumerate() {
        assert_ne!(before.images, after.images);
        assert_eq!((&before.problem, &before.solution), (&after.problem, &after.solution));
        let shown = (row + 1) % 3;
        let (width, height) = image_size(shown);
        let completion = &evaluation.completions[3 * row];
        assert_eq!(
            (completion.image.as_str(), completion.image_size),
            (IMAGES[shown], [height, width])
        );
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let fixture = Fixture::new();
    let refused = |examples: &[Example], per_question| {
        RecEvaluator::new(
            examples,
            Arc::clone(&fixture.processor),
            RewardFamily::WITHOUT_MODEL,
            options(per_question, 1),
        )
        .err()
        .unwrap()
    };
    assert!(matches!(refused(&[], 1), EvalError::NoRows));
    assert!(matches!(refused(&fixture.examples, 0), EvalError::NoCompletions));
    let mut text_only = fixture.examples.clone();
    text_only[1].images.clear();
    assert!(refused(&text_only, 1).to_string().contains("test.jsonl:2: expected one image, got 0"));
    let mut no_box = fixture.examples.clone();
    no_box[2].solution = "<answer> left </answer>".into();
    assert!(refused(&no_box, 1).to_string().contains("test.jsonl:3"));
}

#[test]
fn a_cancelled_evaluation_is_no_evaluation() {
    let fixture = Fixture::new();
    let evaluator = RecEvaluator::new(
        &fixture.examples,
        Arc::clone(&fixture.processor),
        RewardFamily::WITHOUT_MODEL,
        options(1, 1),
    )
    .unwrap();
    let error = evaluator.evaluate(fixture.model.as_ref(), &mut |_, _| (), &|| true).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
}
