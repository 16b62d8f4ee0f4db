//! Evaluations during training: a YAML file of names, each with settings of `eval`.

use std::path::Path;

use serde_json::Value;

use crate::resolve::resolve_mapping;
use crate::value::described;
use crate::yaml::parse_mapping;
use crate::{ConfigError, EvalConfig, Origin, canonical};

/// Settings of `eval` that the run itself decides, and how.
const OF_THE_RUN: [(&str, &str); 13] = [
    ("model", "the policy of the run is asked"),
    ("model_revision", "the policy of the run is asked"),
    ("base_model", "the policy of the run is asked"),
    ("output_dir", "results go to the folder `eval` of the run's own"),
    ("dtype", "it is that of the run, see `--bf16`"),
    ("device", "it is that of the run"),
    ("num_threads", "they are those of the run"),
    ("ddp_timeout", "it is that of the run"),
    ("check_collectives", "it is that of the run"),
    ("allow_changed", "every evaluation begins anew"),
    ("compare", "results are compared by `vlm-r1 eval --compare`"),
    ("html", "`report.html` is always written"),
    ("dry_run", "that of the run reads this file too"),
];

/// Names of metrics that validation rows have under `eval/`.
const OF_HELD_OUT_ROWS: [&str; 3] = ["reward", "rewards", "loss"];

/// An evaluation of the policy during training.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedEvaluation {
    /// Its name: of its metrics and of its folders.
    pub name: String,
    /// Its settings.
    pub config: EvalConfig,
}

/// Reads the evaluations of the text of `file`, laid over the settings of `run`.
///
/// # Errors
/// On a file that is not a mapping of names to settings, a name that could not name a folder, keys that
/// do not exist or that the run itself decides, and values that do not fit.
pub fn read_evaluations(
    file: &Path,
    text: &str,
    run: &EvalConfig,
) -> Result<Vec<NamedEvaluation>, ConfigError> {
    let evaluations = parse_mapping(file, text)?;
    if evaluations.is_empty() {
        return Err(ConfigError::Yaml {
            file: file.into(),
            line: None,
            cause: "expected a name for each evaluation, and its settings below it".into(),
        });
    }
    let read = |(name, settings): (&String, &Value)| {
        let config = read_one(file, text, run, name, settings)?;
        let name = name.clone();
        Ok(NamedEvaluation { name, config })
    };
    evaluations.iter().map(read).collect()
}

fn read_one(
    file: &Path,
    text: &str,
    run: &EvalConfig,
    name: &str,
    settings: &Value,
) -> Result<EvalConfig, ConfigError> {
    let (below, line) = below(text, name);
    let refuse = |got: String, expected: &str| ConfigError::WrongType {
        origin: Origin::File(file.into(), line),
        key: name.to_owned(),
        got,
        expected: expected.to_owned(),
    };
    if !is_name(name) {
        let expected = "a name of letters, digits, `_`, `-` and `.` that begins with none of the last two, and none \
                        of `reward`, `rewards`, `loss`";
        return Err(refuse(format!("the name `{name}`"), expected));
    }
    let Value::Object(settings) = settings else {
        return Err(refuse(described(settings), "settings of `eval`"));
    };
    for key in settings.keys() {
        let reason = OF_THE_RUN.iter().find(|(own, _)| *own == canonical(key));
        if let Some((_, reason)) = reason {
            let line = crate::resolve::line_of(&below, key);
            return Err(ConfigError::OfTheRun {
                origin: Origin::File(file.into(), line),
                key: key.clone(),
                reason,
            });
        }
    }
    resolve_mapping(run, file, settings, &below).map_err(|cause| match cause {
        // Others say where they stand.
        ConfigError::OutOfRange { .. } | ConfigError::BeyondBound { .. } => {
            ConfigError::Evaluation {
                origin: Origin::File(file.into(), line),
                name: name.to_owned(),
                cause: Box::new(cause),
            }
        }
        cause => cause,
    })
}

fn is_name(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty()
        && name.chars().all(is_good)
        && !name.starts_with(['.', '-'])
        && !OF_HELD_OUT_ROWS.contains(&name)
}

/// The text with all lines before that of `name` empty, so that keys below it are found at their line; and that line.
fn below(text: &str, name: &str) -> (String, Option<usize>) {
    let is_start = |line: &str| {
        let line = line.trim_start_matches(['"', '\'']);
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    let Some(index) = text.lines().position(is_start) else {
        return (String::new(), None);
    };
    let lines = text.lines().enumerate();
    let kept = lines.map(|(at, line)| if at > index { line } else { "" });
    (kept.collect::<Vec<_>>().join("\n"), Some(index + 1))
}
