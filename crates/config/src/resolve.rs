//! Defaults, YAML file, flags and `--set`, each over the one before.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::value::TypeMismatch;
use super::yaml::parse_mapping;
use super::{CompatEffect, CompatFlag};
use super::{Config, ConfigError, Field, Origin, bounds, canonical, nearest};

/// Where the values of a configuration come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers<'a> {
    /// A YAML file and its text.
    pub file: Option<(&'a Path, &'a str)>,
    /// Flags without their dashes, in either spelling, with the values that follow them.
    pub flags: &'a [(String, Vec<String>)],
    /// The texts of `--set`, `key=value`.
    pub sets: &'a [String],
    /// Flags of other programs that are taken and named, [`VLM_R1`](super::VLM_R1) for training.
    pub compat: &'static [CompatFlag],
}

/// A configuration with what the user should know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved<T> {
    /// The values.
    pub config: T,
    /// Flags that were given and change nothing, each with why.
    pub without_effect: Vec<(String, &'static str)>,
}

/// Lays the layers over the defaults of `T`.
///
/// # Errors
/// On a file that is not a YAML mapping, a key that does not exist, a value that does not fit, a
/// required field that was not given, and what [`Validate`](super::Validate) refuses.
pub fn resolve<T: Config>(layers: &Layers<'_>) -> Result<Resolved<T>, ConfigError> {
    let mut tree = Tree::of(&T::default(), T::FIELDS, layers.compat)?;
    if let Some((path, text)) = layers.file {
        tree.apply_file(path, text)?;
    }
    for (name, texts) in layers.flags {
        tree.put(name, Given::Flag(texts), || Origin::Flag)?;
    }
    for text in layers.sets {
        let (key, value) =
            text.split_once('=').ok_or_else(|| ConfigError::SetSyntax { text: text.clone() })?;
        tree.put(key.trim(), Given::Text(value), || Origin::Set(text.clone()))?;
    }
    let keys = tree.missing();
    if !keys.is_empty() {
        return Err(ConfigError::Missing { keys });
    }
    let config: T = config_of(std::mem::take(&mut tree.values))?;
    let mut without_effect = std::mem::take(&mut tree.without_effect);
    let idle = config.inactive_fields().into_iter();
    without_effect.extend(
        idle.filter(|(name, _)| tree.asked.iter().any(|asked| asked == name))
            .map(|(name, why)| (name.to_owned(), why)),
    );
    Ok(Resolved { config, without_effect })
}

/// Lays a mapping of a file, whose keys are looked for in `text`, over `base`.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn resolve_mapping<T: Config>(
    base: &T,
    path: &Path,
    values: &Map<String, Value>,
    text: &str,
) -> Result<T, ConfigError> {
    let mut tree = Tree::of(base, T::FIELDS, &[])?;
    tree.apply_mapping(values, path, text)?;
    config_of(tree.values)
}

/// The values as a configuration that makes sense.
fn config_of<T: Config>(values: Map<String, Value>) -> Result<T, ConfigError> {
    bounds::check(T::FIELDS, &values)?;
    let config: T = serde_json::from_value(Value::Object(values))
        .map_err(|error| ConfigError::Write { cause: error.to_string() })?;
    config.validate()?;
    Ok(config)
}

/// The configuration as the YAML that [`resolve`] reads back.
///
/// # Errors
/// Where the writer fails.
pub fn to_yaml<T: Config>(config: &T) -> Result<String, ConfigError> {
    serde_saphyr::to_string(config).map_err(|error| ConfigError::Write { cause: error.to_string() })
}

/// A setting that differs between a run and its continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The field.
    pub key: &'static str,
    /// Its value in the run folder.
    pub before: Value,
    /// Its value now.
    pub now: Value,
}

/// The settings of `now` that alter what the run of `yaml` (the text of `file`) computes.
///
/// # Errors
/// Where `yaml` is not a configuration of this kind.
pub fn changed_settings<T: Config>(
    file: &Path,
    yaml: &str,
    now: &T,
) -> Result<Vec<Change>, ConfigError> {
    let layers = Layers { file: Some((file, yaml)), ..Layers::default() };
    let before = resolve::<T>(&layers)
        .map_err(|cause| ConfigError::Saved { cause: Box::new(cause) })?
        .config;
    let before = Tree::of(&before, T::FIELDS, &[])?.values;
    let now = Tree::of(now, T::FIELDS, &[])?.values;
    let altering = T::FIELDS
        .iter()
        .filter(|field| !T::free_groups().contains(&field.group))
        .filter(|field| !T::free_fields().contains(&field.name));
    Ok(altering
        .filter(|field| before[field.name] != now[field.name])
        .map(|field| Change {
            key: field.name,
            before: before[field.name].clone(),
            now: now[field.name].clone(),
        })
        .collect())
}

