//! Defaults, YAML file, flags and `--set`, each over the one before.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::compatibility::Foreign;
use super::value::Misfit;
use super::yaml::parse_mapping;
use super::{Config, ConfigError, Field, Kind, Origin, bounds, canonical, nearest};

/// Where the values of a configuration come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers<'a> {
    /// A YAML file and its text.
    pub file: Option<(&'a Path, &'a str)>,
    /// Flags without their dashes, in either spelling, with the values that follow them.
    pub flags: &'a [(String, Vec<String>)],
    /// The texts of `--set`, `section.key=value`.
    pub sets: &'a [String],
    /// Flags of other programs that are taken and named, [`VLM_R1`](super::VLM_R1) for training.
    pub foreign: &'static [Foreign],
}

/// A configuration with what the user should know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved<T> {
    /// The values.
    pub config: T,
    /// Flags that were given and change nothing, each with why.
    pub without_effect: Vec<(String, &'static str)>,
    /// Those of other programs among them, with their values.
    pub foreign: Vec<(String, String)>,
}

/// Lays the layers over the defaults of `T`.
///
/// # Errors
/// On a file that is not a YAML mapping, a key that does not exist, a value that does not fit, a
/// required field that was not given, and what [`Validate`](super::Validate) refuses.
pub fn resolve<T: Config>(layers: &Layers<'_>) -> Result<Resolved<T>, ConfigError> {
    let mut tree = Tree::of(&T::default(), T::FIELDS, layers.foreign)?;
    if let Some((path, text)) = layers.file {
        tree.apply_file(path, text)?;
    }
    for (name, texts) in layers.flags {
        let kind = tree.kind(&[name], || Origin::Flag)?;
        tree.put(&[name], kind, Given::Flag(texts), || Origin::Flag)?;
    }
    for text in layers.sets {
        let (key, value) =
            text.split_once('=').ok_or_else(|| ConfigError::SetSyntax { text: text.clone() })?;
        let path: Vec<&str> = key.trim().split('.').collect();
        let origin = || Origin::Set(text.clone());
        let kind = tree.kind(&path, origin)?;
        tree.put(&path, kind, Given::Text(value), origin)?;
    }
    let keys = tree.missing("", T::FIELDS);
    if !keys.is_empty() {
        return Err(ConfigError::Missing { keys });
    }
    let config: T = config_of(std::mem::take(&mut tree.values))?;
    let mut without_effect = std::mem::take(&mut tree.without_effect);
    let idle = config.idle_fields().into_iter();
    without_effect.extend(
        idle.filter(|(name, _)| tree.asked.iter().any(|asked| asked == name))
            .map(|(name, why)| (name.to_owned(), why)),
    );
    Ok(Resolved { config, without_effect, foreign: tree.foreign_values })
}

