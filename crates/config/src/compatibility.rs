//! Flags of VLM-R1's run scripts, of the trainers under them and of launchers, that have no field here.

use std::sync::LazyLock;

use super::foreign_flags::{LAUNCHERS, OF_GRPO, OF_SFT, VLM_R1};

/// A flag of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its name there.
    pub name: &'static str,
    /// What it does here.
    pub effect: ForeignEffect,
}

/// What a foreign flag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignEffect {
    /// Nothing, whatever its value, and why.
    None(&'static str),
    /// Nothing with these values (lower case; numbers by their value); any other asks for what is not built, and what
    /// to do.
    Only(&'static [&'static str], &'static str),
}

impl Foreign {
    /// Why `value` changes nothing.
    ///
    /// # Errors
    /// Where it asks for what is not built: what to do instead.
    pub(super) fn why_idle(&self, value: &str) -> Result<&'static str, &'static str> {
        match self.effect {
            ForeignEffect::None(why) => Ok(why),
            ForeignEffect::Only(accepted, reason) => {
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

pub(super) const fn none(name: &'static str, why: &'static str) -> Foreign {
    Foreign { name, effect: ForeignEffect::None(why) }
}

pub(super) const fn only(
    name: &'static str,
    accepted: &'static [&'static str],
    reason: &'static str,
) -> Foreign {
    Foreign { name, effect: ForeignEffect::Only(accepted, reason) }
}

/// Flags that `grpo` takes for the sake of other programs' scripts.
pub fn foreign_to_grpo() -> &'static [Foreign] {
    static ALL: LazyLock<Vec<Foreign>> = LazyLock::new(|| [VLM_R1, OF_GRPO].concat());
    &ALL
}

/// Flags that `sft` takes for the sake of other programs' scripts.
pub fn foreign_to_sft() -> &'static [Foreign] {
    static ALL: LazyLock<Vec<Foreign>> = LazyLock::new(|| [VLM_R1, OF_SFT].concat());
    &ALL
}

/// Whether a flag is one of a launcher, which starts several processes.
pub fn is_of_launcher(name: &str) -> bool {
    LAUNCHERS.contains(&name)
}