/// A value as a layer has it.
enum Given<'a> {
    Flag(&'a [String]),
    Text(&'a str),
    Yaml(&'a Value),
}

impl Given<'_> {
    fn shown(&self) -> String {
        match self {
            Given::Flag([]) => "true".into(),
            Given::Flag(texts) => texts.join(" "),
            Given::Text(text) => (*text).to_owned(),
            Given::Yaml(Value::String(text)) => text.clone(),
            Given::Yaml(value) => value.to_string(),
        }
    }
}

struct Tree {
    values: Map<String, Value>,
    given: Vec<String>,
    /// Those that a user meant: a file that a run wrote holds all, most of them as they are by default.
    asked: Vec<String>,
    fields: &'static [Field],
    compat: &'static [CompatFlag],
    without_effect: Vec<(String, &'static str)>,
}

impl Tree {
    fn of<T: Config>(
        config: &T,
        fields: &'static [Field],
        compat: &'static [CompatFlag],
    ) -> Result<Self, ConfigError> {
        match serde_json::to_value(config) {
            Ok(Value::Object(values)) => Ok(Self {
                values,
                given: vec![],
                asked: vec![],
                fields,
                compat,
                without_effect: vec![],
            }),
            Ok(_) => Err(ConfigError::Write { cause: "not a mapping".into() }),
            Err(error) => Err(ConfigError::Write { cause: error.to_string() }),
        }
    }

    fn apply_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let values = parse_mapping(path, text)?;
        self.apply_mapping(&values, path, text)
    }

    fn apply_mapping(
        &mut self,
        values: &Map<String, Value>,
        path: &Path,
        text: &str,
    ) -> Result<(), ConfigError> {
        let mut names = BTreeMap::new();
        for (key, value) in values {
            let origin = || Origin::File(path.into(), line_of(text, key));
            if let Some(other) = names.insert(canonical(key), key) {
                return Err(ConfigError::WrongType {
                    origin: origin(),
                    key: key.clone(),
                    got: format!("`{other}` too, which is the same"),
                    expected: "one of them".into(),
                });
            }
            self.put(key, Given::Yaml(value), origin)?;
        }
        Ok(())
    }

    /// Lays a value over the field `key`, or notes it of a flag of another program.
    fn put(
        &mut self,
        key: &str,
        given: Given<'_>,
        origin: impl Fn() -> Origin,
    ) -> Result<(), ConfigError> {
        let name = self.without_alias(canonical(key));
        let last = name.rsplit('.').next().unwrap_or_default();
        let Some(field) = self.fields.iter().find(|field| field.name == name) else {
            return match self.compat.iter().find(|compat| compat.name == name) {
                Some(compat) => self.put_compat(compat, &given, origin()),
                None => Err(ConfigError::UnknownKey {
                    origin: origin(),
                    key: key.to_owned(),
                    nearest: nearest(last, self.fields.iter().map(|field| field.name))
                        .map(str::to_owned),
                }),
            };
        };
        let value = match &given {
            Given::Flag(texts) => field.kind.read_flag(texts),
            Given::Text(text) => field.kind.read_text(text),
            Given::Yaml(value) => field.kind.read_yaml(value),
        };
        let value = value.map_err(|TypeMismatch { got, expected }| ConfigError::WrongType {
            origin: origin(),
            key: name.clone(),
            got,
            expected,
        })?;
        let is_file = matches!(given, Given::Yaml(_));
        let before = self.values.insert(name.clone(), value.clone());
        if !is_file || before != Some(value) {
            self.asked.push(name.clone());
        }
        self.given.push(name);
        Ok(())
    }

    /// The field that a flag of another program is another name of.
    fn without_alias(&self, name: String) -> String {
        let compat = self.compat.iter().find(|compat| compat.name == name);
        match compat.map(|compat| compat.effect) {
            Some(CompatEffect::Alias(field)) => field.to_owned(),
            _ => name,
        }
    }

    fn put_compat(
        &mut self,
        compat: &'static CompatFlag,
        given: &Given<'_>,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let value = given.shown();
        let why = compat.why_inactive(&value).map_err(|reason| ConfigError::NotBuilt {
            origin,
            key: compat.name.to_owned(),
            value,
            reason,
        })?;
        if !self.without_effect.iter().any(|(name, _)| name == compat.name) {
            self.without_effect.push((compat.name.to_owned(), why));
        }
        Ok(())
    }

    /// Required fields that no layer gave.
    fn missing(&self) -> Vec<String> {
        let is_missing =
            |field: &&Field| field.required && !self.given.iter().any(|name| name == field.name);
        self.fields.iter().filter(is_missing).map(|field| field.name.to_owned()).collect()
    }
}

/// The line, from 1, where `key` stands as a key.
pub(crate) fn line_of(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'']);
        let rest = line.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'']));
        rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    text.lines().position(is_key).map(|index| index + 1)
}
