//! Completions that a good model may give and that score nothing: what is said of them. No model is asked: the
//! completions lie in the folder as an earlier call would have left them.

use std::fs;
use std::path::Path;

use base::run_folder::ResultFolder;
use config::{BoxFormat, ColonList, EvalConfig, EvalTask, Extractor};
use eval::completions::COMPLETIONS;
use eval::{Doubt, EvalError, Evaluation, Outcome};
use rewards::RewardFamily;
use serde_json::{Value, json};

const BOXES: [[u32; 4]; 4] =
    [[10, 20, 90, 60], [30, 4, 55, 70], [2, 40, 100, 80], [60, 10, 95, 95]];
/// Of the image, and of what the model sees of it, px.
const SIZE: [u32; 2] = [128, 100];
const INPUT: [u32; 2] = [112, 112];

fn config(folder: &Path, task: EvalTask, rows: &[Value]) -> EvalConfig {
    let images = super::golden().join("images");
    let rows = rows.iter().enumerate().map(|(index, answer)| {
        json!({"image": "small.png", "problem": format!("Where is thing {index}?"), "solution": answer})
    });
    let file = folder.join("val.json");
    fs::write(&file, Value::from_iter(rows).to_string()).unwrap();
    EvalConfig::default().with(|c| {
        c.asked.model = Some("nested".to_owned());
        c.questions.task = Some(task);
        c.questions.data_file_paths = Some(ColonList(file.display().to_string()));
        c.questions.image_folders = Some(ColonList(images.display().to_string()));
        c.run.output_dir = Some("unused".to_owned());
    })
}

fn evaluation(config: &EvalConfig, folder: &Path) -> Result<Evaluation, EvalError> {
    Evaluation::new(config, folder, super::processor(), RewardFamily::WITHOUT_MODEL)
}

/// Scores `completions`, each a text and whether it was cut off.
fn scored(config: &EvalConfig, folder: &Path, completions: &[(String, bool)]) -> (Outcome, Value) {
    let folder = folder.join("out");
    let longest = config.sampling.max_new_tokens.unwrap_or(2048);
    let lines = completions.iter().enumerate().map(|(row, (text, is_cut))| {
        let line = json!({
            "row": row, "sample": 0, "image": "small.png", "question": format!("Where is thing {row}?"),
            "model_output": text, "tokens": if *is_cut { longest } else { 5 }, "finish_reason": if *is_cut { "length" } else { "stop" },
            "image_sizes": [SIZE], "input_sizes": [INPUT], "image_grid_thw": [[1, 8, 8]],
        });
        format!("{line}\n")
    });
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(COMPLETIONS), lines.collect::<String>()).unwrap();
    let evaluation = evaluation(config, &folder).unwrap();
    let folder = ResultFolder::open(&folder).unwrap();
    let store = evaluation.open(&folder).unwrap();
    assert!(evaluation.is_complete(&store));
    let outcome = evaluation.finish(&folder, &store).unwrap();
    let summary = fs::read_to_string(folder.path().join("summary.json")).unwrap();
    (outcome, serde_json::from_str(&summary).unwrap())
}

fn rec(folder: &Path) -> EvalConfig {
    let rows: Vec<Value> = (0..8).map(|row| json!(BOXES[row % 4])).collect();
    config(folder, EvalTask::Rec, &rows)
}

/// Eight completions, made of the true boxes as `write` writes them in `units`.
fn completions(write: impl Fn([f64; 4]) -> String, extent: [u32; 2]) -> Vec<(String, bool)> {
    let completion = |row: usize| {
        let scaled = |corner: usize| {
            let axis = corner % 2;
            f64::from(BOXES[row % 4][corner]) / f64::from(SIZE[axis]) * f64::from(extent[axis])
        };
        (write([0, 1, 2, 3].map(scaled)), false)
    };
    (0..8).map(completion).collect()
}

fn whole(b: [f64; 4]) -> String {
    let [x1, y1, x2, y2] = b.map(|x| x.round());
    format!("<think>a</think><answer>{{\"bbox_2d\": [{x1}, {y1}, {x2}, {y2}]}}</answer>")
}

fn text(outcome: &Outcome, doubt: Doubt) -> Option<&str> {
    let warning = outcome.warnings.iter().find(|w| w.doubt == doubt);
    warning.map(|warning| warning.text.as_str())
}

