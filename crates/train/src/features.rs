//! The feature cache of a run with a frozen vision tower, and its metrics.

use std::rc::Rc;

use base::metric;
use models::features::is_tower_frozen;
use models::{FeatureCache, FeatureCacheOptions, VisionLanguageModel};
use serde_json::{Map, Value, json};

use crate::TrainError;

/// Gives `policy` a cache, where its tower is frozen; whether it now has one.
pub(crate) fn keep(
    policy: &mut dyn VisionLanguageModel,
    options: &FeatureCacheOptions,
) -> Result<bool, TrainError> {
    if is_tower_frozen(policy.parameters()) {
        if !options.is_off() {
            policy.keep_features(Rc::new(FeatureCache::new(options)?))?;
        }
        return Ok(!options.is_off());
    }
    match options.folder {
        None => Ok(false),
        Some(_) => Err(TrainError::Setting {
            name: "feature_cache_dir",
            cause: "the vision tower or its merger is trained, so that features change every step"
                .into(),
        }),
    }
}

/// Gives `reference` the cache of `policy`, where it has one: their towers are the same.
pub(crate) fn share(
    policy: &dyn VisionLanguageModel,
    reference: &mut dyn VisionLanguageModel,
) -> Result<(), TrainError> {
    if let Some(features) = policy.features() {
        reference.keep_features(features.cache().clone())?;
    }
    Ok(())
}

/// Adds what the cache did so far to the metrics; what the user should read of it.
pub(crate) fn report(
    policy: &dyn VisionLanguageModel,
    metrics: &mut Map<String, Value>,
) -> Vec<String> {
    let Some(features) = policy.features() else {
        return Vec::new();
    };
    let stats = features.cache().stats();
    for (name, value) in [
        (metric!("feature_cache/hits"), json!(stats.hits)),
        (metric!("feature_cache/loads"), json!(stats.loads)),
        (metric!("feature_cache/misses"), json!(stats.misses)),
        (metric!("feature_cache/bytes"), json!(stats.num_bytes)),
        (metric!("feature_cache/saved_secs"), json!(stats.saved_secs)),
    ] {
        metrics.insert(name.into(), value);
    }
    features.cache().take_problems()
}
