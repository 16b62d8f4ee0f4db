//! The demo's tiny model, of any family.

use std::path::Path;

use anyhow::{Result, bail};
use models::{FAMILIES, Family, TinySizes};
use serde_json::Value;
use tiny::model::{ModelShape, WeightSizes, mrope_section};
use tiny::scenes::IMAGE_PX;
use tiny::tokenizer::{MERGE_SIZE, PATCH_SIZE, TokenIds};

use super::tokenizer_corpus::tokenizer_corpus;

/// The family that the demo takes unless told otherwise. Its weights are drawn in an order of their own, so that results stay those of
/// earlier versions.
const FIRST: &str = "qwen2_5_vl";

/// Writes a model of the family that is called `name`, its weights drawn from a seed.
pub fn write(folder: &Path, name: &str, shape: &ModelShape, seed: u64) -> Result<()> {
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == name) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        bail!("--family: got `{name}`, expected one of: {}", known.join(", "));
    };
    if name == FIRST {
        return tiny::model::write(folder, shape, &tokenizer_corpus(), seed);
    }
    tiny::model::write_parts(folder, &tokenizer_corpus(), seed, |ids| parts(family, shape, ids))
}

/// The configuration of the family's tiny model, and the weights that its layers take.
fn parts(family: &Family, shape: &ModelShape, ids: &TokenIds) -> Result<(Value, WeightSizes)> {
    let sizes = TinySizes {
        vocab_size: ids.vocab_size,
        width: shape.text_width,
        mlp: shape.text_mlp,
        layers: shape.text_layers,
        heads: shape.text_heads,
        kv_heads: shape.text_kv_heads,
        rope_theta: tiny::model::ROPE_THETA,
        mrope_section: mrope_section(shape),
        vision_width: shape.vision_width,
        vision_mlp: shape.vision_mlp,
        vision_blocks: shape.vision_blocks,
        vision_heads: shape.vision_heads,
        patch_size: PATCH_SIZE,
        merge_size: MERGE_SIZE,
        image_size: IMAGE_PX,
    };
    let mut config = (family.tiny_config)(&sizes);
    for (key, id) in ids.keys() {
        config[key] = id.into();
    }
    let weights = models::family::weights_of(family, &config)?;
    Ok((config, weights))
}

#[cfg(test)]
mod tests {
    use models::{LoadOptions, TrainedParts, load_model};
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn every_family_has_a_tiny_model() {
        for family in FAMILIES {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), family.model_type, &ModelShape::DEMO, 1).unwrap();
            let options =
                LoadOptions { kind: Kind::Float, device: Device::Cpu, trained: TrainedParts::NONE };
            let model = load_model(folder.path(), options).unwrap();
            assert_eq!(model.family().model_type, family.model_type);
            let parameters = model.parameters().num_elements();
            assert!((500_000..900_000).contains(&parameters), "{parameters}");
        }
    }

    /// The first family's model is drawn from a list of its own, which must be what its parts say.
    #[test]
    fn the_first_family_has_the_weights_of_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), FIRST, &ModelShape::DEMO, 1).unwrap();
        let family = FAMILIES.iter().find(|family| family.model_type == FIRST).unwrap();
        let written = torch::WeightFiles::open(folder.path()).unwrap();
        let ids = tiny::tokenizer::write(folder.path(), &tokenizer_corpus()).unwrap();
        let (_, mut parts) = parts(family, &ModelShape::DEMO, &ids).unwrap();
        let mut listed: Vec<(String, Vec<i64>)> = written
            .names()
            .map(|name| (family.names.current(name), written.shape(name).unwrap()))
            .collect();
        listed.sort();
        parts.sort();
        assert_eq!(listed, parts);
    }

    #[test]
    fn an_unknown_family_is_refused_with_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), "qwen9_vl", &ModelShape::DEMO, 1).unwrap_err();
        let expected = "--family: got `qwen9_vl`, expected one of: qwen2_5_vl, qwen2_vl, qwen3_vl";
        assert_eq!(error.to_string(), expected);
    }
}
