//! What several configurations demand of their values.

use crate::ConfigError;

pub(crate) const POSITIVE: &str = "at least 1";
pub(crate) const NOT_NEGATIVE: &str = "at least 0";
pub(crate) const FRACTION: &str = "at least 0 and below 1";

/// One demand on one value.
pub(crate) fn demand(
    holds: bool,
    key: &'static str,
    got: impl ToString,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { key, got: got.to_string(), expected })
    }
}

/// Tasks that mean something by their name; any other is the user's own.
const TASKS: [&str; 6] = ["default", "rec", "ic", "odLength", "sft_rec", "none"];

/// A task that is one of ours but for case, marks or a slip would be taken for another, without a word.
pub(crate) fn validate_task_type(task: Option<&str>) -> Result<(), ConfigError> {
    let Some(task) = task else { return Ok(()) };
    let plain = |text: &str| -> String {
        let letters = text.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let given = plain(task);
    let is_meant = |name: &&&str| {
        // Of short names a slip is as likely a name of one's own.
        let is_slip = name.len() > 4 && strsim::osa_distance(&given, &plain(name)) == 1;
        plain(name) == given || is_slip
    };
    match TASKS.iter().find(is_meant) {
        Some(name) if *name != task => demand(false, "task_type", task, name),
        _ => Ok(()),
    }
}

/// The ranges of the reward `overlong`.
pub(crate) fn validate_overlong(
    max_tokens: usize,
    cache_tokens: Option<usize>,
) -> Result<(), ConfigError> {
    demand(max_tokens > 0, "overlong_max_tokens", 0, POSITIVE)?;
    let cache_tokens = cache_tokens.unwrap_or_default();
    demand(
        cache_tokens <= max_tokens,
        "overlong_cache_tokens",
        cache_tokens,
        "at most `overlong_max_tokens`",
    )
}
