//! The metrics of a step over all ranks, each by its [`Reduction`].

use serde_json::{Map, Value};

use super::{Command, Metric, Reduction, find_of};
use crate::world::{World, WorldError};

/// Why metrics of ranks do not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReduceError {
    /// Ranks that cannot go on together.
    #[error(transparent)]
    World(#[from] WorldError),
    /// What a rank sent is no metrics.
    #[error("metrics of rank {rank}: {source}")]
    Json {
        /// The rank.
        rank: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A metric without an entry: this is our bug.
    #[error(
        "metric `{name}`: not declared in base::metrics, so what ranks make of it is not known"
    )]
    Undeclared {
        /// Its name.
        name: String,
    },
    /// A metric that must be equal and is not.
    #[error(
        "metric `{name}`: rank 0 has {expected}, rank {rank} has {got}; expected the same: the ranks have diverged"
    )]
    Diverged {
        /// Its name.
        name: String,
        /// Of rank 0.
        expected: String,
        /// The other rank.
        rank: usize,
        /// Its value.
        got: String,
    },
}

/// The metrics of a step over all ranks, the same on each. The order of keys is that of rank 0.
///
/// # Errors
/// Where a rank is gone, where a metric is not declared for `command`, and where one that must be equal is not.
pub fn reduce(
    world: &dyn World,
    command: Command,
    metrics: &Map<String, Value>,
) -> Result<Map<String, Value>, ReduceError> {
    if world.size() == 1 {
        return Ok(metrics.clone());
    }
    let own = Value::Object(metrics.clone()).to_string();
    let all = world.gather("metrics", own.as_bytes())?;
    let parse = |(rank, json): (usize, &Vec<u8>)| {
        serde_json::from_slice(json).map_err(|source| ReduceError::Json { rank, source })
    };
    let all: Vec<Map<String, Value>> =
        all.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let all: Vec<Option<&Map<String, Value>>> = all.iter().map(Some).collect();
    join(command, "", &all)
}

/// Objects of the ranks that have one.
fn join(
    command: Command,
    prefix: &str,
    all: &[Option<&Map<String, Value>>],
) -> Result<Map<String, Value>, ReduceError> {
    let mut joined = Map::new();
    for key in all.iter().flatten().flat_map(|metrics| metrics.keys()) {
        if joined.contains_key(key) {
            continue;
        }
        let values: Vec<Option<&Value>> =
            all.iter().map(|metrics| metrics.and_then(|metrics| metrics.get(key))).collect();
        let name = format!("{prefix}{key}");
        let objects: Vec<_> = values.iter().map(|value| value.and_then(Value::as_object)).collect();
        let value = if objects.iter().any(Option::is_some) {
            Some(Value::Object(join(command, &format!("{name}/"), &objects)?))
        } else {
            let metric = find_of(command, &name);
            let metric = metric.ok_or_else(|| ReduceError::Undeclared { name: name.clone() })?;
            over_ranks(metric, &name, &values)?
        };
        joined.extend(value.map(|value| (key.clone(), value)));
    }
    Ok(joined)
}

/// None where rank 0 alone counts, and has none.
fn over_ranks(
    metric: &Metric,
    name: &str,
    values: &[Option<&Value>],
) -> Result<Option<Value>, ReduceError> {
    let there: Vec<&Value> = values.iter().copied().flatten().collect();
    let is_null = there.iter().any(|value| value.is_null());
    Ok(match metric.reduction {
        Reduction::Main => values[0].cloned(),
        Reduction::Equal => Some(equal(name, values)?),
        // What is not finite on one rank is so on all together.
        Reduction::Sum | Reduction::Max if is_null => Some(Value::Null),
        Reduction::Sum => Some(sum(&there)),
        Reduction::Max => {
            let larger = |a: &&Value, b: &&Value| match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => a.total_cmp(&b),
                (a, b) => a.is_some().cmp(&b.is_some()),
            };
            there.into_iter().max_by(larger).cloned()
        }
    })
}

fn equal(name: &str, values: &[Option<&Value>]) -> Result<Value, ReduceError> {
    let text = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), Value::to_string);
    match values.iter().position(|value| *value != values[0]) {
        None => Ok(values[0].cloned().unwrap_or_default()),
        Some(rank) => Err(ReduceError::Diverged {
            name: name.to_owned(),
            expected: text(values[0]),
            rank,
            got: text(values[rank]),
        }),
    }
}

/// In the order of ranks; counts stay whole numbers.
fn sum(values: &[&Value]) -> Value {
    let counts: Option<Vec<u64>> = values.iter().map(|value| value.as_u64()).collect();
    match counts {
        Some(counts) => counts.iter().sum::<u64>().into(),
        None => values.iter().filter_map(|value| value.as_f64()).sum::<f64>().into(),
    }
}