/// Lays a mapping of a file, whose keys are looked for in `text`, over `base`.
///
/// # Errors
/// As [`resolve`].
pub(super) fn resolve_mapping<T: Config>(
    base: &T,
    path: &Path,
    values: &Map<String, Value>,
    text: &str,
) -> Result<T, ConfigError> {
    let mut tree = Tree::of(base, T::FIELDS, &[])?;
    tree.apply_mapping(&mut Vec::new(), values, path, text)?;
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
    let before = Tree::of(&resolve::<T>(&layers)?.config, T::FIELDS, &[])?.values;
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

/// What a name stands for.
#[derive(Clone, Copy)]
enum Meaning {
    Field(Kind),
    Foreign(&'static Foreign),
}

struct Tree {
    values: Map<String, Value>,
    given: Vec<String>,
    /// Those that a user meant: a file that a run wrote holds all, most of them as they are by default.
    asked: Vec<String>,
    fields: &'static [Field],
    foreign: &'static [Foreign],
    without_effect: Vec<(String, &'static str)>,
    foreign_values: Vec<(String, String)>,
}

impl Tree {
    fn of<T: Config>(
        config: &T,
        fields: &'static [Field],
        foreign: &'static [Foreign],
    ) -> Result<Self, ConfigError> {
        match serde_json::to_value(config) {
            Ok(Value::Object(values)) => Ok(Self {
                values,
                given: vec![],
                asked: vec![],
                fields,
                foreign,
                without_effect: vec![],
                foreign_values: vec![],
            }),
            Ok(_) => Err(ConfigError::Write { cause: "not a mapping".into() }),
            Err(error) => Err(ConfigError::Write { cause: error.to_string() }),
        }
    }

    fn apply_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let values = parse_mapping(path, text)?;
        self.apply_mapping(&mut Vec::new(), &values, path, text)
    }

    fn apply_mapping<'a>(
        &mut self,
        prefix: &mut Vec<&'a str>,
        values: &'a Map<String, Value>,
        path: &Path,
        text: &str,
    ) -> Result<(), ConfigError> {
        let mut names = BTreeMap::new();
        for (key, value) in values {
            prefix.push(key);
            let origin = || Origin::File(path.into(), line_of(text, key));
            if let Some(other) = names.insert(canonical(key), key) {
                return Err(ConfigError::WrongType {
                    origin: origin(),
                    key: key.clone(),
                    got: format!("`{other}` too, which is the same"),
                    expected: "one of them".into(),
                });
            }
            let kind = self.kind(prefix, origin)?;
            match (kind, value) {
                (Meaning::Field(Kind::Section(_)), Value::Object(inner)) => {
                    self.apply_mapping(prefix, inner, path, text)?;
                }
                _ => self.put(prefix, kind, Given::Yaml(value), origin)?,
            }
            prefix.pop();
        }
        Ok(())
    }

    /// What the field at `path` takes.
    fn kind(&self, path: &[&str], origin: impl Fn() -> Origin) -> Result<Meaning, ConfigError> {
        let mut fields = self.fields;
        for (depth, name) in path.iter().enumerate() {
            let name = canonical(name);
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                let foreign = self.foreign.iter().find(|foreign| foreign.name == name);
                return match foreign {
                    Some(foreign) if path.len() == 1 => Ok(Meaning::Foreign(foreign)),
                    _ => Err(unknown_key(&path[..=depth], &name, fields, origin())),
                };
            };
            match field.kind {
                kind if depth + 1 == path.len() => return Ok(Meaning::Field(kind)),
                Kind::Section(inner) => fields = inner,
                _ => return Err(unknown_key(path, &name, fields, origin())),
            }
        }
        Err(unknown_key(path, "", fields, origin()))
    }

    fn put(
        &mut self,
        path: &[&str],
        meaning: Meaning,
        given: Given<'_>,
        origin: impl Fn() -> Origin,
    ) -> Result<(), ConfigError> {
        let kind = match meaning {
            Meaning::Field(kind) => kind,
            Meaning::Foreign(foreign) => return self.put_foreign(foreign, &given, origin()),
        };
        let value = match &given {
            Given::Flag(texts) => kind.read_flag(texts),
            Given::Text(text) => kind.read_text(text),
            Given::Yaml(value) => kind.read_yaml(value),
        };
        let names: Vec<String> = path.iter().map(|name| canonical(name)).collect();
        let key = names.join(".");
        let value = value.map_err(|Misfit { got, expected }| ConfigError::WrongType {
            origin: origin(),
            key: key.clone(),
            got,
            expected,
        })?;
        let mut slot = &mut self.values;
        for name in &names[..names.len() - 1] {
            match slot.get_mut(name) {
                Some(Value::Object(inner)) => slot = inner,
                _ => {
                    return Err(ConfigError::Write { cause: format!("`{name}` is no section") });
                }
            }
        }
        let is_file = matches!(given, Given::Yaml(_));
        let before = slot.insert(names[names.len() - 1].clone(), value.clone());
        if !is_file || before != Some(value) {
            self.asked.push(key.clone());
        }
        self.given.push(key);
        Ok(())
    }

    fn put_foreign(
        &mut self,
        foreign: &'static Foreign,
        given: &Given<'_>,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let value = given.shown();
        self.foreign_values.retain(|(name, _)| name != foreign.name);
        self.foreign_values.push((foreign.name.to_owned(), value.clone()));
        let why = foreign.why_idle(&value).map_err(|reason| ConfigError::NotBuilt {
            origin,
            key: foreign.name.to_owned(),
            value,
            reason,
        })?;
        if !self.without_effect.iter().any(|(name, _)| name == foreign.name) {
            self.without_effect.push((foreign.name.to_owned(), why));
        }
        Ok(())
    }

    /// Required fields that no layer gave, with their sections.
    fn missing(&self, section: &str, fields: &[Field]) -> Vec<String> {
        let missing = |field: &Field| {
            let path = format!("{section}{}", field.name);
            match field.kind {
                Kind::Section(inner) => self.missing(&format!("{path}."), inner),
                _ if field.required && !self.given.contains(&path) => vec![path],
                _ => vec![],
            }
        };
        fields.iter().flat_map(missing).collect()
    }
}

fn unknown_key(path: &[&str], name: &str, fields: &[Field], origin: Origin) -> ConfigError {
    let nearest = nearest(name, fields.iter().map(|field| field.name));
    let (_, parents) = path.split_last().unwrap_or((&"", &[]));
    let nearest = nearest.map(|nearest| [parents, &[nearest]].concat().join("."));
    ConfigError::UnknownKey { origin, key: path.join("."), nearest }
}

/// The line, from 1, where `key` stands as a key.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'']);
        let rest = line.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'']));
        rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    text.lines().position(is_key).map(|index| index + 1)
}
