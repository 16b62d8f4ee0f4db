//! The least and the most that a number may be, by the name of its field, whatever command has it: beyond it no run
//! makes sense, and some would take all memory before they fail.

use serde_json::{Map, Value};

use super::{ConfigError, Field, Kind};

/// What a field may hold.
struct Bound {
    least: f64,
    most: f64,
    why: &'static str,
}

/// 2^53: from here on not every whole number is one of JSON.
const EXACT: f64 = 9_007_199_254_740_992.0;
const THREADS: (f64, &str) = (1024.0, "more threads than a machine has only wait for one another");
const TOKENS: (f64, &str) = (1_048_576.0, "no model has that many positions");
const ANSWERS: (f64, &str) = (65_536.0, "answers to a question are in memory together");
const SIDE_BY_SIDE: (f64, &str) = (65_536.0, "each of them takes memory at the same time");
const PIXELS: (f64, &str) = (67_108_864.0, "every image would be enlarged to that size in memory");
const STEPS: (f64, &str) = (1e9, "no run ends after that many steps");
const SECS: (f64, &str) = (1e8, "three years are as good as no limit");
const RANKS: (f64, &str) = (65_536.0, "no run has that many");
const BATCH: (f64, &str) = (65_536.0, "the rows of a batch are in memory together");

/// Whole numbers with a bound of their own.
const COUNTS: [(&str, (f64, &str)); 36] = [
    ("num_threads", THREADS),
    ("dataloader_num_workers", THREADS),
    ("reward_workers", THREADS),
    ("judge_concurrency", THREADS),
    ("num_generations", ANSWERS),
    ("num_samples", ANSWERS),
    ("max_concurrent_completions", SIDE_BY_SIDE),
    ("max_completion_length", TOKENS),
    ("min_completion_length", TOKENS),
    ("max_new_tokens", TOKENS),
    ("overlong_max_tokens", TOKENS),
    ("overlong_cache_tokens", TOKENS),
    ("min_pixels", PIXELS),
    ("max_steps", STEPS),
    ("warmup_steps", STEPS),
    ("per_device_train_batch_size", BATCH),
    ("gradient_accumulation_steps", (65_536.0, "a step of that many micro-batches does not end")),
    ("batch_size", BATCH),
    (
        "num_iterations",
        (1024.0, "so many updates by one batch leave nothing of the policy that sampled it"),
    ),
    ("steps_per_generation", (65_536.0, "a step of that many micro-batches does not end")),
    ("max_resample_times", (1024.0, "a step that draws so often does not end")),
    ("ref_model_sync_steps", STEPS),
    ("lora_r", (4096.0, "an adapter of a higher rank is as large as the weights under it")),
    ("patch_size", (4096.0, "no model has such patches")),
    ("ddp_timeout", SECS),
    ("ranks", RANKS),
    ("nproc_per_node", THREADS),
    ("nnodes", RANKS),
    ("master_port", (65_535.0, "there are no more ports")),
    ("html_rows", (100_000.0, "no browser shows more")),
    ("max_boxes_per_category", (1e9, "no image holds more")),
    ("limit", (1e12, "no file has more rows")),
    ("max_prompt_length", (1e12, "nothing is refused by it")),
    ("max_seq_length", (1e12, "nothing is refused by it")),
    ("max_tokens_per_microbatch", (1e12, "nothing is cut by it")),
    ("max_pixels", (1e12, "nothing is shrunk by it")),
];

/// Numbers with a fraction.
const AMOUNTS: [(&str, f64, f64, &str); 20] = [
    (
        "temperature",
        1e-6,
        1e6,
        "smaller and larger ones leave no distribution; 0 is for greedy answers, where they are taken",
    ),
    ("repetition_penalty", 1e-6, 1e6, "logits are divided by it"),
    ("learning_rate", 0.0, 100.0, "no weights outlive it"),
    ("weight_decay", 0.0, 1e6, "no weights outlive it"),
    ("adam_epsilon", 0.0, 1e6, "the update is divided by it"),
    ("lora_alpha", 0.0, 1e9, "the adapters' update is multiplied by it"),
    ("beta", 0.0, 1e6, "the loss is multiplied by it"),
    ("epsilon", 0.0, 1e9, "nothing is clipped any more"),
    ("epsilon_high", 0.0, 1e9, "nothing is clipped any more"),
    ("delta", 0.0, 1e9, "nothing is clipped any more"),
    ("entropy_coef", 0.0, 1e6, "the loss is multiplied by it"),
    ("sapo_temperature_neg", 0.0, 1e6, "the ratio is multiplied by it"),
    ("sapo_temperature_pos", 0.0, 1e6, "the ratio is multiplied by it"),
    ("max_grad_norm", 0.0, 1e30, "nothing is clipped any more"),
    ("num_train_epochs", 0.0, 1e6, "no run ends after that many"),
    ("reward_timeout_secs", 0.0, SECS.0, SECS.1),
    ("reward_retry_secs", 0.0, SECS.0, SECS.1),
    ("cost_per_hour", 0.0, 1e12, "no machine costs that much"),
    ("correct_above", -1e9, 1e9, "no score is there"),
    ("reward_weights", -1e9, 1e9, "rewards are multiplied by it"),
];

