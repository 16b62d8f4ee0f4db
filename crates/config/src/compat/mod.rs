//! Flags of VLM-R1's run scripts, of the trainers under them and of launchers, that have no field here.

use std::sync::LazyLock;

mod table;

pub use table::VLM_R1;
use table::{LAUNCHERS, OF_GRPO, OF_SFT};

/// A flag of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompatFlag {
    /// Its name there.
    pub name: &'static str,
    /// What it does here.
    pub effect: CompatEffect,
}

/// What such a flag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompatEffect {
    /// Nothing, whatever its value, and why.
    None(&'static str),
    /// Nothing with these values (lower case; numbers by their value); any other asks for what is not built, and what
    /// to do.
    Only(&'static [&'static str], &'static str),
    /// Nothing with these values (lower case), which ask for what is chosen here, and how; any other is refused with the
    /// same words.
    OneOf(&'static [&'static str], &'static str),
    /// What this field does.
    Alias(&'static str),
}

impl CompatFlag {
    /// Why `value` changes nothing.
    ///
    /// # Errors
    /// Where it asks for what is not built: what to do instead.
    pub(super) fn why_inactive(&self, value: &str) -> Result<&'static str, &'static str> {
        match self.effect {
            CompatEffect::None(why) => Ok(why),
            CompatEffect::Alias(_) => Ok("it is another name"),
            CompatEffect::OneOf(accepted, why) => {
                let value = value.trim().to_ascii_lowercase();
                accepted.contains(&value.as_str()).then_some(why).ok_or(why)
            }
            CompatEffect::Only(accepted, reason) => {
                let value = value.trim().to_ascii_lowercase();
                let number = value.parse::<f64>().ok();
                let is_same = |word: &&str| {
                    **word == value || number.is_some() && word.parse::<f64>().ok() == number
                };
                match accepted.iter().any(is_same) {
                    true => Ok("this is what happens anyway"),
                    false => Err(reason),
                }
            }
        }
    }
}

pub(super) const fn none(name: &'static str, why: &'static str) -> CompatFlag {
    CompatFlag { name, effect: CompatEffect::None(why) }
}

pub(super) const fn alias(name: &'static str, field: &'static str) -> CompatFlag {
    CompatFlag { name, effect: CompatEffect::Alias(field) }
}

pub(super) const fn only(
    name: &'static str,
    accepted: &'static [&'static str],
    reason: &'static str,
) -> CompatFlag {
    CompatFlag { name, effect: CompatEffect::Only(accepted, reason) }
}

pub(super) const fn one_of(
    name: &'static str,
    accepted: &'static [&'static str],
    why: &'static str,
) -> CompatFlag {
    CompatFlag { name, effect: CompatEffect::OneOf(accepted, why) }
}

/// Flags that `grpo` takes for the sake of other programs' scripts.
pub fn compat_flags_of_grpo() -> &'static [CompatFlag] {
    static ALL: LazyLock<Vec<CompatFlag>> = LazyLock::new(|| [VLM_R1, OF_GRPO].concat());
    &ALL
}

/// Flags that `sft` takes for the sake of other programs' scripts.
pub fn compat_flags_of_sft() -> &'static [CompatFlag] {
    static ALL: LazyLock<Vec<CompatFlag>> = LazyLock::new(|| [VLM_R1, OF_SFT].concat());
    &ALL
}

/// Whether a flag is one of a launcher, which starts several processes.
pub fn is_of_launcher(name: &str) -> bool {
    LAUNCHERS.contains(&name)
}
