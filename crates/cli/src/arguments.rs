//! The command line: one clap command for each [`Command`], its flags taken from the fields of
//! its configuration. What the values mean is left to [`config`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Styles;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches};
use config::{self, CompatFlag, Field, Kind, Layers};
use serde_json::Value;

use crate::command::{Command, Entry, GROUPS};

/// What `launch` starts.
const LAUNCHED: &str = "launched";

const AFTER_HELP: &str = "Flags may be written with `-` for `_`. Every flag can stand in the YAML \
                          file of --config; flags override the file, --set overrides flags.";

/// What the user asked for.
#[derive(Debug)]
pub struct Invocation {
    /// The command.
    pub command: Command,
    /// The file of `--config`.
    pub config: Option<PathBuf>,
    /// What stands behind the flags of `launch`: another command line without the program's name.
    pub launched: Vec<OsString>,
    flags: Vec<(String, Vec<String>)>,
    sets: Vec<String>,
    foreign: &'static [CompatFlag],
}

impl Invocation {
    /// The layers over the defaults; `file` is the text of `--config`.
    pub fn layers<'a>(&'a self, file: Option<&'a str>) -> Layers<'a> {
        Layers {
            file: self.config.as_deref().zip(file),
            flags: &self.flags,
            sets: &self.sets,
            compat: self.foreign,
        }
    }
}

/// A command line that means nothing, or asks for help.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A flag that the command does not have.
    #[error("unknown flag `{flag}`\nhint: {}", hint_of(command, *nearest))]
    UnknownFlag {
        /// The flag as given.
        flag: String,
        /// The command.
        command: &'static str,
        /// The flag of the command that may have been meant.
        nearest: Option<&'static str>,
    },
    /// A flag of a program that starts several processes.
    #[error(
        "`{flag}` is a flag of a launcher, and `{command}` is no command with ranks\n\
         hint: `vlm-r1 launch --nproc_per_node 8 -- grpo ...` starts ranks; `grpo`, `sft` and `eval` have them"
    )]
    Launcher {
        /// The flag as given.
        flag: String,
        /// The command.
        command: &'static str,
    },
    /// A command that does not exist.
    #[error("unknown command `{command}`\nhint: {}", hint_of_command(*nearest, beside))]
    UnknownCommand {
        /// The word as given.
        command: String,
        /// The command that may have been meant.
        nearest: Option<&'static str>,
        /// All that could stand there.
        beside: Vec<&'static str>,
    },
    /// Anything else, in clap's words; help and version are no errors.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// One of several processes, of a command that has no ranks.
    #[error("WORLD_SIZE is `{got}`, and `{command}` is done by one process\nhint: {hint}")]
    OneProcess {
        /// The command.
        command: &'static str,
        /// The value of the variable.
        got: String,
        /// What to do.
        hint: &'static str,
    },
    /// A variable of a launcher that means nothing.
    #[error(
        "{name} is `{got}`, expected {expected}\nhint: torchrun, srun and `vlm-r1 launch` set it"
    )]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        got: String,
        /// What it could be.
        expected: &'static str,
    },
}

fn hint_of(command: &str, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `--{nearest}`?"),
        None => format!("`vlm-r1 {command} --help` lists the flags"),
    }
}

fn hint_of_command(nearest: Option<&str>, beside: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("commands are `{}`", beside.join("`, `")),
    }
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// Where it means nothing, and where it asks for help or the version.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let given: Vec<OsString> = arguments.collect();
    let arguments: Vec<OsString> = given.iter().cloned().map(with_canonical_name).collect();
    let mut command = clap_command();
    let matches =
        command.try_get_matches_from_mut(&arguments).map_err(|error| explain(error, &arguments))?;
    let Some((name, matches)) = innermost(&matches) else {
        return Err(command.error(ErrorKind::MissingSubcommand, "no command").into());
    };
    let Some(named) = Command::named(&name) else {
        return Err(command.error(ErrorKind::InvalidSubcommand, "no such command").into());
    };
    let entry = named.entry();
    let names = entry.fields.iter().map(|field| field.name);
    let foreign = (entry.foreign)().iter().map(|foreign| foreign.name);
    let launched = match named {
        Command::Launch => matches.get_many::<OsString>(LAUNCHED).unwrap_or_default().len(),
        _ => 0,
    };
    Ok(Invocation {
        command: named,
        // As they were written.
        launched: given[given.len() - launched..].to_vec(),
        config: matches.get_one("config").cloned(),
        flags: names.chain(foreign).filter_map(|name| flag(matches, name)).collect(),
        sets: matches.get_many("set").unwrap_or_default().cloned().collect(),
        foreign: (entry.foreign)(),
    })
}

