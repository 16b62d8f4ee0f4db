//! The declaration of a configuration and what it says about each of its fields.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ConfigError;

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
    /// Several values.
    List(&'static Kind),
    /// A value or `none`.
    Optional(&'static Kind),
    /// Fields of their own, `section.field`.
    Section(&'static [Field]),
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

/// A struct declared by [`config!`](crate::config!).
pub trait Config: Default + Serialize + DeserializeOwned + Validate {
    /// Its fields, in the order of the declaration.
    const FIELDS: &'static [Field];
}

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
        &["run", "machine"]
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

    /// Fields that mean nothing beside the values of others, and why.
    fn idle_fields(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

/// Declares a configuration: a struct with serde, `Default` and [`Config`].
///
/// Fields stand in groups, which are headings of the help; the doc comment of a field is its help.
/// A field without a default is required. The struct needs an `impl Validate`.
#[macro_export]
macro_rules! config {
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
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($($(#[doc = $help])+ pub $field: $type,)+)+
        }

        impl ::std::default::Default for $name {
            fn default() -> Self {
                Self { $($($field: $crate::config!(@default $($default)?),)+)+ }
            }
        }

        impl $crate::Config for $name {
            const FIELDS: &'static [$crate::Field] = &[$($($crate::Field {
                name: stringify!($field),
                group: $group,
                kind: <$type as $crate::Setting>::KIND,
                required: $crate::config!(@required $($default)?),
                help: concat!($($help),+),
            },)+)+];
        }

        impl $crate::Setting for $name {
            const KIND: $crate::Kind =
                $crate::Kind::Section(<Self as $crate::Config>::FIELDS);
        }
    };
    (@default) => { ::std::default::Default::default() };
    (@default $default:expr) => { $default };
    (@required) => { true };
    (@required $default:expr) => { false };
}

/// Declares an enum of words that a field may hold.
macro_rules! choices {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $crate::Setting for $name {
            const KIND: $crate::Kind = $crate::Kind::Choice(&[$($word),+]);
        }
    };
}

pub(crate) use choices;