/// Fields whose whole numbers may be any.
const ANY: [&str; 2] = ["seed", "shuffle_seed"];

/// What the field may hold; of some with no bound of their own every number that JSON tells from its neighbours.
fn bound_of(name: &str, kind: &Kind) -> Option<Bound> {
    let with = |least, most, why| Some(Bound { least, most, why });
    let amount = AMOUNTS.iter().find(|(field, ..)| *field == name);
    if let Some(&(_, least, most, why)) = amount {
        return with(least, most, why);
    }
    match kind {
        Kind::UnsignedInt | Kind::Int => {
            let count = COUNTS.iter().find(|(field, _)| *field == name);
            let &(_, (most, why)) =
                count.unwrap_or(&("", (EXACT, "larger whole numbers are not exact in JSON")));
            with(f64::NEG_INFINITY, most, why)
        }
        Kind::Float => with(-1e30, 1e30, "it is computed with in 32 bits"),
        _ => None,
    }
}

/// Refuses numbers beyond their bounds.
///
/// # Errors
/// The first of them, by name, with its bound and the reason.
pub(crate) fn check(fields: &[Field], values: &Map<String, Value>) -> Result<(), ConfigError> {
    for field in fields {
        let Some(value) = values.get(field.name) else {
            continue;
        };
        check_value(field.name, &field.kind, value)?;
    }
    Ok(())
}

fn check_value(name: &'static str, kind: &Kind, value: &Value) -> Result<(), ConfigError> {
    match (kind, value) {
        (Kind::Optional(inner), value) => check_value(name, inner, value),
        (Kind::List(item), Value::Array(values)) => {
            let mut values = values.iter();
            values.try_for_each(|value| check_value(name, item, value))
        }
        (kind, Value::Number(number)) if !ANY.contains(&name) => {
            let (Some(bound), Some(got)) = (bound_of(name, kind), number.as_f64()) else {
                return Ok(());
            };
            // What 0 and numbers below it mean is the field's own affair.
            let is_small = got < bound.least && (got > 0.0 || bound.least < 0.0);
            if !is_small && got <= bound.most {
                return Ok(());
            }
            let (word, limit) = match is_small {
                true => ("least", bound.least),
                false => ("most", bound.most),
            };
            Err(ConfigError::BeyondBound {
                key: name,
                got: number.to_string(),
                expected: format!("at {word} {limit}"),
                why: bound.why,
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DataCheckConfig, DataConvertConfig, DemoConfig, EvalConfig, GenerateConfig, GrpoConfig,
        LaunchConfig, LogprobsConfig, MergeConfig, PlanConfig, RewardConfig, Section, SftConfig,
    };

    fn commands() -> [&'static [Field]; 12] {
        [
            GrpoConfig::FIELDS,
            SftConfig::FIELDS,
            PlanConfig::FIELDS,
            EvalConfig::FIELDS,
            GenerateConfig::FIELDS,
            LaunchConfig::FIELDS,
            LogprobsConfig::FIELDS,
            RewardConfig::FIELDS,
            MergeConfig::FIELDS,
            DemoConfig::FIELDS,
            DataCheckConfig::FIELDS,
            DataConvertConfig::FIELDS,
        ]
    }

    fn all() -> Vec<Field> {
        commands().concat()
    }

    /// Sections are flattened: of two fields with one name, one would be lost without a word.
    #[test]
    fn no_command_has_a_name_twice() {
        for fields in commands() {
            let mut names: Vec<&str> = fields.iter().map(|field| field.name).collect();
            names.sort_unstable();
            let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
            assert_eq!(twice, None);
        }
    }

    #[test]
    fn every_bound_is_one_of_a_field() {
        let fields = all();
        let has = |name: &str| fields.iter().any(|field| field.name == name);
        for (name, _) in COUNTS {
            assert!(has(name), "{name}");
        }
        for (name, ..) in AMOUNTS {
            assert!(has(name), "{name}");
        }
        for name in ANY {
            assert!(has(name), "{name}");
        }
    }

    #[test]
    fn no_number_is_without_a_bound() {
        for field in all() {
            let mut kind = &field.kind;
            while let Kind::Optional(inner) | Kind::List(inner) = kind {
                kind = inner;
            }
            let huge = match kind {
                Kind::UnsignedInt => Value::from(u64::MAX),
                Kind::Int => Value::from(i64::MAX),
                Kind::Float => Value::from(f64::MAX),
                _ => continue,
            };
            if ANY.contains(&field.name) {
                continue;
            }
            let error = check_value(field.name, kind, &huge).unwrap_err();
            let said = error.to_string();
            assert!(
                said.starts_with(&format!("`{}`: got ", field.name)) && said.contains("at most "),
                "{said}"
            );
        }
    }
}
