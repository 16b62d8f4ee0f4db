//! The file of evaluations during training.

use std::path::Path;

use config::{
    ConfigError, DType, EvalConfig, EvalStrategy, EvalTask, GrpoConfig, Layers, Resolved, resolve,
};
use config::{NamedEvaluation, read_evaluations};

fn run() -> EvalConfig {
    EvalConfig::default().with(|c| {
        c.asked.model = Some("tiny".into());
        c.run.output_dir = Some("out/eval".into());
        c.load.dtype = DType::BFloat16;
        c.load.max_pixels = Some(31_360);
    })
}

fn read(text: &str) -> Result<Vec<NamedEvaluation>, String> {
    read_evaluations(Path::new("evals.yaml"), text, &run()).map_err(|error| error.to_string())
}

#[test]
fn names_stand_over_the_settings_of_eval() {
    let text = "
# two of them
val:
  task: rec
  data_file_paths: [a.json, b.json]
  limit: 200
lisa-2:
  task: gui
  data-file-paths: c.jsonl
  max_pixels: none
";
    let evaluations = read(text).unwrap();
    let names: Vec<&str> = evaluations.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["val", "lisa-2"]);
    let [val, lisa] = [0, 1].map(|index| &evaluations[index].config);
    assert_eq!((val.questions.task, val.questions.limit), (Some(EvalTask::Rec), Some(200)));
    assert_eq!(val.questions.data_file_paths.as_deref(), Some("a.json:b.json"));
    // What is not said is as the run has it, and else as `eval` has it.
    assert_eq!((val.load.dtype, val.load.max_pixels), (DType::BFloat16, Some(31_360)));
    assert_eq!((lisa.load.max_pixels, lisa.decoding.seed), (None, 42));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let good = "a:\n  task: rec\n  data_file_paths: a.json\n";
    for (text, expected) in [
        (
            "b:\n  task: rec\n  data_file_path: b.json\n",
            "evals.yaml:6: unknown key `data_file_path`\nhint: did you mean `data_file_paths`?",
        ),
        ("b:\n  task: recs\n", "evals.yaml:5: `task`: got `recs`"),
        ("b:\n  model: other\n", "evals.yaml:5: `model` has no place here: the policy of the run"),
        ("b:\n  output-dir: other\n", "evals.yaml:5: `output-dir` has no place here"),
        (
            "b:\n  task: rec\n  data_file_paths: b.json\n  num_samples: 4\n",
            "evals.yaml:4: evaluation `b`: `num_samples`: got 4",
        ),
        ("b:\n  task: rec\n", "`data_file_paths`: got nothing"),
        ("b: 3\n", "evals.yaml:4: `b`: got number `3`"),
        ("../b:\n  task: rec\n", "evals.yaml:4: `../b`: got the name"),
        ("rewards:\n  task: rec\n", "`rewards`: got the name"),
        ("a:\n  task: gui\n", "evals.yaml:4: `a` is there twice, first in line 1"),
    ] {
        let error = read(&format!("{good}{text}")).unwrap_err();
        assert!(error.contains(expected), "{text}\n{error}");
    }
    assert!(read("# nothing\n").unwrap_err().contains("expected a name for each"));
}

fn grpo(more: &str) -> Result<Resolved<GrpoConfig>, ConfigError> {
    let text = format!("model_name_or_path: m\ndata_file_paths: d\noutput_dir: o\n{more}");
    resolve(&Layers { file: Some((Path::new("run.yaml"), &text)), ..Layers::default() })
}

#[test]
fn steps_alone_ask_for_evaluations() {
    let steps = |strategy, steps| {
        let interval = EvalStrategy::interval(strategy, steps, 10);
        interval.map(|interval| interval.steps(30))
    };
    assert_eq!(steps(Some(EvalStrategy::Epoch), Some(100)), Some(30));
    assert_eq!(steps(None, None), None);
    assert_eq!(steps(None, Some(100)), Some(100));
    assert_eq!(steps(Some(EvalStrategy::Steps), None), Some(10));
    assert_eq!(steps(Some(EvalStrategy::No), Some(100)), None);
    for more in [
        "eval_steps: 5\neval_config: e.yaml",
        "eval_strategy: steps\nval_split_ratio: 0.1",
        "eval_on_start: true\neval_config: e.yaml",
        "val_split_ratio: 0.1",
    ] {
        let resolved = grpo(more).unwrap();
        assert!(resolved.without_effect.is_empty(), "{more}");
    }
    let off = grpo("eval_strategy: no\neval_steps: 5\neval_config: e.yaml").unwrap();
    let names: Vec<&str> = off.without_effect.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["eval_steps", "eval_config"]);
    for (more, expected) in [
        ("eval_steps: 5", "`eval_steps`: got nothing to evaluate"),
        ("eval_strategy: steps", "`eval_strategy`: got nothing to evaluate"),
        ("eval_config: e.yaml", "`eval_config`: got no step"),
        ("eval_steps: 0\neval_config: e.yaml", "`eval_steps`: got 0"),
    ] {
        let error = grpo(more).unwrap_err().to_string();
        assert!(error.contains(expected), "{more}: {error}");
    }
}
