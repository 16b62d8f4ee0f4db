//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A YAML file, with the line where the key was found.
    File(PathBuf, Option<usize>),
    /// A flag of the command line.
    Flag,
    /// The text of a `--set`.
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Origin::File(path, None) => write!(f, "{}", path.display()),
            Origin::Flag => write!(f, "command line"),
            Origin::Set(text) => write!(f, "`--set {text}`"),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is not YAML, or not a mapping.
    #[error("{}{}: {cause}", file.display(), at_line(*line))]
    Yaml {
        /// The file.
        file: PathBuf,
        /// Where.
        line: Option<u64>,
        /// What is wrong.
        cause: String,
    },
    /// No field has this name.
    #[error("{origin}: unknown key `{key}`{}", hint_of(nearest.as_deref()))]
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// The name as given.
        key: String,
        /// The valid name that may have been meant.
        nearest: Option<String>,
    },
    /// A value that the field does not take.
    #[error("{origin}: `{key}`: got {got}, expected {expected}")]
    WrongType {
        /// Where it stands.
        origin: Origin,
        /// The field.
        key: String,
        /// The value, quoted.
        got: String,
        /// What the field takes.
        expected: String,
    },
    /// A value that asks for something that does not exist here.
    #[error("{origin}: `{key}: {value}` is not built yet: {reason}")]
    NotBuilt {
        /// Where it stands.
        origin: Origin,
        /// The flag.
        key: String,
        /// The value as given.
        value: String,
        /// What is missing, and what to do.
        reason: &'static str,
    },
    /// A setting of an evaluation during training that is not its own.
    #[error("{origin}: `{key}` has no place here: {reason}")]
    OfTheRun {
        /// Where it stands.
        origin: Origin,
        /// The key as given.
        key: String,
        /// Who decides it.
        reason: &'static str,
    },
    /// Settings of an evaluation during training that do not go together.
    #[error("{origin}: evaluation `{name}`: {cause}")]
    Evaluation {
        /// Where it stands.
        origin: Origin,
        /// Its name.
        name: String,
        /// What is wrong.
        cause: Box<ConfigError>,
    },
    /// Settings that a run or its results were made with cannot be read.
    #[error(
        "{}\nhint: the folder was made with these settings; where the file is damaged, `--allow_changed true` goes on \
         with those given now",
        cause.to_string().split("\nhint: ").next().unwrap_or_default()
    )]
    Saved {
        /// What is wrong.
        cause: Box<ConfigError>,
    },
    /// Fields without a default were not given.
    #[error("missing {}", list(keys))]
    Missing {
        /// The fields.
        keys: Vec<String>,
    },
    /// `--set` without `=`.
    #[error("`--set {text}`: expected `key=value`")]
    SetSyntax {
        /// The text as given.
        text: String,
    },
    /// A value outside what makes sense.
    #[error("`{key}`: got {got}, expected {expected}")]
    OutOfRange {
        /// The field.
        key: &'static str,
        /// Its value.
        got: String,
        /// The range.
        expected: &'static str,
    },
    /// A number beyond its bound.
    #[error("`{key}`: got {got}, expected {expected}: {why}")]
    BeyondBound {
        /// The field.
        key: &'static str,
        /// Its value.
        got: String,
        /// The bound.
        expected: String,
        /// Why there is one.
        why: &'static str,
    },
    /// The configuration could not be written as YAML.
    #[error("cannot write the configuration as YAML: {cause}")]
    Write {
        /// What the writer says.
        cause: String,
    },
}

fn at_line(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

fn hint_of(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("\nhint: did you mean `{nearest}`?"))
}

fn list(keys: &[String]) -> String {
    let flags: Vec<String> = keys.iter().map(|key| format!("`--{key}`")).collect();
    flags.join(", ")
}
