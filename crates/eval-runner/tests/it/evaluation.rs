//! Whole evaluations of a tiny random model: batches, going on, bad rows, several completions.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use base::run_folder::ResultFolder;
use base::world::Local;
use config::{ColonList, EvalConfig, EvalTask};
use eval::completions::{COMPLETIONS, CompletionStore};
use eval::{Evaluation, Results, Summary};
use eval_runner::{AskError, Kept, Progress, sample_missing, set_up};
use models::VisionLanguageModel;
use rewards::RewardFamily;
use serde_json::{Value, json};

const IMAGES: [&str; 4] = ["scene.png", "small.png", "wide.png", "grey.png"];

/// Counts what it hears, and asks for the end after so many completions.
struct Watcher {
    heard: usize,
    bad: Vec<String>,
}

impl Progress for Watcher {
    fn on_completion(&mut self, _done: usize, _total: usize) {
        self.heard += 1;
    }
    fn on_bad(&mut self, place: &str, cause: &str) {
        self.bad.push(format!("{place}: {cause}"));
    }
}

/// Seven rows, of which one is broken and one names an image that is cut off.
fn data(folder: &Path) -> EvalConfig {
    let images = folder.join("images");
    fs::create_dir_all(&images).unwrap();
    for name in IMAGES {
        fs::copy(super::golden().join("images").join(name), images.join(name)).unwrap();
    }
    let whole = fs::read(images.join("scene.png")).unwrap();
    fs::write(images.join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let row = |index: usize, image: &str| json!({"image": image, "problem": format!("Where is thing {index}?"), "solution": [1, 2, 30, 20 + index]});
    let names = ["scene.png", "cut.png", "small.png", "wide.png", "grey.png", "small.png"];
    let mut rows: Vec<Value> = names.iter().enumerate().map(|(i, name)| row(i, name)).collect();
    rows.push(json!({"image": "scene.png", "problem": "Where?", "solution": [5, 5, 1, 9]}));
    let file = folder.join("val.json");
    fs::write(&file, format!("{:#}", json!(rows))).unwrap();
    EvalConfig::default().with(|c| {
        c.asked.model = Some("nested".to_owned());
        c.questions.task = Some(EvalTask::Rec);
        c.questions.data_file_paths = Some(ColonList(file.display().to_string()));
        c.questions.image_folders = Some(ColonList(images.display().to_string()));
        c.sampling.max_new_tokens = Some(6);
        c.sampling.num_samples = 2;
        c.sampling.temperature = 1.0;
        c.run.output_dir = Some("unused".to_owned());
    })
}

struct Run<'a> {
    config: &'a EvalConfig,
    model: &'a dyn VisionLanguageModel,
    folder: ResultFolder,
}

impl<'a> Run<'a> {
    fn new(config: &'a EvalConfig, model: &'a dyn VisionLanguageModel, folder: &Path) -> Self {
        Self { config, model, folder: ResultFolder::open(folder).unwrap() }
    }

    fn set_up(&self) -> (Evaluation, CompletionStore) {
        let path = self.folder.path();
        let family = RewardFamily::WITHOUT_MODEL;
        let evaluation = set_up(self.config, path, super::processor(), family).unwrap();
        let store = evaluation.open(&self.folder).unwrap();
        (evaluation, store)
    }

    /// Goes on for `limit` completions at most.
    fn go(&self, limit: usize) -> (Result<(Results, Summary), AskError>, Watcher) {
        let (evaluation, mut store) = self.set_up();
        let mut watcher = Watcher { heard: 0, bad: Vec::new() };
        // Who cancels cannot see the watcher: the folder tells.
        let path = self.folder.path().join(COMPLETIONS);
        let lines = || fs::read_to_string(&path).map_or(0, |text| text.lines().count());
        let before = lines();
        let answered = sample_missing(
            &Local,
            &evaluation,
            self.model,
            Some(Kept { folder: &self.folder, store: &mut store }),
            &mut watcher,
            &|| lines() >= before.saturating_add(limit),
        );
        let finished = answered.and_then(|()| Ok(evaluation.finish(&self.folder, &store)?));
        let finished = finished.map(|outcome| (outcome.results, outcome.summary));
        (finished, watcher)
    }
}

fn outputs(results: &Results) -> Vec<(usize, usize, String)> {
    let each = results.results.iter();
    each.map(|s| (s.row, s.completion_index, s.model_output.clone())).collect()
}

