//! The declaration of a configuration and what it says about each of its fields.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ConfigError, DeepSpeedFile};

/// What values a field takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `true` or `false`; a flag without a value is `true`.
    Bool,
    /// The same, or a text.
    BoolOrText,
    /// A whole number from 0.
    UnsignedInt,
    /// A whole number.
    Int,
    /// A finite number.
    Float,
    /// Any text.
    Text,
    /// Texts joined by `:`; in YAML also a list.
    ColonList,
    /// Numbers by these names: a mapping, or JSON.
    Numbers(&'static [&'static str]),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of these words; `true` and `false` stand for two of them.
    ChoiceOrBool {
        /// The words.
        words: &'static [&'static str],
        /// Index of that which `true` means.
        on: usize,
        /// Index of that which `false` means.
        off: usize,
    },
    /// Several values.
    List(&'static Kind),
    /// A value or `none`.
    Optional(&'static Kind),
}

/// One field of a configuration: a flag, a YAML key, a line of help.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field {
    /// Name of the field, of its flag and of its key.
    pub name: &'static str,
    /// Heading under which help shows it.
    pub group: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it has no default.
    pub required: bool,
    /// What it does.
    pub help: &'static str,
}

/// A type that a field can have.
pub trait Setting {
    /// What values it takes.
    const KIND: Kind;
}

macro_rules! settings {
    ($($type:ty: $kind:ident,)+) => { $(impl Setting for $type { const KIND: Kind = Kind::$kind; })+ };
}

settings! {
    bool: Bool,
    u64: UnsignedInt,
    usize: UnsignedInt,
    i64: Int,
    f64: Float,
    String: Text,
    PathBuf: Text,
    ColonList: ColonList,
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = Kind::Optional(&T::KIND);
}

impl<T: Setting> Setting for Vec<T> {
    const KIND: Kind = Kind::List(&T::KIND);
}

/// Texts joined by `:`, as VLM-R1 takes lists of files and folders.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ColonList(pub String);

impl std::ops::Deref for ColonList {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Settings that belong together: a struct declared by [`section!`](crate::section!), or sections put together by
/// [`command!`](crate::command!).
pub trait Section: Default + Serialize + DeserializeOwned {
    /// Its fields, in the order of the declaration.
    const FIELDS: &'static [Field];
}

/// What a command takes.
pub trait Config: Section + Validate {}

impl<T: Section + Validate> Config for T {}

/// What a configuration demands beyond the types of its fields.
pub trait Validate {
    /// Looks at the values together.
    ///
    /// # Errors
    /// On a value out of its range, or two that exclude each other.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Groups whose fields say where and how fast a run happens, not what it computes.
    fn free_groups() -> &'static [&'static str] {
        &["run", "machine", "ranks"]
    }

    /// Fields of other groups of which the same is true: how rewards are asked, not what they say.
    fn free_fields() -> &'static [&'static str] {
        &[
            "reward_workers",
            "reward_timeout_secs",
            "reward_retry_secs",
            "reward_api_key_file",
            "reward_python",
            "judge_concurrency",
            "judge_max_failed",
            "judge_cache",
        ]
    }

    /// The value of `--deepspeed`, where there is one.
    fn deepspeed(&self) -> Option<&str> {
        None
    }

    /// Takes over what a launcher's ranks and DeepSpeed's configuration say. Gives the keys of this that have no effect.
    ///
    /// # Errors
    /// On what that cannot say beside these values, and values that make no sense on so many ranks.
    fn fit_to_ranks(
        &mut self,
        _ranks: usize,
        _file: Option<&DeepSpeedFile>,
    ) -> Result<Vec<String>, ConfigError> {
        Ok(Vec::new())
    }

    /// Fields that have no effect beside the values of others, and why.
    fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

/// Declares a section of settings: a struct with serde, `Default` and [`Section`].
///
/// Fields stand in groups, which are headings of the help; the doc comment of a field is its help. A field without a
/// default is required.
#[macro_export]
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($group:literal {
                $($(#[doc = $help:literal])+ $field:ident: $type:ty $(= $default:expr)?,)+
            })+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        pub struct $name {
            $($($(#[doc = $help])+ pub $field: $type,)+)+
        }

        impl ::std::default::Default for $name {
            fn default() -> Self {
                Self { $($($field: $crate::section!(@default $($default)?),)+)+ }
            }
        }

        impl $crate::Section for $name {
            const FIELDS: &'static [$crate::Field] = &[$($($crate::Field {
                name: stringify!($field),
                group: $group,
                kind: <$type as $crate::Setting>::KIND,
                required: $crate::section!(@required $($default)?),
                help: concat!($($help),+),
            },)+)+];
        }
    };
    (@default) => { ::std::default::Default::default() };
    (@default $default:expr) => { $default };
    (@required) => { true };
    (@required $default:expr) => { false };
}

/// Declares what a command takes: sections, whose fields are the command's own. Where a command has another default than
/// its section, `with` says so, with the help that goes with it.
#[macro_export]
macro_rules! command {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($section:ident: $type:ty,)+ }
        $(with { $($of:ident.$field:ident = $default:expr => $help:literal,)+ })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        pub struct $name {
            $(#[doc = concat!("See [`", stringify!($type), "`].")] #[serde(flatten)] pub $section: $type,)+
        }

        impl ::std::default::Default for $name {
            fn default() -> Self {
                #[allow(unused_mut)]
                let mut config = Self { $($section: ::std::default::Default::default(),)+ };
                $($(config.$of.$field = $default;)+)?
                config
            }
        }

        impl $name {
            /// The same with what `change` alters.
            #[must_use]
            pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
                change(&mut self);
                self
            }
        }

        impl $crate::Section for $name {
            const FIELDS: &'static [$crate::Field] = {
                const PARTS: &[&[$crate::Field]] = &[$(<$type as $crate::Section>::FIELDS,)+];
                const HELP: &[(&str, &str)] = &[$($((stringify!($field), $help),)+)?];
                &$crate::joined::<{ $crate::count(PARTS) }>(PARTS, HELP)
            };
        }
    };
}

/// Fields of all `parts`.
pub const fn count(parts: &[&[Field]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

/// The fields of all `parts`, with the help of those that `help` names.
pub const fn joined<const N: usize>(
    parts: &[&[Field]],
    help: &[(&'static str, &'static str)],
) -> [Field; N] {
    let mut fields = [parts[0][0]; N];
    let (mut next, mut part) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            fields[next] = parts[part][index];
            let mut told = 0;
            while told < help.len() {
                if is_same(help[told].0, fields[next].name) {
                    fields[next].help = help[told].1;
                }
                told += 1;
            }
            (next, index) = (next + 1, index + 1);
        }
        part += 1;
    }
    fields
}

const fn is_same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut index = 0;
    while index < left.len() && index < right.len() && left[index] == right[index] {
        index += 1;
    }
    index == left.len() && index == right.len()
}

/// Declares an enum of words that a field may hold.
macro_rules! choices {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+
        }
        $(also true => $on:ident, false => $off:ident)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// As flags and files have it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::Setting for $name {
            const KIND: $crate::Kind = choices!(@kind [$($word),+] $name $($on $off)?);
        }
    };
    (@kind $words:tt $name:ident) => { $crate::Kind::Choice(&$words) };
    (@kind $words:tt $name:ident $on:ident $off:ident) => {
        $crate::Kind::ChoiceOrBool { words: &$words, on: $name::$on as usize, off: $name::$off as usize }
    };
}

pub(crate) use choices;
