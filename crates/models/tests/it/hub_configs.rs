//! The configurations of the hub's models, and of fine-tuned ones as other versions of transformers save them, are read, and give as many
//! parameters as transformers counts (`tools/golden/hub_configs.py`).

use std::collections::BTreeMap;
use std::fs;

use models::family_of;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct HubModels {
    models: BTreeMap<String, HubModel>,
}

#[derive(Deserialize)]
struct HubModel {
    config: Value,
    parameters: BTreeMap<String, usize>,
}

/// The part of a weight as the golden numbers count it.
fn part_of(name: &str) -> &'static str {
    match name {
        _ if name.contains("visual.") && name.contains("merger") => "merger",
        _ if name.contains("visual.") => "tower",
        _ if name.contains("embed_tokens") => "embedding",
        _ if name.starts_with("lm_head") => "head",
        _ => "layers",
    }
}

#[test]
fn parameters_of_hub_models_are_counted() {
    let hub: HubModels = testing::read_json(testing::golden("families/hub_configs.json"));
    assert!(hub.models.len() >= 16);
    for (name, model) in hub.models {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), model.config.to_string()).unwrap();
        let config = family_of(folder.path()).unwrap().config(folder.path());
        let config = config.unwrap_or_else(|error| panic!("{name}: {error}"));
        let counted = config.counted().unwrap();
        let mut got: BTreeMap<String, usize> =
            model.parameters.keys().map(|part| (part.clone(), 0)).collect();
        for parameter in &counted.parameters().list {
            let elements = parameter.value.size().iter().product::<i64>() as usize;
            *got.get_mut(part_of(&parameter.name)).unwrap() += elements;
            *got.get_mut("total").unwrap() += elements;
        }
        assert_eq!(got, model.parameters, "{name}");
    }
}
