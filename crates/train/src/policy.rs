//! The model that is trained: all of its weights, parts of them, or adapters over them.

use std::path::Path;

use base::model_folder::is_adapter;
use models::{
    AdapterSource, Parameter, Parameters, Part, VisionLanguageModel, copy_processor_files,
    exact_weights, family_of, load_model, load_with_adapter, save_adapter_of, save_parameters,
};
use serde_json::{Map, Value, json};
use torch::Written;

use crate::TrainError;
use crate::optimizer::Optimizer;
use crate::settings::Settings;

/// Loads the policy of `folder`, with new adapters where the settings ask for them.
pub(crate) fn load(
    settings: &Settings,
    folder: &Path,
) -> Result<Box<dyn VisionLanguageModel>, TrainError> {
    if is_adapter(folder) {
        let cause = format!(
            "{} is an adapter: training starts from whole models\nhint: `vlm-r1 merge` makes one of it",
            folder.display()
        );
        return Err(TrainError::Setting { name: "model_name_or_path", cause });
    }
    let load = settings.load_options(family_of(folder)?);
    Ok(match &settings.lora {
        Some(options) => load_with_adapter(folder, load, AdapterSource::New(options))?,
        None => load_model(folder, load)?,
    })
}

/// Runs one pass of training; equal keys drop equal inputs of adapters.
pub(crate) fn with_dropout<R>(
    model: &dyn VisionLanguageModel,
    key: &[u64],
    pass: impl FnOnce() -> R,
) -> R {
    match &model.parameters().lora {
        Some(lora) => lora.with_dropout(key, pass),
        None => pass(),
    }
}

/// Writes what is trained: a whole model folder as it came, or an adapter beside the processor's files.
/// `name` is what the user calls the model of `source`. Returns the weight files. Where exact weights are in shards, all other ranks call
/// [`help_to_save`] meanwhile.
pub(crate) fn save(
    (model, optimizer): (&dyn VisionLanguageModel, &Optimizer),
    name: &str,
    source: &Path,
    target: &Path,
) -> Result<Vec<Written>, TrainError> {
    let (rules, parameters) = (&model.family().names, model.parameters());
    let exact = |parameter: &Parameter| optimizer.exact_weight(parameter);
    if parameters.lora.is_none() {
        return save_parameters(rules, parameters, source, target, &exact);
    }
    // A folder by its whole path, so that the adapter is found from anywhere; else a name on the hub.
    let path = Path::new(name);
    let base = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let written = save_adapter_of(parameters, &base, target, &exact)?;
    copy_processor_files(source, target)?;
    Ok(vec![written])
}

/// Gives the rank that runs [`save`] what this one holds of exact weights, in the order that it asks in.
pub(crate) fn help_to_save(
    (model, optimizer): (&dyn VisionLanguageModel, &Optimizer),
    source: &Path,
) -> Result<(), TrainError> {
    if !optimizer.is_sharded() {
        return Ok(());
    }
    let parameters = model.parameters();
    let asked = match parameters.lora {
        Some(_) => parameters.list.iter().filter(|p| p.is_adapter).collect(),
        None => exact_weights(&model.family().names, parameters, source)?,
    };
    asked.into_iter().try_for_each(|parameter| optimizer.exact_weight(parameter).map(drop))
}

/// Parameters of a part of the model.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: usize,
    trained: usize,
}

/// How many parameters each part has, and how many of them are trained.
pub(crate) struct ParameterCounts {
    parts: [(&'static str, Count); 4],
}

impl ParameterCounts {
    /// Counts.
    pub fn of(parameters: &Parameters) -> Self {
        let mut parts =
            ["vision", "merger", "language", "adapters"].map(|name| (name, Count::default()));
        for parameter in &parameters.list {
            let index = match (parameter.is_adapter, parameter.part) {
                (true, _) => 3,
                (false, Part::Vision) => 0,
                (false, Part::Merger) => 1,
                (false, Part::Language) => 2,
            };
            let count = &mut parts[index].1;
            count.all += parameter.value.numel();
            if parameter.value.requires_grad() {
                count.trained += parameter.value.numel();
            }
        }
        ParameterCounts { parts }
    }

    /// All trained parameters.
    pub fn trained(&self) -> usize {
        self.parts.iter().map(|(_, count)| count.trained).sum()
    }

    /// A line for each part that there is, and before them the total.
    pub fn lines(&self) -> Vec<String> {
        let all: usize = self.parts.iter().map(|(_, count)| count.all).sum();
        let trained = self.trained();
        let mut lines = vec![format!(
            "parameters: {}, trained {} ({:.2} %)",
            grouped(all),
            grouped(trained),
            100.0 * trained as f64 / all.max(1) as f64
        )];
        let there = self.parts.iter().filter(|(_, count)| count.all > 0);
        lines.extend(there.map(|(name, count)| {
            let state = match count.trained {
                0 => "frozen".to_owned(),
                n if n == count.all => "trained".to_owned(),
                n => format!("{} trained", grouped(n)),
            };
            format!("  {name:<8} {:>14}  {state}", grouped(count.all))
        }));
        lines
    }

    /// The same for env.json.
    pub fn json(&self) -> Value {
        let parts = self.parts.iter().map(|(name, count)| {
            let count = json!({"all": count.all, "trained": count.trained});
            ((*name).to_owned(), count)
        });
        Value::Object(parts.collect::<Map<_, _>>())
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let groups = tail.as_bytes().chunks(3).map(|g| String::from_utf8_lossy(g).into_owned());
    let head = (!head.is_empty()).then(|| head.to_owned());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_parted() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (38_912_345, "38,912,345")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