/// The name of the command that was given, and what was given to it.
fn innermost(matches: &ArgMatches) -> Option<(String, &ArgMatches)> {
    let (name, matches) = matches.subcommand()?;
    match innermost(matches) {
        Some((inner, matches)) => Some((format!("{name} {inner}"), matches)),
        None => Some((name.to_owned(), matches)),
    }
}

/// The flag and the values behind it, where it was given.
fn flag(matches: &ArgMatches, name: &str) -> Option<(String, Vec<String>)> {
    matches.value_source(name)?;
    let values = matches.get_many::<String>(name).unwrap_or_default();
    Some((name.to_owned(), values.cloned().collect()))
}

/// `--data-file-paths=a` to `--data_file_paths=a`.
fn with_canonical_name(argument: OsString) -> OsString {
    let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else {
        return argument;
    };
    match flag.split_once('=') {
        Some((name, value)) => format!("--{}={value}", config::canonical(name)).into(),
        None => format!("--{}", config::canonical(flag)).into(),
    }
}

fn clap_command() -> clap::Command {
    let commands = Command::ALL.iter().map(|command| {
        let entry = command.entry();
        let defaults = (entry.defaults)();
        let fields = entry.fields.iter().map(|field| argument(field, &defaults[field.name]));
        let foreign = (entry.foreign)().iter().map(|foreign| {
            Arg::new(foreign.name)
                .long(foreign.name)
                .num_args(0..)
                .action(ArgAction::Set)
                .hide(true)
        });
        let launched = (*command == Command::Launch).then(launched_argument);
        let (group, name) = match entry.name.split_once(' ') {
            Some((group, name)) => (Some(group), name),
            None => (None, entry.name),
        };
        let command = clap::Command::new(name)
            .about(entry.about)
            .after_help(AFTER_HELP)
            .args_override_self(true)
            .args(layer_arguments())
            .args(fields)
            .args(foreign)
            .args(launched);
        (group, command)
    });
    let (grouped, alone): (Vec<_>, Vec<_>) = commands.partition(|(group, _)| group.is_some());
    let groups = GROUPS.map(|(name, about)| {
        let inside = grouped.iter().filter(|(group, _)| *group == Some(name));
        clap::Command::new(name)
            .about(about)
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommands(inside.map(|(_, command)| command.clone()))
    });
    clap::Command::new("vlm-r1")
        .about("Trains vision-language models by reinforcement learning with rewards by rule")
        .version(env!("CARGO_PKG_VERSION"))
        .styles(Styles::plain())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(alone.into_iter().map(|(_, command)| command))
        .subcommands(groups)
}

fn launched_argument() -> Arg {
    Arg::new(LAUNCHED)
        .value_name("COMMAND")
        .value_parser(clap::value_parser!(OsString))
        .num_args(1..)
        .required(true)
        .trailing_var_arg(true)
        .help("What the ranks do, with its flags: `-- grpo --config run.yaml`")
}

fn layer_arguments() -> [Arg; 2] {
    [
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help_heading("Layers")
            .help("YAML file of settings"),
        Arg::new("set")
            .long("set")
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help_heading("Layers")
            .help("Set a field, over file and flags"),
    ]
}

fn argument(field: &Field, default: &Value) -> Arg {
    let kind = match field.kind {
        Kind::Optional(inner) => *inner,
        kind => kind,
    };
    let arg = Arg::new(field.name)
        .long(field.name)
        .action(ArgAction::Set)
        .help(help(field, default))
        .help_heading(heading(field.group))
        .value_name(value_name(&kind));
    match kind {
        Kind::Bool | Kind::BoolOrText | Kind::ChoiceOrBool { .. } => arg.num_args(0..=1),
        Kind::List(_) => arg.num_args(1..).allow_negative_numbers(true),
        Kind::Int | Kind::UnsignedInt | Kind::Float => arg.allow_negative_numbers(true),
        _ => arg,
    }
}