#[test]
fn batches_of_any_size_and_any_stops_give_the_same_completions() {
    let dir = tempfile::tempdir().unwrap();
    let config = data(dir.path());
    let model = super::model();
    let whole = Run::new(&config, model.as_ref(), &dir.path().join("whole"));
    let (finished, watcher) = whole.go(usize::MAX);
    let (results, summary) = finished.unwrap();
    assert_eq!(watcher.heard, 10, "five good rows, two completions each");
    assert_eq!(results.results.len(), 14);
    assert_eq!((summary.num_questions, summary.num_bad), (7, 2));
    let different: BTreeSet<String> = outputs(&results).into_iter().map(|o| o.2).collect();
    assert!(different.len() > 4, "{different:?}");

    let one_by_one = config.clone().with(|c| c.decoding.max_concurrent_completions = 1);
    let stopped = Run::new(&one_by_one, model.as_ref(), &dir.path().join("stopped"));
    let (first, watcher) = stopped.go(3);
    assert!(matches!(first, Err(AskError::Engine(_))));
    assert_eq!(watcher.heard, 3);
    let path = stopped.folder.path().join(COMPLETIONS);
    let kept = fs::read_to_string(&path).unwrap();
    // What a kill leaves in the middle of a write.
    fs::write(&path, format!("{kept}{{\"row\": 5, \"sam")).unwrap();
    let (second, watcher) = stopped.go(usize::MAX);
    assert_eq!(watcher.heard, 7, "no completion is asked for twice");
    assert!(fs::read_to_string(&path).unwrap().starts_with(&kept));
    let (resumed, resumed_summary) = second.unwrap();
    // Draws at a boundary could differ by rounding; these have none.
    assert_eq!(outputs(&resumed), outputs(&results));
    assert_eq!(resumed_summary, summary);
    let (third, watcher) = stopped.go(usize::MAX);
    assert_eq!((third.unwrap().1, watcher.heard), (summary, 0));
}

#[test]
fn bad_rows_are_named_and_count_unless_excluded() {
    let dir = tempfile::tempdir().unwrap();
    let config = data(dir.path());
    let model = super::model();
    let run = Run::new(&config, model.as_ref(), &dir.path().join("out"));
    let (evaluation, _) = run.set_up();
    let bad: Vec<(&str, &str)> = evaluation.questions().bad().collect();
    assert_eq!(bad.len(), 1);
    assert!(bad[0].0.ends_with("val.json:62 (item 7)"), "{bad:?}");
    assert!(bad[0].1.contains("x1 < x2"), "{bad:?}");
    let (finished, watcher) = run.go(usize::MAX);
    assert!(watcher.bad[0].contains("val.json:12 (item 2): "), "{:?}", watcher.bad);
    assert!(watcher.bad[0].contains("cut.png"), "{:?}", watcher.bad);
    let (results, summary) = finished.unwrap();
    let named: Vec<String> = results.bad().map(|(place, _)| place.to_owned()).collect();
    assert_eq!(named.len(), 2);
    let completions = run.folder.path().join(COMPLETIONS);
    let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(lines(&completions), 10);
    let excluding = config.clone().with(|c| c.scoring.exclude_bad = true);
    drop(run);
    let again = Run::new(&excluding, model.as_ref(), &dir.path().join("out"));
    let (finished, _) = again.go(usize::MAX);
    let (_, without) = finished.unwrap();
    assert_eq!((summary.num_questions, without.num_questions), (7, 5));
    let of = |summary: &Summary, name: &str| -> f64 {
        let metric = summary.metrics.iter().find(|metric| metric.name == name);
        metric.unwrap().interval.mean
    };
    let (all, good) = (of(&summary, "iou_anywhere"), of(&without, "iou_anywhere"));
    assert!((all * 7.0 - good * 5.0).abs() < 1e-12);
    // The image is repaired: only its completions are asked for.
    fs::copy(dir.path().join("images/scene.png"), dir.path().join("images/cut.png")).unwrap();
    let (finished, watcher) = again.go(usize::MAX);
    assert_eq!((finished.unwrap().1.num_bad, watcher.heard), (1, 2));
}

#[test]
fn other_settings_and_other_questions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = data(dir.path());
    let model = super::model();
    let out = dir.path().join("out");
    Run::new(&config, model.as_ref(), &out).go(usize::MAX).0.unwrap();
    let open = |config: &EvalConfig| {
        let folder = ResultFolder::open(&out).unwrap();
        let family = RewardFamily::WITHOUT_MODEL;
        let evaluation = set_up(config, &out, super::processor(), family).unwrap();
        evaluation.open(&folder).err().map(|error| error.to_string())
    };
    assert_eq!(open(&config), None);
    let seed = config.clone().with(|c| c.decoding.seed = 7);
    let error = open(&seed).unwrap();
    assert!(error.contains("`seed`: was 42, is 7") && error.contains("hint:"), "{error}");
    let allowed = seed.with(|c| c.run.allow_changed = true);
    assert_eq!(open(&allowed), None);
    // Scoring is not sampling.
    let scoring = config.clone().with(|c| {
        c.scoring.correct_above = 0.1;
        c.decoding.seed = 7;
    });
    assert_eq!(open(&scoring), None);
    let file = dir.path().join("val.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("thing 3", "thing 33")).unwrap();
    let error = open(&scoring).unwrap();
    assert!(error.contains("answers.jsonl:"), "{error}");
    assert!(error.contains("asks `Where is thing 33?`"), "{error}");
}