fn has(outcome: &Outcome, doubt: Doubt, parts: &[&str]) {
    let text = text(outcome, doubt).unwrap_or_else(|| panic!("{doubt:?}: {:?}", outcome.warnings));
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn of_good_completions_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, summary) = scored(&rec(dir.path()), dir.path(), &completions(whole, INPUT));
    assert_eq!(outcome.results.accuracy, 100.0);
    assert_eq!(outcome.warnings, []);
    assert_eq!(summary["warnings"], json!([]));
    let counts = &summary["answers"];
    assert_eq!((&counts["num"], &counts["unread"]), (&json!(8), &json!(0)));
    assert_eq!(counts["read_by"], json!({"thinking": 8, "baseline": 8}));
}

#[test]
fn completions_cut_off_are_counted_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = rec(dir.path()).with(|c| c.sampling.max_new_tokens = Some(16));
    let mut all = completions(whole, INPUT);
    for completion in &mut all[..6] {
        *completion = ("<think> the red cup is".to_owned(), true);
    }
    let (outcome, summary) = scored(&config, dir.path(), &all);
    let parts = ["6 of 8 completions (75 %)", "`--max_new_tokens 16`", "\nhint: "];
    has(&outcome, Doubt::CutOff, &parts);
    assert_eq!(summary["answers"]["cut_off"], 6);
    assert_eq!(summary["answers"]["max_new_tokens"], 16);
    let reasons = &summary["answers"]["unread_by_reason"];
    assert_eq!(reasons, &json!({"no `<answer>` tag": 6}));
    let first = &outcome.results.results[0];
    assert_eq!(first.reason, "no `<answer>` tag");
    // Where none ends although there is room, more room is no way out.
    let never: Vec<_> = (0..8).map(|row| (format!("word {row}"), true)).collect();
    let config = config.with(|c| c.sampling.max_new_tokens = Some(2048));
    let other = tempfile::tempdir().unwrap();
    let (outcome, _) = scored(&config, other.path(), &never);
    has(&outcome, Doubt::CutOff, &["eos_token_id"]);
}

#[test]
fn another_form_is_named_with_who_reads_it_and_scored_anew_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let plain = |b: [f64; 4]| format!("[{:.0}, {:.0}, {:.0}, {:.0}]", b[0], b[1], b[2], b[3]);
    let mut all = completions(plain, INPUT);
    all[7].0 = String::new();
    let config = rec(dir.path());
    let (outcome, summary) = scored(&config, dir.path(), &all);
    assert_eq!(outcome.results.accuracy, 0.0);
    has(
        &outcome,
        Doubt::Unread,
        &[
            "no `<answer>` tag in 7 of 8 completions, the answer is empty in 1",
            "`--extractor thinking` reads 0 of 8",
            "`--extractor baseline` reads 7 of 8",
            "`--question_template rec`",
        ],
    );
    has(&outcome, Doubt::Empty, &["1 of 8 completions (12 %) empty"]);
    assert_eq!(summary["answers"]["read_by"]["baseline"], 7);
    let again = config.with(|c| {
        c.scoring.extractor = Some(Extractor::Baseline);
        c.questions.question_template = Some("rec".to_owned());
    });
    let (outcome, summary) = scored(&again, dir.path(), &all);
    assert_eq!(outcome.results.accuracy, 87.5);
    assert_eq!(summary["settings"]["extractor"], "baseline");
    // Thinking that is asked to be read as a plain box is read, and nothing is said of forms.
    let other = tempfile::tempdir().unwrap();
    let (outcome, _) = scored(&again, other.path(), &completions(whole, INPUT));
    assert_eq!(text(&outcome, Doubt::Unread), None);
}