fn help(field: &Field, default: &Value) -> String {
    let text = field.help.trim().trim_end_matches('.');
    match (field.required, shown(default)) {
        (true, _) => format!("{text} [required]"),
        (false, Some(default)) => format!("{text} [default: {default}]"),
        (false, None) => text.to_owned(),
    }
}

/// A default as a user would write it.
fn shown(default: &Value) -> Option<String> {
    match default {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(values) if values.is_empty() => None,
        Value::Array(values) => Some(values.iter().filter_map(shown).collect::<Vec<_>>().join(" ")),
        value => Some(value.to_string()),
    }
}

fn heading(group: &str) -> String {
    let mut letters = group.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn value_name(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "BOOL".into(),
        Kind::BoolOrText => "BOOL|PATH".into(),
        Kind::Numbers(_) => "JSON".into(),
        Kind::UnsignedInt | Kind::Int => "N".into(),
        Kind::Float => "X".into(),
        Kind::Text => "TEXT".into(),
        Kind::ColonList => "A:B".into(),
        Kind::Choice(words) | Kind::ChoiceOrBool { words, .. } => words.join("|"),
        Kind::List(item) | Kind::Optional(item) => value_name(item),
    }
}

/// Says what is wrong in the words of this program where clap's do not name the nearest.
fn explain(error: clap::Error, arguments: &[OsString]) -> UsageError {
    let invalid = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let entry = entry_of(arguments);
            match (invalid(ContextKind::InvalidArg), entry) {
                (Some(flag), Some(entry)) if flag.starts_with("--") => {
                    let names = entry
                        .fields
                        .iter()
                        .map(|field| field.name)
                        .chain(["config", "set", "help"]);
                    let name = flag.trim_start_matches('-');
                    if config::is_of_launcher(name) {
                        return UsageError::Launcher { flag, command: entry.name };
                    }
                    // Two names for the same, as trainers and the other commands have it.
                    let other = match name {
                        "model_name_or_path" => "model",
                        "model" => "model_name_or_path",
                        name => name,
                    };
                    let nearest = names.clone().find(|known| *known == other);
                    UsageError::UnknownFlag {
                        nearest: nearest.or_else(|| config::nearest(name, names)),
                        command: entry.name,
                        flag,
                    }
                }
                _ => error.into(),
            }
        }
        ErrorKind::InvalidSubcommand => match invalid(ContextKind::InvalidSubcommand) {
            Some(command) => {
                let beside = names_beside(arguments);
                UsageError::UnknownCommand {
                    nearest: config::nearest(&command, beside.iter().copied()),
                    command,
                    beside,
                }
            }
            None => error.into(),
        },
        _ => error.into(),
    }
}

/// The word at `index` of the command line, counted after the program's name.
fn word(arguments: &[OsString], index: usize) -> &str {
    let word = arguments.get(index + 1).and_then(|word| word.to_str());
    word.unwrap_or_default()
}

/// The command that a command line begins with.
fn entry_of(arguments: &[OsString]) -> Option<Entry> {
    let (first, second) = (word(arguments, 0), word(arguments, 1));
    let command = Command::named(first).or_else(|| Command::named(&format!("{first} {second}")));
    command.map(Command::entry)
}

/// The words that could stand where an unknown command does.
fn names_beside(arguments: &[OsString]) -> Vec<&'static str> {
    let group = GROUPS.iter().find(|(name, _)| *name == word(arguments, 0));
    let names = Command::ALL.iter().map(|command| command.name());
    match group {
        Some((group, _)) => {
            names.filter_map(|name| name.strip_prefix(group)?.strip_prefix(' ')).collect()
        }
        None => {
            let mut words: Vec<&str> =
                names.map(|name| name.split(' ').next().unwrap_or(name)).collect();
            words.dedup();
            words
        }
    }
}
