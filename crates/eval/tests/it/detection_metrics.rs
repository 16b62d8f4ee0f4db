//! Metrics of detection, from a COCO file and completions, equal pycocotools and an independent NMS-AP
//! (`tools/golden/eval_detection.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base::FinishReason;
use config::{BoxFormat, ColonList, EvalConfig, EvalTask, LabelList};
use data::Processor;
use eval::completions::StoredCompletion;
use eval::questions::{Question, Questions, Truth};
use eval::scoring::Scorer;
use eval::{Metric, Results, Summary};
use rewards::RewardFamily;
use serde::Deserialize;
use serde_json::Value;

const TOLERANCE: f64 = 1e-9;

#[derive(Debug, Deserialize)]
struct Case {
    coco: Value,
    #[serde(rename = "answers")]
    completions: BTreeMap<String, String>,
    #[serde(rename = "figures")]
    metrics: BTreeMap<String, f64>,
}

/// The committed cases, or those of a larger run of the script.
fn cases() -> Vec<Case> {
    let folder = std::env::var_os("VLM_R1_EVAL_CASES")
        .map_or_else(|| testing::golden("eval"), PathBuf::from);
    testing::cases(folder.join("detection.jsonl"), 60)
}

fn completion(row: usize, question: &Question, case: &Case) -> StoredCompletion {
    let Truth::Objects(objects) = &question.truth else {
        panic!("no objects in {}", question.place);
    };
    StoredCompletion {
        row,
        completion_index: 0,
        image: Value::Null,
        question: String::new(),
        model_output: case.completions[&objects.image_id.as_ref().unwrap().to_string()].clone(),
        tokens: 1,
        finish_reason: FinishReason::Stop,
        image_sizes: vec![[200, 200]],
        input_sizes: vec![[224, 224]],
        image_grid_thw: vec![[1, 16, 16]],
    }
}

fn summary(case: &Case, processor: &Processor, shuffle_seed: Option<u64>) -> Summary {
    let folder = tempfile::tempdir().unwrap();
    let source = super::golden().join("images/small.png");
    for image in case.coco["images"].as_array().unwrap() {
        let name = image["file_name"].as_str().unwrap();
        fs::copy(&source, folder.path().join(name)).unwrap();
    }
    let file = folder.path().join("val.json");
    fs::write(&file, case.coco.to_string()).unwrap();
    let config = EvalConfig::default().with(|c| {
        c.questions.task = Some(EvalTask::OvdEval);
        c.questions.data_file_paths = Some(ColonList(file.display().to_string()));
        c.questions.image_folders = Some(ColonList(folder.path().display().to_string()));
        c.questions.labels = Some(LabelList::All);
        c.rewards.box_format = Some(BoxFormat::Absolute);
        c.questions.shuffle_seed = shuffle_seed;
    });
    let questions = Questions::load(&config, processor, &|_| Ok(())).unwrap();
    assert_eq!(questions.bad().count(), 0);
    let scorer =
        Scorer::new(&config, RewardFamily::WITHOUT_MODEL, 14, folder.path().join("cache")).unwrap();
    let rows = questions.rows.iter().enumerate();
    let completions: Vec<StoredCompletion> =
        rows.map(|(row, q)| completion(row, q, case)).collect();
    let answered: Vec<(&Question, &StoredCompletion)> =
        questions.rows.iter().zip(&completions).collect();
    let mut results = scorer.score(&answered, None).unwrap();
    results.iter_mut().for_each(|scored| scored.subset = "val".to_owned());
    let results = Results {
        accuracy: 0.0,
        task: EvalTask::OvdEval,
        model: String::new(),
        num_samples: 1,
        exclude_bad: false,
        apply_exif: false,
        subsets: questions.subsets,
        settings: serde_json::Map::new(),
        trained_as: Value::Null,
        results,
    };
    Summary::of(&results).unwrap()
}

#[test]
fn metrics_of_detection_equal_pycocotools() {
    let processor = super::processor();
    let mut worst: f64 = 0.0;
    let mut with_interval = 0;
    for case in cases() {
        for shuffle_seed in [None, Some(3)] {
            let summary = summary(&case, &processor, shuffle_seed);
            assert_eq!(summary.metrics[0].name, "nms_ap");
            for (name, expected) in &case.metrics {
                let metric = summary.metrics.iter().find(|metric| metric.name == *name);
                let Metric { interval, .. } = metric.unwrap();
                let difference = (interval.mean - expected).abs();
                assert!(
                    difference <= TOLERANCE,
                    "{name}: {} expected {expected}: {case:#?}",
                    interval.mean
                );
                assert!(interval.low <= interval.high);
                with_interval += usize::from(interval.low < interval.high);
                worst = worst.max(difference);
            }
        }
    }
    assert!(with_interval > 100, "{with_interval}");
    println!("largest difference: {worst:e}");
}