#[test]
fn boxes_of_other_units_and_orders_are_told() {
    let decimals = |b: [f64; 4]| format!("<answer>{{\"b\": {b:?}}}</answer>");
    let turned = |b: [f64; 4]| whole([b[1], b[0], b[3], b[2]]);
    let sized = |b: [f64; 4]| whole([b[0], b[1], b[2] - b[0], b[3] - b[1]]);
    for (all, parts) in [
        (
            completions(whole, [1000; 2]),
            ["thousandths of the image", "\nhint: --box_format relative_1000"],
        ),
        (completions(decimals, [1; 2]), ["shares of the image", "\nhint: --box_format relative_1"]),
        (completions(turned, [1000; 2]), ["`[y1, x1, y2, x2]` in thousandths", "no flag"]),
        (completions(sized, INPUT), ["`[x, y, width, height]`", "no flag"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (outcome, _) = scored(&rec(dir.path()), dir.path(), &all);
        has(&outcome, Doubt::Units, &parts);
    }
    // Told so, shares are read within completion tags too.
    let dir = tempfile::tempdir().unwrap();
    let config = rec(dir.path()).with(|c| c.rewards.box_format = Some(BoxFormat::Relative1));
    let (outcome, _) = scored(&config, dir.path(), &completions(decimals, [1; 2]));
    assert_eq!(outcome.results.accuracy, 100.0);
    assert_eq!(outcome.warnings, []);
}

#[test]
fn true_boxes_in_shares_are_told_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [json!([0.1, 0.2, 0.5, 1.0]), json!([0.0, 0.2, 0.5, 0.7])];
    let config = config(dir.path(), EvalTask::Rec, &rows);
    let doubts = evaluation(&config, dir.path()).unwrap().doubts();
    assert!(doubts[0].text.ends_with("hint: --solution_box_format relative_1"));
    let told = config.with(|c| c.rewards.solution_box_format = Some(BoxFormat::Relative1));
    assert_eq!(evaluation(&told, dir.path()).unwrap().doubts(), []);
}

#[test]
fn one_completion_to_everything_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let same = vec![(whole([1.0, 2.0, 30.0, 40.0]), false); 8];
    let (outcome, summary) = scored(&rec(dir.path()), dir.path(), &same);
    has(&outcome, Doubt::Alike, &["8 of 8 completions (100 %)", "whatever is asked: `<think>"]);
    assert_eq!(summary["answers"]["alike"]["num"], 8);
    // Where nearly all truths are one, so may be the completions.
    let dir = tempfile::tempdir().unwrap();
    let truths: Vec<Value> = (0..8).map(|row| json!(if row < 6 { "yes" } else { "no" })).collect();
    let config = config(dir.path(), EvalTask::YesNo, &truths);
    let yes = vec![("<answer>yes</answer>".to_owned(), false); 8];
    let (outcome, _) = scored(&config, dir.path(), &yes);
    assert_eq!(outcome.warnings, []);
}

#[test]
fn other_tasks_name_what_they_do_not_find() {
    let said = |task, truth: Value, completion: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), task, &[truth.clone(), truth]);
        let all = vec![(completion.to_owned(), false); 2];
        let (outcome, _) = scored(&config, dir.path(), &all);
        text(&outcome, Doubt::Unread).map(str::to_owned)
    };
    for (task, truth, completion, reason) in [
        (EvalTask::Mcq, json!("B"), "?", "no letter in the answer in 2 of 2 completions"),
        (EvalTask::YesNo, json!("yes"), "perhaps", "neither yes nor no in the answer in 2 of 2"),
        (EvalTask::Gui, json!([1, 2, 30, 40]), "[5, 6]", "no `<answer>...</answer>` in 2 of 2"),
    ] {
        let text = said(task, truth, completion).unwrap();
        assert!(text.starts_with(reason), "{text}");
        assert!(text.contains("the task reads 0 of 2"), "{text}");
    }
    assert_eq!(said(EvalTask::Mcq, json!("B"), "<answer>A</answer>"), None);
    assert_eq!(said(EvalTask::Match, json!("a cup"), "a mug"), None);
}

#[test]
fn rewards_that_look_at_no_box_are_told_and_rows_that_are_all_bad_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [json!([1, 2, 30, 40])];
    let config = config(dir.path(), EvalTask::Reward, &rows)
        .with(|c| c.references.task_type = Some("rec".to_owned()));
    let doubts = evaluation(&config, dir.path()).unwrap().doubts();
    assert_eq!(doubts[0].doubt, Doubt::Rewards);
    assert!(doubts[0].text.contains("--is_reward_customized_from_vlm_module true"));
    let told = config.with(|c| c.rewards.is_reward_customized_from_vlm_module = true);
    assert_eq!(evaluation(&told, dir.path()).unwrap().doubts(), []);
    for bad in [json!(""), json!("left"), json!([9, 9, 1, 1])] {
        let config = self::config(dir.path(), EvalTask::Rec, &[bad.clone(), bad]);
        let error = evaluation(&config, dir.path()).err().unwrap().to_string();
        assert!(error.contains("2 rows, all bad; the first: "), "{error}");
    }
}
