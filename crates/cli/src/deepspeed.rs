//! `--deepspeed FILE`: memory is not sharded here, but what the file says of loss and optimizer would alter the run, and
//! is named.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Keys that would alter what a run computes, with what does so here.
const ALTERING: [(&str, &str); 8] = [
    ("gradient_clipping", "`--max_grad_norm`"),
    ("train_micro_batch_size_per_gpu", "`--per_device_train_batch_size`"),
    ("gradient_accumulation_steps", "`--gradient_accumulation_steps`"),
    ("train_batch_size", "`--per_device_train_batch_size` and `--gradient_accumulation_steps`"),
    ("optimizer", "`--optim`, `--learning_rate`, `--weight_decay`"),
    ("scheduler", "`--lr_scheduler_type`, `--warmup_steps`"),
    ("fp16", "half precision is `--bf16 true`"),
    ("bf16", "`--bf16`"),
];

/// Names what `given`, a file or its JSON, says beyond the sharding.
///
/// # Errors
/// A file that cannot be read, or is not JSON.
pub fn warn_of_other_settings(given: &str) -> Result<()> {
    let given = given.trim();
    if ["", "none", "null", "false", "true"].contains(&given.to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    let (place, text) = match given.starts_with('{') {
        true => ("`deepspeed`".to_owned(), given.to_owned()),
        false => {
            let text = fs::read_to_string(given);
            (given.to_owned(), text.with_context(|| format!("`deepspeed`: {given}"))?)
        }
    };
    let config: Value =
        serde_json::from_str(&text).with_context(|| format!("`deepspeed`: {place}: not JSON"))?;
    if !config.is_object() {
        bail!("`deepspeed`: {place}: expected settings in braces");
    }
    for (key, instead) in ALTERING {
        if config.get(key).is_some_and(asks_for_something) {
            base::say!("warning: {place}: `{key}` has no effect here: {instead}");
        }
    }
    Ok(())
}

/// Whether a value asks for anything: `auto` takes it from the flags.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => text != "auto",
        Value::Object(fields) => match fields.get("enabled") {
            Some(enabled) => asks_for_something(enabled),
            None => fields.values().any(asks_for_something),
        },
        _ => true,
    }
}
